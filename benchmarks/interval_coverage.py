"""How often intervals of single cells hold the true counterfactual counts.

The simulator knows the counts of every cell in every world. Its worlds share their noise; no data
can tell whether worlds do, so the same cells are judged with fresh noise, too. Coverage is counted
over cells that did not receive the treatment, times genes. Donors multiply the expression of each
gene by a factor of their own; those that are judged were neither in training nor in calibration.
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
from scipy import sparse

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
    "new donors": {"n_cells": 4000, "donors": 40},
    "new donors, confounded": {"n_cells": 4000, "donors": 40, "confounding": 2.0},
}
_COMMON = {"n_cells": 2000, "n_genes": 100, "n_treatments": 4, "confounding": 0.0}
#: Coverage is counted by a gene's mean count in the stratum, and by a cell's largest latent
#: coordinate in standard deviations.
_MEANS = {"mean < .1": (0, 0.1), "< 1": (0.1, 1), "< 10": (1, 10), "> 10": (10, np.inf)}
_STATES = {"state < 1": (0, 1), "1 to 2": (1, 2), "> 2": (2, np.inf)}
#: Genes whose counts are not nearly all zero, of which coverage by state is counted.
_EXPRESSED = 1.0
#: Standard deviation of the logarithm of a donor's factors.
_DONOR_SD = 0.4


def fit(regime: str, seed: int, folder: Path | None = None) -> tuple[VCI, AnnData]:
    """Simulate, and train with a fifth of the cells left out; kept in a folder if there is one."""
    path = None if folder is None else folder / f"{regime.replace(' ', '_')}_{seed}"
    if path is not None and (path / "cells.h5ad").exists():
        adata = anndata.read_h5ad(path / "cells.h5ad")
        return VCI.load(str(path), adata=_known(adata), accelerator="cpu"), adata
    settings = {**_COMMON, **REGIMES[regime]}
    n_donors = settings.pop("donors", 0)
    adata = simulate_perturbation(**settings, counterfactual_counts=True, seed=seed)
    if n_donors:
        _add_donors(adata, n_donors, seed)
    model = _train(_known(adata), seed)
    if path is not None:
        model.save(str(path), overwrite=True)
        adata.write_h5ad(path / "cells.h5ad")
    return model, adata


def _known(adata: AnnData) -> AnnData:
    """Cells for training and calibration."""
    return adata[adata.obs["part"] != "judged"].copy() if "part" in adata.obs else adata


def _train(adata: AnnData, seed: int) -> VCI:
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=seed)
    parts: dict = {"train_size": 0.7, "validation_size": 0.1}
    if "part" in adata.obs:
        # Whole donors calibrate; of the others a tenth of the cells stop training.
        rows = np.random.default_rng(seed).permutation(adata.n_obs)
        of_test = (adata.obs["part"] == "calibration").to_numpy()[rows]
        test, rest = np.sort(rows[of_test]), rows[~of_test]
        n = len(rest) // 10
        external = [np.sort(rest[n:]), np.sort(rest[:n]), test]
        parts = {"datasplitter_kwargs": {"external_indexing": external}}
    model.train(enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", **parts)
    return model


def _add_donors(adata: AnnData, n_donors: int, seed: int) -> None:
    """Thin the counts of all worlds by the factors of the cells' donors."""
    rng = np.random.default_rng([seed, n_donors])
    donor = rng.integers(n_donors, size=adata.n_obs)
    factor = np.exp(rng.normal(0, _DONOR_SD, (n_donors, adata.n_vars)))
    kept = (factor / factor.max(axis=0))[donor]
    for name in [name for name in adata.layers if name]:
        values = adata.layers[name]
        if name.startswith("true_"):
            adata.layers[name] = values * kept
        else:
            # Worlds share the factor, not the thinning.
            adata.layers[name] = sparse.csr_matrix(
                rng.binomial(values.toarray().astype(int), kept).astype(np.float32)
            )
    # A treated or control cell was measured in its own world.
    own = adata.layers["counts"].toarray()
    for treatment in adata.obs["treatment"].unique():
        rows = (adata.obs["treatment"] == treatment).to_numpy()
        world = adata.layers[f"counts_{treatment}"].toarray()
        own[rows] = world[rows]
    adata.layers["counts"] = sparse.csr_matrix(own)
    adata.X = adata.layers["counts"].copy()
    adata.obs["donor"] = pd.Categorical([f"d{d}" for d in donor])
    shares = np.array([0.4, 0.8]) * n_donors
    part = np.array(["training", "calibration", "judged"])[np.searchsorted(shares, donor, "right")]
    adata.obs["part"] = pd.Categorical(part)


def intervals(
    model: VCI, adata: AnnData, treatment: str, level: float, rows: np.ndarray
) -> dict[str, tuple]:
    """Bounds by method."""
    tail = (1 - level) / 2
    request = {"adata": adata, "indices": rows}
    layers = {
        "model's quantiles": model.predict_counterfactual(
            treatment, **request, quantiles=(tail, 1 - tail)
        ),
        "conformal": tl.predict_interval(
            model,
            treatment,
            level=level,
            cluster_key="donor" if "donor" in adata.obs else None,
            **request,
        ),
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
    trained_on = model.adata.obs_names[model.train_indices]
    trained = adata.obs_names[rows].isin(trained_on)
    mean = np.zeros(truth.shape)
    for cells in stratum.groupby(stratum).indices.values():
        mean[cells] = truth[cells].mean(axis=0)
    distance = np.abs(adata.obsm["latent"][rows]).max(axis=1)[:, None]
    subsets = {
        **{k: (low <= mean) & (mean < high) for k, (low, high) in _MEANS.items()},
        **{
            k: (low <= distance) & (distance < high) & (mean > _EXPRESSED)
            for k, (low, high) in _STATES.items()
        },
    }
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
                        **{k: _mean(covered, of, chosen) for k, of in subsets.items()},
                        "fresh noise": fresh_covered[chosen].mean(),
                        "width": width[chosen].mean(),
                        "counts": (high - low)[chosen].mean(),
                        "weight": chosen.sum(),
                    }
                )
    return records


def _judged(adata: AnnData) -> np.ndarray:
    if "part" not in adata.obs:
        return np.ones(adata.n_obs, dtype=bool)
    return (adata.obs["part"] == "judged").to_numpy()


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
                others = np.flatnonzero(_judged(adata) & (adata.obs["treatment"] != treatment))
                rows = np.sort(rng.permutation(others)[: arguments.cells])
                bounds = intervals(model, adata, treatment, arguments.level, rows)
                found = score(model, adata, bounds, treatment, rows)
                records += [{"regime": regime, "seed": seed, **record} for record in found]
            print(f"{regime}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    table = pd.DataFrame(records)
    by = ["regime", "pair", "cells", "method"]
    values = ["coverage", *_MEANS, *_STATES, "fresh noise", "width", "counts"]
    keys = [table[name] for name in by]
    weight = table[values].notna().mul(table["weight"], axis=0).groupby(keys, sort=False).sum()
    sums = table[values].mul(table["weight"], axis=0).groupby(keys, sort=False).sum()
    print(f"\nCoverage at level {arguments.level:g} of true counterfactual counts, over cells x")
    print("genes, by mean count, and by the cell's latent state of genes with a mean above 1;")
    print("width on log1p and in counts.")
    print((sums / weight).round(3).to_string())


if __name__ == "__main__":
    main()
