"""``scvci demo``: the main job in one command."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd

from scvci.data import split_cells
from scvci.datasets import simulate_perturbation
from scvci.metrics import (
    baseline_tables,
    counterfactual_report,
    pair_pseudobulks,
    population_report,
)
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
    """Train, predict, plot and score.

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
    print(model)
    simulated = options.data is None
    parts = None if simulated else _parts(model, options.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        model.train(
            max_epochs=options.max_epochs,
            datasplitter_kwargs={"external_indexing": parts} if parts else None,
        )
    model.predict_counterfactual()
    table, effects = _score_simulation(model) if simulated else _score_real(model)
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out, model, table, effects)
    print(table.round(3).to_string())
    for line in _verdict(table):
        print(line)
    print(f"Written to {options.out}: " + ", ".join(sorted(p.name for p in options.out.iterdir())))
    return table


def _load(options: DemoOptions) -> tuple[AnnData, dict[str, Any]]:
    if options.data is None:
        adata = simulate_perturbation(
            n_cells=options.n_cells, n_genes=options.n_genes, held_out=2, seed=options.seed
        )
        return adata, {"layer": "counts", "categorical_covariate_keys": ["cell_type"]}
    if not options.data.exists():
        raise FileNotFoundError(f"There is no file {options.data}.")
    return anndata.read_h5ad(options.data), {
        "layer": options.layer,
        "treatment_key": options.treatment_key,
        "control": options.control,
        "categorical_covariate_keys": list(options.covariate_keys),
    }


def _parts(model: VCI, seed: int) -> list[np.ndarray]:
    """Training, validation and test rows of a user's data."""
    treatment, stratum = model._codes()
    group = stratum * len(model.treatments) + treatment
    rng = np.random.default_rng(seed)
    return list(split_cells(group, 0.9 - _TEST_SHARE, 0.1, rng))


def _score_simulation(model: VCI) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Against the known counterfactuals of every cell."""
    adata, treatments = model.adata, model.treatments
    true = {t: adata.layers[f"true_{t}"] for t in treatments}
    treatment, stratum = model._codes()
    shape = (len(model.strata), len(treatments))
    means = pair_pseudobulks(adata.layers["counts"], treatment, stratum, shape)
    predicted = {"VCI": {t: adata.layers[f"counterfactual_{t}"] for t in treatments}}
    for name, table in baseline_tables(means).items():
        predicted[name] = {t: np.expm1(table[stratum, i]) for i, t in enumerate(treatments)}
    held_out = {tuple(pair) for pair in adata.uns["simulation"]["held_out"]}
    strata = np.asarray(model.strata)[stratum]
    scores = {
        name: counterfactual_report(true, layers, strata, model.control, held_out)
        for name, layers in predicted.items()
    }
    table = pd.concat(
        {n: s.groupby("pair")[["ite_corr", "r2_delta", "mse"]].mean() for n, s in scores.items()},
        names=["method"],
    ).unstack("pair")
    table.columns = [f"{metric} ({pair})" for metric, pair in table.columns]
    shape3 = (*shape, adata.n_vars)
    real, guess = np.empty(shape3), np.empty(shape3)
    for i, t in enumerate(treatments):
        code = np.full(adata.n_obs, i)
        for target, values in ((real, true[t]), (guess, predicted["VCI"][t])):
            target[:, i] = pair_pseudobulks(values, code, stratum, shape)[:, i]
    return table.loc[list(predicted)], _effects(model, real, guess, held_out)


def _score_real(model: VCI) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Against means of test cells, which entered neither training nor baselines."""
    adata, treatments = model.adata, model.treatments
    layer = model._setup_arg("layer")
    counts = adata.X if layer is None else adata.layers[layer]
    treatment, stratum = model._codes()
    shape = (len(model.strata), len(treatments))
    test = model.test_indices
    train = np.concatenate([model.train_indices, model.validation_indices])
    real = pair_pseudobulks(counts[test], treatment[test], stratum[test], shape)
    means = pair_pseudobulks(counts[train], treatment[train], stratum[train], shape)
    guess = np.full_like(real, np.nan)
    for i, t in enumerate(treatments):
        values = adata.layers[f"counterfactual_{t}"]
        guess[:, i] = pair_pseudobulks(values, np.full(adata.n_obs, i), stratum, shape)[:, i]
    methods = {"VCI": guess, "mean of the pair": means, **baseline_tables(means)}
    report = population_report(real, methods, 0, treatments)
    table = report.groupby("method", sort=False)[["r2_delta", "pearson_delta"]].mean()
    return table, _effects(model, real, guess, set())


def _effects(
    model: VCI, real: np.ndarray, guess: np.ndarray, held_out: set[tuple[str, ...]]
) -> pd.DataFrame:
    """Long table of observed and predicted effects per gene."""
    frames = []
    for x, t in np.ndindex(*real.shape[:2]):
        treatment, stratum = model.treatments[t], model.strata[x]
        if t == 0 or not np.isfinite(real[x, [0, t]]).all():
            continue
        frames.append(
            pd.DataFrame(
                {
                    "treatment": treatment,
                    "stratum": stratum,
                    "pair": "held out" if (treatment, stratum) in held_out else "seen",
                    "gene": model.gene_names_,
                    "observed": real[x, t] - real[x, 0],
                    "predicted": guess[x, t] - guess[x, 0],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _verdict(table: pd.DataFrame) -> list[str]:
    """Say where the model is ahead of every baseline and where it is not."""
    lines = []
    for column in table:
        ascending = column.startswith("mse")
        best = table[column].drop("VCI")
        best = best.min() if ascending else best.max()
        own = table.loc["VCI", column]
        ahead = own < best if ascending else own > best
        word = "ahead of" if ahead else "BEHIND"
        lines.append(f"{column}: VCI {own:.3f} is {word} the best baseline ({best:.3f})")
    return lines


def _write(out: Path, model: VCI, table: pd.DataFrame, effects: pd.DataFrame) -> None:
    table.to_csv(out / "metrics.csv")
    training_curves(model, save=out / "training_curves.png")
    effect_scatter(effects, save=out / "effects.png")
    # The treatment with the largest observed effects makes the most telling embedding.
    size = effects.groupby("treatment")["observed"].apply(lambda e: float((e**2).mean()))
    counterfactual_shift(model, str(size.idxmax()), save=out / "umap.png")
    model.adata.write_h5ad(out / "counterfactuals.h5ad", compression="gzip")
