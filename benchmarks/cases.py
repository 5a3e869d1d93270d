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

from scvci.datasets import simulate_perturbation
from scvci.metrics import pseudobulk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

#: Real data lie beside the checkout, not in it.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_MIN_CELLS = 20


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
}


def simulated(regime: str, seed: int) -> Iterator[Case]:
    """All pairs of the simulator, two of them held out; the seed draws a new mechanism."""
    adata = simulate_perturbation(held_out=2, seed=seed, **REGIMES[regime])
    truth = {t: adata.layers[f"true_{t}"] for t in adata.uns["simulation"]["treatments"]}
    held_out = {tuple(pair) for pair in adata.uns["simulation"]["held_out"]}
    cells = anndata.AnnData(adata.layers["counts"], obs=adata.obs, var=adata.var)
    cells.obs["stratum"] = cells.obs["cell_type"].astype(str)
    yield Case(
        name=f"simulated {regime}/all/0",
        train=cells,
        query=cells,
        control="control",
        pairs={
            (t, x): "held out" if (t, x) in held_out else "seen"
            for t in truth
            if t != "control"
            for x in cells.obs["stratum"].unique()
        },
        truth=truth,
        base={
            x: pseudobulk(truth["control"][(cells.obs["stratum"] == x).to_numpy()])
            for x in cells.obs["stratum"].unique()
        },
    )


# -- real ---------------------------------------------------------------------------------------


@cache
def _read(name: str) -> AnnData:
    adata = anndata.read_h5ad(DATA / f"{name}.h5ad")
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.obs["stratum"] = adata.obs["cell_type"].astype(str)
    adata.obs["treatment"] = adata.obs["treatment"].astype(str)
    return adata


def _real_case(name: str, adata: AnnData, held: np.ndarray, kind: str) -> Case:
    """Hold out cells, and predict their means from the training controls of the stratum."""
    obs = adata.obs
    train = adata[~held]
    query = train[(train.obs["treatment"] == "control").to_numpy()].copy()
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
    """Each (treatment, stratum) in turn; of several treatments, one per stratum at a time."""
    adata = _read(name)
    strata = sorted(adata.obs["stratum"].unique())
    treatments = sorted(set(adata.obs["treatment"]) - {"control"})
    n = adata.obs.groupby(["treatment", "stratum"], observed=True).size()
    if len(treatments) == 1:
        folds = [[(treatments[0], x)] for x in strata]
    else:
        # A Latin square: every pair once, every stratum and most treatments in each fold.
        folds = [
            [(treatments[(f + i) % len(treatments)], x) for i, x in enumerate(strata)]
            for f in range(len(treatments))
        ]
    for fold in folds:
        fold = [pair for pair in fold if n.get(pair, 0) >= _MIN_CELLS]
        if not fold:
            continue
        held = np.zeros(adata.n_obs, dtype=bool)
        for t, x in fold:
            held |= ((adata.obs["treatment"] == t) & (adata.obs["stratum"] == x)).to_numpy()
        label = "+".join(f"{t}-{x}" for t, x in fold).replace("/", "_")
        yield _real_case(f"{name}/pairs/{label}", adata, held, "held out")


def random_cells(name: str) -> Iterator[Case]:
    """Hold out a fifth of the cells of every pair."""
    adata = _read(name)
    rng = np.random.default_rng(0)
    held = np.zeros(adata.n_obs, dtype=bool)
    for rows in adata.obs.reset_index().groupby(["treatment", "stratum"]).groups.values():
        rows = np.asarray(rows)
        held[rng.permutation(rows)[: len(rows) // 5]] = True
    yield _real_case(f"{name}/cells/0", adata, held, "seen")


#: Data sets by name: functions of the seed that yield cases.
DATASETS: dict[str, Callable[[int], Iterator[Case]]] = {
    **{f"simulated {r}": (lambda seed, r=r: simulated(r, seed)) for r in REGIMES},
    "kang pairs": lambda seed: held_out_pairs("kang"),
    "kang_donors pairs": lambda seed: held_out_pairs("kang_donors"),
    "mcfaline pairs": lambda seed: held_out_pairs("mcfaline"),
    "kang cells": lambda seed: random_cells("kang"),
    "kang_donors cells": lambda seed: random_cells("kang_donors"),
    "mcfaline cells": lambda seed: random_cells("mcfaline"),
    "norman cells": lambda seed: random_cells("norman"),
}
