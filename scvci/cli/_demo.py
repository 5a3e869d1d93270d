"""``scvci demo``: the main job in one command."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd

from scvci._files import write_h5ad, write_whole
from scvci.data._splitter import split_cells
from scvci.datasets import simulate_perturbation
from scvci.metrics import BASELINES, evaluate, pseudobulk, verdict
from scvci.model import VCI
from scvci.pl import counterfactual_shift, effect_scatter, training_curves

if TYPE_CHECKING:
    from anndata import AnnData

#: Share of a user's cells kept from training, to score means on.
_TEST_SHARE = 0.2


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for.

    Attributes
    ----------
    out
        Folder to write to.
    data
        A user's ``.h5ad``; ``None`` simulates an experiment.
    layer, treatment_key, control, covariate_keys
        See :meth:`scvci.model.VCI.setup_anndata`.
    max_epochs
        Most epochs.
    n_cells, n_genes
        Size of the simulation.
    seed
        Seed of everything.
    """

    out: Path = Path("scvci_demo")
    data: Path | None = None
    layer: str | None = None
    treatment_key: str = "treatment"
    control: str = "control"
    covariate_keys: tuple[str, ...] = ()
    max_epochs: int | None = None
    n_cells: int = 4000
    n_genes: int = 400
    seed: int = 0


def run_demo(options: DemoOptions) -> pd.DataFrame:
    """Train, predict, score and plot, and print each step.

    Returns
    -------
    The table of scores, also written to ``metrics.csv``.

    Raises
    ------
    FileNotFoundError
        If the data do not exist.
    """
    mpl.use("Agg")
    adata, keys = _load(options)
    VCI.setup_anndata(adata, **keys)
    model = VCI(adata, seed=options.seed)
    _say(str(model))
    _train(model, options)
    _say(f"Predicting every cell under each of {len(model.treatments)} treatments ...")
    layers = dict(zip(model.treatments, model.predict_counterfactual(), strict=True))
    simulated = options.data is None
    _say("Scoring predictions beside the baselines ...")
    scores = _score(model, layers, simulated)
    table, effects = _wide(scores, simulated), _effects(model, layers, simulated)
    _say("Drawing and writing ...")
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out, model, table, effects)
    print(table.round(3).to_string())
    print(verdict(scores))
    print(f"Written to {options.out}: " + ", ".join(sorted(p.name for p in options.out.iterdir())))
    return table


def _say(text: str) -> None:
    """Print at once, also into a pipe or file."""
    print(text, flush=True)


def _load(options: DemoOptions) -> tuple[AnnData, dict[str, Any]]:
    if options.data is None:
        _say(f"Simulating {options.n_cells} cells of {options.n_genes} genes ...")
        adata = simulate_perturbation(
            n_cells=options.n_cells, n_genes=options.n_genes, held_out=2, seed=options.seed
        )
        return adata, {"layer": "counts", "categorical_covariate_keys": ["cell_type"]}
    if not options.data.exists():
        raise FileNotFoundError(f"There is no file {options.data}.")
    _say(f"Reading {options.data} ...")
    return anndata.read_h5ad(options.data), {
        "layer": options.layer,
        "treatment_key": options.treatment_key,
        "control": options.control,
        "categorical_covariate_keys": list(options.covariate_keys),
    }


def _train(model: VCI, options: DemoOptions) -> None:
    """Train, with a progress bar where there is a terminal to redraw it in."""
    parts = None if options.data is None else _parts(model, options.seed)
    limit = "" if options.max_epochs is None else f", {options.max_epochs} epochs at most"
    _say(f"Training until the objective no longer improves on validation cells{limit} ...")
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        model.train(
            max_epochs=options.max_epochs,
            datasplitter_kwargs={"external_indexing": parts} if parts else None,
            enable_progress_bar=sys.stdout.isatty(),
        )
    n_epochs = len(model.history["train_loss"])
    _say(f"Trained for {n_epochs} epochs in {time.monotonic() - start:.0f} s.")


