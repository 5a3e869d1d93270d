"""biolord: fit one case and predict its query cells. Runs in biolord's own environment.

The settings are those of its tutorials on perturbations of cell types; but fewer epochs, and
batches of 128 cells, the default of its ``train``, since the data sets here are smaller.
"""

from __future__ import annotations

import sys

import numpy as np
from biolord import Biolord
from exchange import log_normalise, read_request, write_prediction

MODULE = {
    "decoder_width": 1024,
    "decoder_depth": 4,
    "n_latent_attribute_categorical": 4,
    "gene_likelihood": "normal",
    "reconstruction_penalty": 1e2,
    "unknown_attribute_penalty": 1e1,
    "unknown_attribute_noise_param": 1e-1,
    "use_batch_norm": False,
    "use_layer_norm": False,
}
PLAN = {
    "n_epochs_warmup": 0,
    "latent_lr": 1e-4,
    "latent_wd": 1e-4,
    "decoder_lr": 1e-4,
    "decoder_wd": 1e-4,
    "attribute_nn_lr": 1e-2,
    "attribute_nn_wd": 4e-8,
    "step_size_lr": 45,
    "cosine_scheduler": True,
    "scheduler_final_lr": 1e-5,
}


def fit(train, epochs, seed):
    """Train on all cells, and watch a tenth of them."""
    Biolord.setup_anndata(train, categorical_attributes_keys=["treatment", "stratum"])
    model = Biolord(train, n_latent=32, module_params={**MODULE, "seed": seed})
    # A cell's latent state is a free parameter that only training fits: a cell that is held out
    # for validation would keep a random one, and could not be predicted for.
    model.train_indices = np.arange(train.n_obs)
    watched = np.random.default_rng(seed).permutation(train.n_obs)
    model.valid_indices = np.sort(watched[: max(train.n_obs // 10, 1)])
    model.test_indices = np.array([], dtype=int)
    model.train(
        max_epochs=epochs,
        accelerator="cpu",
        batch_size=128,
        plan_kwargs={**PLAN, "scheduler_max_epochs": epochs},
        early_stopping=True,
        early_stopping_patience=20,
        check_val_every_n_epoch=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return model


def main(folder):
    """Read the request, train, and write log-normalised expression."""
    train, query, request = read_request(folder)
    log_normalise(train)
    model = fit(train, request["epochs"], request["seed"])
    # The query cells' latent states are rows of the training cells.
    source = train[query.obs_names].copy()
    shifted = model.compute_prediction_adata(train, source, target_attributes=["treatment"])
    values = [
        np.asarray(shifted.X[(shifted.obs["treatment"] == t).to_numpy()])
        for t in request["treatments"]
    ]
    write_prediction(folder, values, "log1p")


if __name__ == "__main__":
    main(sys.argv[1])
