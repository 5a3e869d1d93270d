"""Whether the test of the latent state is right on fitted models, and what it says of real data.

    uv run python benchmarks/disentanglement.py                       # simulations
    uv run python benchmarks/disentanglement.py --real kang papalexi  # data beside the project

Simulated treatments have effects and do not touch the latent state, so p-values should be uniform;
a leak is planted by moving one latent of treated cells. What is tested are draws from each cell's
posterior, as `disentanglement_test` does, and for comparison the means.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import anndata
import numpy as np
import pandas as pd
from cases import DATA, STRATA

from scvci.datasets import simulate_perturbation
from scvci.effects import conditional_independence_test
from scvci.model import VCI

_REAL = ("kang", "kang_donors", "papalexi", "hagai_lps")
#: Shifts of treated cells in the latent that varies most, in its standard deviations over cells.
_SHIFTS = [0.1, 0.2, 0.3, 0.5]


def fit(adata: anndata.AnnData, stratum: str, seed: int, layer: str | None = None) -> VCI:
    """Train with defaults, a fifth of the cells left out."""
    VCI.setup_anndata(adata, layer=layer, categorical_covariate_keys=[stratum])
    model = VCI(adata, seed=seed)
    model.train(
        train_size=0.7,
        validation_size=0.1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return model


def joint_tests(
    model: VCI, rows: np.ndarray, shift: float = 0.0, draws: bool = True
) -> pd.DataFrame:
    """Joint tests of some cells, by test."""
    obs, setup = model.adata.obs.iloc[rows], model.setup_args
    [stratum] = setup["categorical_covariate_keys"]
    mean, variance = model.get_latent_representation(indices=rows, return_dist=True)
    treated = (obs["treatment"] != "control").to_numpy()
    first = int(np.argmax(mean.var(axis=0)))
    mean[treated, first] += shift * np.sqrt(mean[:, first].var() + variance[:, first].mean())
    table = conditional_independence_test(
        mean,
        obs["treatment"].to_numpy(),
        obs[stratum].to_numpy(),
        std=np.sqrt(variance) if draws else None,
        n_permutations=199,
    )
    return table.drop_duplicates("test").set_index("test")


def row_of(model: VCI, rows: np.ndarray, **arguments: object) -> dict[str, float]:
    """AUC and p-values of draws, and of means."""
    drawn, means = (joint_tests(model, rows, draws=draws, **arguments) for draws in (True, False))
    return {
        "AUC": drawn.loc["auc", "statistic"],
        "p, AUC": drawn.loc["auc", "p_value"],
        "p, energy": drawn.loc["energy", "p_value"],
        "AUC of spread": drawn.loc["spread", "statistic"],
        "AUC of means": means.loc["auc", "statistic"],
        "p, AUC of means": means.loc["auc", "p_value"],
    }


def simulations(n_experiments: int, n_cells: int) -> pd.DataFrame:
    """One row for each experiment, part of the cells and shift."""
    rows = []
    for seed in range(n_experiments):
        adata = simulate_perturbation(
            n_cells=n_cells, n_genes=60, n_treatments=2, confounding=1.0, seed=seed
        )
        model = fit(adata, "cell_type", seed, "counts")
        parts = {"trained on": model.train_indices, "held out": model.test_indices}
        for part, cells in parts.items():
            rows.append({"cells": part, "shift": 0.0, **row_of(model, cells)})
        for shift in _SHIFTS:
            found = row_of(model, parts["trained on"], shift=shift)
            rows.append({"cells": "trained on", "shift": shift, **found})
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC, and how often p-values are below 5 % and 50 %."""
    by = table.groupby(["cells", "shift"])
    summary = by[["AUC", "AUC of means"]].mean()
    for name in ("p, AUC", "p, energy", "p, AUC of means"):
        summary[f"{name} < .05"] = by[name].apply(lambda p: (p < 0.05).mean())
        summary[f"{name} < .5"] = by[name].apply(lambda p: (p < 0.5).mean())
    return summary.assign(experiments=by.size())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=40)
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--real", nargs="*", choices=_REAL, help="data sets; none: all")
    parser.add_argument("--seeds", type=int, default=2, help="of real data")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.real is None:
        table = simulations(arguments.experiments, arguments.cells)
        print(summarise(table).round(3).to_string())
        return
    for name in arguments.real or _REAL:
        for seed in range(arguments.seeds):
            model = fit(anndata.read_h5ad(DATA / f"{name}.h5ad"), STRATA[name], seed)
            for part in ("all", "held out"):
                cells = np.arange(model.adata.n_obs) if part == "all" else model.test_indices
                row = {"data": name, "seed": seed, "cells": part, **row_of(model, cells)}
                print(pd.DataFrame([row]).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
