"""scGen (pertpy's, in JAX): fit one case and predict its query cells. Runs in its own environment.

Settings are those of its tutorial: 100 epochs, batches of 32 cells, early stopping.
"""

from __future__ import annotations

import sys

import numpy as np
from exchange import log_normalise, read_request, write_prediction
from pertpy.tools import Scgen


def seed_everything(seed):
    """Make ``Scgen.predict`` repeatable: it draws the cells of its shift without a seed."""
    make = np.random.default_rng
    np.random.default_rng = lambda *given: make(*(given or (seed,)))
    np.random.seed(seed)  # noqa: NPY002 - for whatever the package draws the old way


def predict(model, query, treatment):
    """Shift every query cell in latent space from its own treatment to another.

    scGen knows pairs of conditions, and shifts cells of one to the other. For a control cell that
    is its documented use; a treated cell goes straight from its treatment to the target.
    """
    values = np.empty(query.shape, dtype=np.float32)
    for own in query.obs["treatment"].unique():
        rows = (query.obs["treatment"] == own).to_numpy()
        cells = query[rows].copy()
        if own == treatment:
            values[rows] = model.get_decoded_expression(cells)
        else:
            shifted, _ = model.predict(ctrl_key=own, stim_key=treatment, adata_to_predict=cells)
            values[rows] = shifted.X
    return values


def main(folder):
    """Read the request, train, and write log-normalised expression."""
    train, query, request = read_request(folder)
    seed_everything(request["seed"])
    log_normalise(train)
    log_normalise(query)
    Scgen.setup_anndata(train, batch_key="treatment", labels_key="stratum")
    model = Scgen(train)
    model.train(
        max_epochs=request["epochs"],
        batch_size=32,
        early_stopping=True,
        early_stopping_patience=25,
        seed=request["seed"],
    )
    values = [predict(model, query, t) for t in request["treatments"]]
    write_prediction(folder, values, "log1p")


if __name__ == "__main__":
    main(sys.argv[1])
