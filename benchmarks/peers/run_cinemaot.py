"""CINEMA-OT (pertpy's, in JAX): match one case's cells. Runs in its own environment.

Settings are those of its tutorial: 20 components, threshold 0.5, smoothness 1e-5, and weights by
cell type; nothing is trained, so there are no epochs.
"""

from __future__ import annotations

import sys

import numpy as np
import scanpy as sc
from exchange import log_normalise, read_request, write_prediction
from pertpy.tools import Cinemaot


def counterfactual(train, own, target, seed):
    """Expression under a target of the cells that received another treatment, and their rows.

    CINEMA-OT's effect of a cell is its expression less that of the reference cells matched to it.
    The reference is the control in its tutorial and the target here, whichever that is.
    """
    treatment, stratum = train.obs["treatment"], train.obs["stratum"]
    # Only strata that both were measured in have cells to match.
    strata = set(stratum[treatment == own]) & set(stratum[treatment == target])
    pair = (treatment.isin([own, target]) & stratum.isin(strata)).to_numpy()
    cells = train[pair].copy()
    effect = Cinemaot().causaleffect(
        cells,
        pert_key="treatment",
        control=target,
        dim=20,
        thres=0.5,
        smoothness=1e-5,
        eps=1e-3,
        solver="Sinkhorn",
        preweight_label="stratum",
        random_state=seed,
    )
    rows = pair & (treatment == own).to_numpy()
    return train.X[rows] - effect.X, rows


def main(folder):
    """Read the request, match every two treatments, and write log-normalised expression."""
    train, query, request = read_request(folder)
    log_normalise(train)
    sc.pp.pca(train, random_state=request["seed"])
    of_query = train.obs_names.get_indexer(query.obs_names)
    values = []
    for target in request["treatments"]:
        # A cell under its own treatment is as it was measured; one that has no match stays NaN.
        value = np.where((train.obs["treatment"] == target).to_numpy()[:, None], train.X, np.nan)
        for own in query.obs["treatment"].unique():
            if own != target:
                found, rows = counterfactual(train, own, target, request["seed"])
                value[rows] = found
        values.append(value[of_query])
    write_prediction(folder, values, "log1p")


if __name__ == "__main__":
    main(sys.argv[1])
