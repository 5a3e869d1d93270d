"""What the paper's expression benchmarks share: run, print, write, rehearse."""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from accuracy import RESULTS, code_commit, versions, write
from paper_methods import MODELS, Model, baselines
from paper_rules import Experiment, corrected_scores, paper_scores, summary
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that the benchmarks have in common."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--methods", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument(
        "--epochs", type=int, default=100, help="of models with the paper's preset (1,000 there)"
    )
    arguments.add_argument(
        "--default-epochs", type=int, help="most epochs of other models; default: the package's"
    )
    arguments.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, …")
    arguments.add_argument("--splits", nargs="+", default=["test", "ood"])
    arguments.add_argument(
        "--base-cells", type=int, help="most cells that a mean is predicted for; default: all"
    )
    arguments.add_argument("--more-than", type=int, default=9, help="cells, corrected rules")
    arguments.add_argument("--out", default=None, help="name of the table in benchmarks/results")
    return arguments


def epochs_of(name: str, options: argparse.Namespace) -> int | None:
    """Most epochs of a model."""
    return options.epochs if "paper" in name else options.default_epochs


def run(experiment: Experiment, options: argparse.Namespace) -> pd.DataFrame:
    """Train, score by all rules, and say what was done."""
    say = describe(experiment)
    print(say, flush=True)
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
    table["epochs"] = [f"{options.epochs}" if "paper" in m else "default" for m in table["method"]]
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


def simulate_prepared(
    n_cells: int,
    n_genes: int,
    treatments: list[str],
    doses: list[float],
    covariates: dict[str, list[str]],
    held_out: tuple[str, str, int],
    control: str,
    density: float,
    seed: int = 0,
) -> anndata.AnnData:
    """Simulate counts of the size and density of a prepared experiment.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    treatments, doses
        Treatments, each at all doses.
    covariates
        Columns and their levels.
    held_out
        Column, level and number of treatments of the held-out pairs.
    control
        Name of the control.
    density
        Rough share of entries that are not zero.
    seed
        Seed.
    """
    rng = np.random.default_rng(seed)
    arms = [(control, 0.0), *((t, d) for t in treatments for d in doses)]
    # The control is a few percent of the cells.
    weight = np.array([max(1.0, 0.03 * len(arms)), *np.ones(len(arms) - 1)])
    arm = rng.choice(len(arms), n_cells, p=weight / weight.sum())
    obs = pd.DataFrame(
        {
            "treatment": pd.Categorical([arms[a][0] for a in arm]),
            "dose": [arms[a][1] for a in arm],
            **{name: rng.choice(levels, n_cells) for name, levels in covariates.items()},
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    column, level, n_held = held_out
    ood = (obs[column] == level) & obs["treatment"].isin(treatments[:n_held])
    obs["split"] = np.where(ood, "ood", np.where(rng.random(n_cells) < 0.8, "train", "test"))
    rate = rng.lognormal(0, 1.5, n_genes)
    rate *= -np.log1p(-density) / np.median(rate)
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
    adata = anndata.AnnData(normal.log1p(), obs=obs, layers={"counts": counts})
    adata.var_names = [f"gene_{i}" for i in range(n_genes)]
    return adata


def peak_gb() -> float:
    """Most memory that this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def rehearse(make: Callable[[], Experiment], options: argparse.Namespace) -> None:
    """One training at full size: seconds and memory of each step. One method a process."""
    for line in _rehearsed(make, options):
        print(f"{line}; peak {peak_gb():.2f} GB", flush=True)


def _rehearsed(make: Callable[[], Experiment], options: argparse.Namespace) -> Iterator[str]:
    start = time.perf_counter()
    experiment = make()
    yield f"{describe(experiment)}: simulated in {time.perf_counter() - start:.0f} s"
    (name,) = options.methods
    model = Model(name, experiment, 0, epochs_of(name, options) or 1)
    seconds = model.seconds
    yield (
        f"{name}: {seconds['before']:.0f} s before training, {seconds['epoch']:.0f} s an epoch "
        f"(of {model.n_epochs}), {seconds['after']:.0f} s after it"
    )
    start = time.perf_counter()
    table = paper_scores(experiment, model, "native", options.splits, options.base_cells)
    yield f"paper, native: {len(table)} groups in {time.perf_counter() - start:.0f} s"
    start = time.perf_counter()
    table = paper_scores(experiment, model, "classic", options.splits, options.base_cells)
    yield f"paper, classic: {len(table)} groups in {time.perf_counter() - start:.0f} s"
    start = time.perf_counter()
    table = corrected_scores(
        experiment, [model], options.splits, options.base_cells, options.more_than
    )
    yield f"corrected: {len(table) // 2} groups in {time.perf_counter() - start:.0f} s"
