"""What the paper's expression benchmarks share: run, print, write, rehearse."""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accuracy import RESULTS, code_commit, versions, write
from anndata import AnnData
from paper_methods import MODELS, Model, baselines
from paper_rules import Experiment, corrected_scores, paper_scores, summary
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Study:
    """One of the paper's experiments.

    Attributes
    ----------
    name, control
        Name, and that of the control.
    covariates
        Columns whose combinations are the strata, and their levels.
    files
        Names of the raw files, a pattern.
    prepare, download
        From raw cells to the prepared experiment; from a folder to paths of raw files.
    smoke
        Prepare a few simulated raw cells of the same form.
    n_cells, n_genes, n_treatments, doses
        Size of the prepared experiment.
    held_out
        Column and level in which twenty treatments are held out.
    density
        Rough share of counts that are not zero.
    """

    name: str
    control: str
    covariates: dict[str, list[str]]
    files: str
    prepare: Callable[..., AnnData]
    download: Callable[[Path], list[Path] | Path]
    smoke: Callable[[], AnnData]
    n_cells: int
    n_genes: int
    n_treatments: int
    doses: list[float]
    held_out: tuple[str, str]
    density: float

    def experiment(self, adata: AnnData) -> Experiment:
        """Wrap prepared cells."""
        return Experiment(self.name, adata, self.control, list(self.covariates))

    def full_size(self) -> Experiment:
        """Simulate counts of the size of the prepared experiment."""
        return self.experiment(simulate_prepared(self))


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that the benchmarks have in common."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--methods", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument(
        "--epochs", type=int, help="most epochs of models with the paper's preset"
    )
    arguments.add_argument("--default-epochs", type=int, help="most epochs of the other models")
    arguments.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, …")
    arguments.add_argument(
        "--splits", nargs="+", choices=["train", "test", "ood"], default=["test", "ood"]
    )
    arguments.add_argument(
        "--base-cells", type=int, help="most cells that a mean is predicted for; default: all"
    )
    arguments.add_argument(
        "--more-than", type=int, default=9, help="evaluation cells of a group, corrected rules"
    )
    return arguments


def main(study: Study, description: str) -> None:
    """Run one of the paper's experiments: a smoke run, on real files, or a rehearsal."""
    arguments = parser(description)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--smoke", action="store_true", help="simulated raw files, few cells")
    what.add_argument("--data", nargs="+", type=Path, help="raw files, or their folder")
    what.add_argument("--download", type=Path, help="folder to fetch the raw files to, and run")
    what.add_argument("--rehearse", action="store_true", help="full size, simulated counts")
    arguments.add_argument(
        "--protocol", choices=["published", "corrected"], default="published", help="preparation"
    )
    arguments.add_argument(
        "--steps", type=int, help="steps of an epoch in a rehearsal; default: a whole epoch"
    )
    options = arguments.parse_args()
    if options.rehearse:
        if len(options.methods) > 1:
            arguments.error("--rehearse measures memory: choose one of --methods")
        rehearse(study.full_size, options)
        return
    if options.smoke:
        adata = study.smoke()
        options.epochs = options.epochs or 2
        options.default_epochs = options.default_epochs or 5
        options.base_cells = options.base_cells or 50
    else:
        raw = study.download(options.download) if options.download else None
        raw = raw or raw_files(options.data, study.files)
        adata = study.prepare(raw, protocol=options.protocol)
    table = run(study.experiment(adata), options)
    show_and_write(table, f"{study.name}{'_smoke' if options.smoke else ''}")


def raw_files(paths: list[Path], pattern: str) -> list[Path]:
    """Find the raw files among files and folders."""
    files = [f for p in paths for f in (sorted(p.glob(pattern)) if p.is_dir() else [p])]
    if not files:
        raise FileNotFoundError(
            f"There is no {pattern} in {', '.join(map(str, paths))}; --download fetches them."
        )
    return files


def epochs_of(name: str, options: argparse.Namespace) -> int | None:
    """Most epochs of a model."""
    return options.epochs if "paper" in name else options.default_epochs


