"""How often intervals of single cells hold the true counterfactual counts.

The simulator knows the counts of every cell in every world. Its worlds share their noise; no data
can tell whether worlds do, so the same cells are judged with fresh noise, too. Coverage is counted
over cells that did not receive the treatment, times genes.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd

from scvci import tl
from scvci.datasets import simulate_perturbation
from scvci.model import VCI

if TYPE_CHECKING:
    from anndata import AnnData

#: Departures from 2,000 cells × 100 genes of 3 strata and 4 treatments in equal shares.
REGIMES: dict[str, dict] = {
    "unconfounded": {},
    "confounded": {"confounding": 2.0},
    "deep": {"depth": 30_000.0},
    "shallow": {"depth": 300.0},
    "heterogeneous": {"heterogeneity": 2.0},
    "few cells": {"n_cells": 700},
    "held-out pairs": {"held_out": 3},
}
_COMMON = {"n_cells": 2000, "n_genes": 100, "n_treatments": 4, "confounding": 0.0}
#: Cells with a latent state beyond so many standard deviations are at the edge.
_EDGE = 2.0
#: Genes whose counts are not nearly all zero.
_EXPRESSED = 1.0


def fit(regime: str, seed: int, folder: Path | None = None) -> tuple[VCI, AnnData]:
    """Simulate, and train with a fifth of the cells left out; kept in a folder if there is one."""
    path = None if folder is None else folder / f"{regime.replace(' ', '_')}_{seed}"
    if path is not None and (path / "adata.h5ad").exists():
        adata = anndata.read_h5ad(path / "adata.h5ad")
        return VCI.load(str(path), adata=adata, accelerator="cpu"), adata
    settings = {**_COMMON, **REGIMES[regime]}
    adata = simulate_perturbation(**settings, counterfactual_counts=True, seed=seed)
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=seed)
    model.train(
        train_size=0.7,
        validation_size=0.1,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    if path is not None:
        model.save(str(path), overwrite=True, save_anndata=True)
    return model, adata


def intervals(
    model: VCI, adata: AnnData, treatment: str, level: float, rows: np.ndarray
) -> dict[str, tuple]:
    """Bounds by method."""
    tail = (1 - level) / 2
    layers = {
        "model's quantiles": model.predict_counterfactual(
            treatment, indices=rows, quantiles=(tail, 1 - tail)
        ),
        "conformal": tl.predict_interval(model, treatment, level=level, indices=rows),
    }
    return {name: tuple(adata.layers[end][rows] for end in ends) for name, ends in layers.items()}


def score(
    model: VCI, adata: AnnData, bounds: dict[str, tuple], treatment: str, rows: np.ndarray
) -> list[dict[str, object]]:
    """Coverage and width of each method, by whether the pair and the cell were seen."""
    truth = adata.layers[f"counts_{treatment}"][rows].toarray()
    fresh = _fresh_counts(adata, treatment)[rows]
    stratum = adata.obs["cell_type"].iloc[rows].astype(str)
    held = {x for t, x in adata.uns["simulation"]["held_out"] if t == treatment}
    held_pair = stratum.isin(held).to_numpy()
    trained = np.isin(rows, model.train_indices)
    expressed = np.zeros(truth.shape, dtype=bool)
    for cells in stratum.groupby(stratum).indices.values():
        expressed[cells] = truth[cells].mean(axis=0) > _EXPRESSED
    edge = (np.abs(adata.obsm["latent"][rows]) > _EDGE).any(axis=1)
    records = []
    for method, (low, high) in bounds.items():
        covered = (low <= truth) & (truth <= high)
        fresh_covered = (low <= fresh) & (fresh <= high)
        width = np.log1p(high) - np.log1p(low)
        for pair, cell in ((False, True), (False, False), (True, True), (True, False)):
            chosen = (held_pair == pair) & (trained == cell)
            if chosen.any():
                records.append(
                    {
                        "pair": "held out" if pair else "seen",
                        "cells": "trained on" if cell else "held out",
                        "method": method,
                        "coverage": covered[chosen].mean(),
                        "expressed": covered[chosen][expressed[chosen]].mean(),
                        "expressed, edge": _mean(covered, expressed, chosen & edge),
                        "fresh noise": fresh_covered[chosen].mean(),
                        "width": width[chosen].mean(),
                        "counts": (high - low)[chosen].mean(),
                        "weight": chosen.sum(),
                    }
                )
    return records


def _mean(values: np.ndarray, of: np.ndarray, rows: np.ndarray) -> float:
    inside = values[rows][of[rows]]
    return float(inside.mean()) if inside.size else float("nan")


def _fresh_counts(adata: AnnData, treatment: str) -> np.ndarray:
    """Draw counts of every cell under a treatment that share its latent state, but no noise."""
    rng = np.random.default_rng(adata.uns["simulation"]["seed"])
    theta = adata.uns["simulation"]["inverse_dispersion"]
    expected = adata.layers[f"true_{treatment}"]
    return rng.poisson(expected * rng.gamma(theta, 1 / theta, expected.shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=300, help="cells judged per treatment")
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--models", type=Path, help="folder that keeps fits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    records = []
    for regime in arguments.regimes:
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            model, adata = fit(regime, seed, arguments.models)
            rng = np.random.default_rng(seed)
            for treatment in model.treatments[1:]:
                others = np.flatnonzero((adata.obs["treatment"] != treatment).to_numpy())
                rows = np.sort(rng.permutation(others)[: arguments.cells])
                bounds = intervals(model, adata, treatment, arguments.level, rows)
                found = score(model, adata, bounds, treatment, rows)
                records += [{"regime": regime, "seed": seed, **record} for record in found]
            print(f"{regime}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    table = pd.DataFrame(records)
    by = ["regime", "pair", "cells", "method"]
    values = [
        "coverage",
        "expressed",
        "expressed, edge",
        "fresh noise",
        "width",
        "counts",
    ]
    weighted = table[values].mul(table["weight"], axis=0).assign(weight=table["weight"])
    sums = pd.concat([table[by], weighted], axis=1).groupby(by, sort=False).sum()
    print(f"\nCoverage at level {arguments.level:g} of true counterfactual counts, over cells x")
    print(f"genes, all and expressed (mean above {_EXPRESSED:g}); width on log1p and in counts.")
    print(sums[values].div(sums["weight"], axis=0).round(3).to_string())


if __name__ == "__main__":
    main()