def _parts(model: VCI, seed: int) -> list[np.ndarray]:
    """Training, validation and test rows of a user's data."""
    cells = model.cells()
    group = cells.stratum * cells.n_treatments + cells.treatment
    rng = np.random.default_rng(seed)
    return list(split_cells(group, 0.9 - _TEST_SHARE, 0.1, rng))


def _score(model: VCI, layers: dict[str, str], simulated: bool) -> pd.DataFrame:
    """Against known counterfactuals, or else against test cells that entered no training.

    Means are those of the predicted change added to the observed control.
    """
    scores = evaluate(
        model.adata,
        layers,
        treatment_key=model.setup_args["treatment_key"],
        control=model.setup_args["control"],
        covariate_keys=model.setup_args["categorical_covariate_keys"] or (),
        counts_layer=model.setup_args["layer"],
        truth={t: f"true_{t}" for t in layers} if simulated else None,
        test=None if simulated else model.test_indices,
        baselines=list(BASELINES) if simulated else True,
        min_cells=2,
    )
    of_means = scores["metric"].isin(["r2_delta", "pearson_delta"])
    wanted = scores["metric"].isin(["ite_corr", "r2_delta", "mse"]) if simulated else of_means
    changes = scores["method"] == "VCI (change)"
    scores = scores[wanted & ((scores["kind"] == "baseline") | (changes == of_means))]
    return scores.assign(method=scores["method"].replace("VCI (change)", "VCI"))


def _wide(scores: pd.DataFrame, simulated: bool) -> pd.DataFrame:
    """Methods by metrics, seen and held-out pairs apart where counterfactuals are known."""
    columns = ["metric", "pair"] if simulated else ["metric"]
    table = scores.groupby(["method", *columns], sort=False)["value"].mean().unstack(columns)
    if simulated:
        table.columns = [f"{metric} ({pair})" for metric, pair in table.columns]
    return table.loc[scores["method"].unique()]


def _effects(model: VCI, layers: dict[str, str], simulated: bool) -> pd.DataFrame:
    """Long table of observed and predicted effects per gene, of all pairs that can be compared."""
    adata, control = model.adata, model.control
    cells = model.cells()
    treatment, stratum = cells.treatment, cells.stratum
    test = np.ones(adata.n_obs, dtype=bool)
    if not simulated:
        test[model.train_indices] = test[model.validation_indices] = False
    frames = []
    for x, t in np.ndindex(len(model.strata), len(model.treatments)):
        name = model.treatments[t]
        base = (stratum == x) & (treatment == 0)
        treated = (stratum == x) & (treatment == t)
        seen, query = treated.any(), base & test
        if simulated:
            true = [adata.layers[f"true_{arm}"][query] for arm in (name, control)]
        else:
            true = [cells.block(np.flatnonzero(rows)) for rows in (treated & test, query)]
        guess = [adata.layers[layers[arm]][base] for arm in (name, control)]
        if t == 0 or min(part.sum() for part in (*true, *guess)) <= 0:
            continue
        frames.append(
            pd.DataFrame(
                {
                    "treatment": name,
                    "stratum": model.strata[x],
                    "pair": "seen" if seen else "held out",
                    "gene": cells.genes,
                    "observed": pseudobulk(true[0]) - pseudobulk(true[1]),
                    "predicted": pseudobulk(guess[0]) - pseudobulk(guess[1]),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _write(out: Path, model: VCI, table: pd.DataFrame, effects: pd.DataFrame) -> None:
    write_whole(out / "metrics.csv", table.to_csv)
    training_curves(model, save=out / "training_curves.png")
    effect_scatter(effects, save=out / "effects.png")
    # The treatment with the largest observed effects makes the most telling embedding.
    size = effects.groupby("treatment")["observed"].apply(lambda e: float((e**2).mean()))
    counterfactual_shift(model, str(size.idxmax()), save=out / "umap.png")
    write_cells = partial(write_h5ad, adata=model.adata, compression="gzip")
    write_whole(out / "counterfactuals.h5ad", write_cells)