def run(experiment: Experiment, options: argparse.Namespace) -> pd.DataFrame:
    """Train, score by all rules, and say what was done."""
    print(describe(experiment), flush=True)
    parts = []
    for seed in range(options.seeds):
        methods: list = [] if seed else baselines(experiment)
        for name in options.methods:
            start = time.perf_counter()
            model = Model(name, experiment, seed, epochs_of(name, options))
            methods.append(model)
            if not name.startswith("conditional"):
                methods.append(model.other_calibration())
            print(
                f"  {name}, seed {seed}: {model.n_epochs} epochs, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
        for mode in ("native", "classic"):
            for method in methods:
                rows = paper_scores(experiment, method, mode, options.splits, options.base_cells)
                parts.append(rows.assign(seed=seed))
        corrected = corrected_scores(
            experiment, methods, options.splits, options.base_cells, options.more_than
        )
        if seed:
            corrected = corrected[corrected["method"] != "half of the cells"]
        parts.append(corrected.assign(seed=seed))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    table.insert(0, "experiment", experiment.name)
    table["epochs"] = [
        options.epochs if "paper" in name else options.default_epochs for name in table["method"]
    ]
    return table


def describe(experiment: Experiment) -> str:
    """Sizes of an experiment in a line."""
    obs = experiment.obs
    splits = ", ".join(f"{n:,} {name}" for name, n in obs["split"].value_counts().items())
    n_treatments = obs["treatment"].nunique() - 1
    return (
        f"{experiment.name}: {experiment.adata.n_obs:,} cells ({splits}) × "
        f"{experiment.adata.n_vars:,} genes, {n_treatments} treatments, "
        f"{len(experiment.strata)} strata"
    )


def show_and_write(table: pd.DataFrame, name: str) -> None:
    """Print means over groups, and write every row with what it was made by."""
    for title, means in summary(table):
        print(f"\n{title}\n{means.to_string()}", flush=True)
    table = table.assign(
        command=shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        versions=versions(),
        commit=code_commit(),
    )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.csv"
    write(table, file)
    print(f"\n{len(table):,} rows in {file.relative_to(RESULTS.parents[1])}")


# -- rehearsal at full size ---------------------------------------------------------------------


def simulate_prepared(study: Study, seed: int = 0) -> AnnData:
    """Simulate counts of the size and density of a prepared experiment.

    Parameters
    ----------
    study
        Sizes, names and density.
    seed
        Seed.
    """
    n_cells, n_genes = study.n_cells, study.n_genes
    treatments = [f"treatment_{i + 1}" for i in range(study.n_treatments)]
    rng = np.random.default_rng(seed)
    arms = [(study.control, 0.0), *((t, d) for t in treatments for d in study.doses)]
    # The control is a few percent of the cells.
    weight = np.array([max(1.0, 0.03 * len(arms)), *np.ones(len(arms) - 1)])
    arm = rng.choice(len(arms), n_cells, p=weight / weight.sum())
    obs = pd.DataFrame(
        {
            "treatment": pd.Categorical([arms[a][0] for a in arm]),
            "dose": [arms[a][1] for a in arm],
            **{name: rng.choice(levels, n_cells) for name, levels in study.covariates.items()},
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    column, level = study.held_out
    ood = (obs[column] == level) & obs["treatment"].isin(treatments[:20])
    obs["split"] = np.where(ood, "ood", np.where(rng.random(n_cells) < 0.8, "train", "test"))
    rate = rng.lognormal(0, 1.5, n_genes)
    rate *= -np.log1p(-study.density) / np.median(rate)
    effects = rng.normal(0, 0.3, (len(arms), n_genes)) * (rng.random((len(arms), n_genes)) < 0.05)
    effects[0] = 0
    blocks = []
    for rows in np.array_split(np.arange(n_cells), max(1, n_cells // 4000)):
        depth = rng.lognormal(0, 0.3, (len(rows), 1))
        blocks.append(sparse.csr_matrix(rng.poisson(depth * rate * np.exp(effects[arm[rows]]))))
    counts = sparse.vstack(blocks, format="csr").astype(np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scale = np.median(total) / np.maximum(total, 1)
    normal = sparse.csr_matrix(sparse.diags(scale.astype(np.float32)) @ counts)
    adata = AnnData(normal.log1p(), obs=obs, layers={"counts": counts})
    adata.var_names = [f"gene_{i}" for i in range(n_genes)]
    return adata


def peak_gb() -> float:
    """Most memory that this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def rehearse(make: Callable[[], Experiment], options: argparse.Namespace) -> None:
    """One training at full size: CPU seconds and memory of each step. One method a process."""
    for line in _rehearsed(make, options):
        print(f"{line}; peak {peak_gb():.2f} GB", flush=True)


def _rehearsed(make: Callable[[], Experiment], options: argparse.Namespace) -> Iterator[str]:
    start = time.process_time()
    experiment = make()
    yield f"{describe(experiment)}: simulated in {time.process_time() - start:.0f} CPU s"
    (name,) = options.methods
    trainer = {} if options.steps is None else {"limit_train_batches": options.steps}
    model = Model(name, experiment, 0, epochs_of(name, options) or 1, **trainer)
    seconds, batch_size = model.seconds, model.model.module.backbone.training.batch_size or 128
    n_steps = len(model.model.parts_["train"]) / batch_size
    yield (
        f"{name}: {seconds['before']:.0f} CPU s before training; {1000 * seconds['step']:.0f} ms "
        f"a step with its validation, {n_steps * seconds['step']:.0f} s an epoch; "
        f"{seconds['after']:.0f} s after it"
    )

    def timed(label: str, score: Callable[[], pd.DataFrame]) -> str:
        start = time.process_time()
        rows = score()
        n = len(rows[["stratum", "treatment", "dose", "split"]].drop_duplicates())
        return f"{label}: {n} groups in {time.process_time() - start:.0f} CPU s"

    few = (options.splits, options.base_cells)
    yield timed("paper, native", lambda: paper_scores(experiment, model, "native", *few))
    yield timed("paper, classic", lambda: paper_scores(experiment, model, "classic", *few))
    yield timed(
        "corrected", lambda: corrected_scores(experiment, [model], *few, options.more_than)
    )
