"""What is predicted: data sets and splits, as cases of cells to train on and cells to predict for.

A case never shows a method the cells it is scored on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd

from scvci.data._folds import pair_folds
from scvci.datasets import Departures, plant_effects, simulate_perturbation
from scvci.metrics import pseudobulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

#: Real data lie beside the checkout, not in it.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
#: Column of ``obs`` with the strata of each real data set.
STRATA = {
    **dict.fromkeys(("kang", "kang_donors", "mcfaline", "norman"), "cell_type"),
    "papalexi": "bio_rep",
    "hagai_lps": "replicate",
}
_MIN_CELLS = 20
#: Most folds of held-out pairs, where not all.
_MAX_FOLDS = {"papalexi": 4}


@dataclass(frozen=True)
class Case:
    """One thing to predict.

    Attributes
    ----------
    name
        Data set, split and fold, as ``"kang/pairs/B"``.
    train
        Cells to train on: counts in ``X``; ``obs["treatment"]``, ``obs["stratum"]``.
    query
        Cells to predict for, with their received treatment and stratum.
    control
        Name of the control.
    pairs
        (treatment, stratum) pairs to score, and whether they are ``"seen"`` or ``"held out"``.
    truth
        Expected counts of every query cell by treatment, where they are known.
    noisy
        Whether the truth has a counting noise of its own, which averages out on the scale of
        counts only.
    real
        Counts of real cells of the pairs to score, where truth is not known.
    base
        Pseudobulk of the controls that effects are measured from, by stratum.
    """

    name: str
    train: AnnData
    query: AnnData
    control: str
    pairs: dict[tuple[str, str], str]
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    real: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    base: dict[str, np.ndarray] = field(default_factory=dict)
    noisy: bool = False


# -- simulated ----------------------------------------------------------------------------------

#: Regimes of the simulator; everything else is its default.
REGIMES: dict[str, dict] = {
    "default": {},
    "unconfounded": {"confounding": 0.0},
    "confounded": {"confounding": 3.0},
    "homogeneous": {"heterogeneity": 0.0},
    "heterogeneous": {"heterogeneity": 2.0},
    "shallow": {"depth": 1000.0},
    "deep": {"depth": 20000.0},
    "no effect": {"effect_size": 0.0, "heterogeneity": 0.0, "stratum_interaction": 0.0},
    "many strata": {"n_strata": 6},
    "many treatments": {"n_treatments": 12},
    "few cells": {"n_cells": 1200},
    "noisy": {"inverse_dispersion": 1.0},
    "effects on variance": {"departures": Departures(variance=0.5)},
    "threshold": {"departures": Departures(threshold=1.0)},
    "zero-inflated": {"departures": Departures(zero_inflation=0.3)},
    "batches": {"departures": Departures(n_batches=3, batch_effect=0.3)},
    "strata differ": {"stratum_interaction": 0.6},
}


def simulated(regime: str, seed: int) -> Iterator[Case]:
    """All pairs of the simulator, two of them held out; the seed draws a new mechanism."""
    adata = simulate_perturbation(held_out=2, seed=seed, **REGIMES[regime])
    adata.X = adata.layers["counts"]
    adata.obs["stratum"] = adata.obs["cell_type"].astype(str)
    yield _known(f"simulated {regime}/all/0", adata)


def planted(name: str, seed: int) -> Iterator[Case]:
    """Effects planted by thinning into the controls of a real data set.

    `norman` has a hundred controls and weak effects: all its cells count as untreated there.
    """
    adata = read_cells(name)
    if name != "norman":
        adata = adata[(adata.obs["treatment"] == "control").to_numpy()]
    planted = plant_effects(
        adata.copy(),
        "stratum",
        n_treatments=3,
        responding=0.4,
        effect_size=2.0,
        held_out=2 if adata.obs["stratum"].nunique() > 1 else 0,
        seed=seed,
    )
    truth = planted.layers["true_control"]
    planted = planted[
        (np.asarray(planted.X.sum(axis=1)).ravel() > 0) & (truth.sum(axis=1) > 0)
    ].copy()
    yield _known(f"planted in {name}/all/0", planted, noisy=True)


def _known(name: str, adata: AnnData, noisy: bool = False) -> Case:
    """Every pair of an experiment whose counterfactuals are layers."""
    simulation = adata.uns["simulation"]
    truth = {t: adata.layers[f"true_{t}"] for t in simulation["treatments"]}
    held_out = {tuple(pair) for pair in simulation["held_out"]}
    cells = anndata.AnnData(adata.X, obs=adata.obs, var=adata.var)
    strata = sorted(cells.obs["stratum"].unique())
    return Case(
        name=name,
        train=cells,
        query=cells,
        control="control",
        pairs={
            (t, x): "held out" if (t, x) in held_out else "seen"
            for t in truth
            if t != "control"
            for x in strata
        },
        truth=truth,
        noisy=noisy,
        base={
            x: pseudobulk(truth["control"][(cells.obs["stratum"] == x).to_numpy()]) for x in strata
        },
    )


# -- real ---------------------------------------------------------------------------------------


@cache
def read_cells(name: str) -> AnnData:
    """Read a real data set; `obs` gets the columns ``treatment`` and ``stratum``."""
    adata = anndata.read_h5ad(DATA / f"{name}.h5ad")
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.obs["stratum"] = adata.obs[STRATA[name]].astype(str)
    adata.obs["treatment"] = adata.obs["treatment"].astype(str)
    return adata


def _real_case(
    name: str, adata: AnnData, held: np.ndarray, kind: str, new_stratum: bool = False
) -> Case:
    """Hold out cells, and predict their means from the controls of the stratum.

    The controls are training cells; of a stratum that is new to the model they are its own.
    """
    obs = adata.obs
    train = adata[~held]
    source = adata[held] if new_stratum else train
    query = source[(source.obs["treatment"] == "control").to_numpy()].copy()
    groups = obs[held].groupby(["treatment", "stratum"], observed=True).size()
    pairs = {pair: kind for pair, n in groups.items() if n >= 5 and pair[0] != "control"}
    select = {
        pair: held & (obs["treatment"] == pair[0]).to_numpy() & (obs["stratum"] == pair[1])
        for pair in pairs
    }
    return Case(
        name=name,
        train=train.copy(),
        query=query,
        control="control",
        pairs=pairs,
        real={pair: adata.X[rows.to_numpy()] for pair, rows in select.items()},
        base={x: pseudobulk(query.X[(query.obs["stratum"] == x).to_numpy()]) for _, x in pairs},
    )


def held_out_pairs(name: str) -> Iterator[Case]:
    """Each (treatment, stratum) in turn; of several treatments, one per stratum at a time.

    Of `papalexi`, whose folds are 25 trainings of 20,000 cells, the first ones.
    """
    adata = read_cells(name)
    strata = sorted(adata.obs["stratum"].unique())
    treatments = ["control", *sorted(set(adata.obs["treatment"]) - {"control"})]
    t = pd.Categorical(adata.obs["treatment"], treatments).codes.astype(np.int64)
    x = pd.Categorical(adata.obs["stratum"], strata).codes.astype(np.int64)
    shape = (len(strata), len(treatments))
    counts = np.bincount(x * shape[1] + t, minlength=shape[0] * shape[1]).reshape(shape)
    for fold in pair_folds(counts, _MIN_CELLS)[: _MAX_FOLDS.get(name)]:
        held = np.any([(x == s) & (t == u) for s, u in fold], axis=0)
        label = "+".join(f"{treatments[u]}-{strata[s]}" for s, u in fold).replace("/", "_")
        yield _real_case(f"{name}/pairs/{label}", adata, held, "held out")


def held_out_strata(name: str) -> Iterator[Case]:
    """Each stratum in turn, its controls too: they are seen at prediction only."""
    adata = read_cells(name)
    for x in sorted(adata.obs["stratum"].unique()):
        held = (adata.obs["stratum"] == x).to_numpy()
        yield _real_case(f"{name}/strata/{x}", adata, held, "held out", new_stratum=True)


def random_cells(name: str) -> Iterator[Case]:
    """Hold out a fifth of the cells of every pair."""
    adata = read_cells(name)
    rng = np.random.default_rng(0)
    held = np.zeros(adata.n_obs, dtype=bool)
    for rows in adata.obs.reset_index().groupby(["treatment", "stratum"]).groups.values():
        rows = np.asarray(rows)
        held[rng.permutation(rows)[: len(rows) // 5]] = True
    yield _real_case(f"{name}/cells/0", adata, held, "seen")


#: Real data with several strata, and those that effects are planted in.
_REAL = ("kang", "kang_donors", "mcfaline", "papalexi", "hagai_lps")
_PLANTED = ("kang", "kang_donors", "papalexi", "norman")

#: Data sets by name: functions of the seed that yield cases.
DATASETS: dict[str, Callable[[int], Iterator[Case]]] = {
    **{f"simulated {r}": (lambda seed, r=r: simulated(r, seed)) for r in REGIMES},
    **{f"planted in {n}": (lambda seed, n=n: planted(n, seed)) for n in _PLANTED},
    **{f"{n} pairs": (lambda seed, n=n: held_out_pairs(n)) for n in _REAL},
    **{f"{n} strata": (lambda seed, n=n: held_out_strata(n)) for n in _REAL},
    **{f"{n} cells": (lambda seed, n=n: random_cells(n)) for n in (*_REAL, "norman")},
}
