"""CellFlow (JAX): fit one case and predict its query cells. Runs in CellFlow's own environment.

The settings are those of its tutorial on donors and cytokines, with strata in the place of donors
and one-hot vectors as embeddings. For a CPU, layers are an eighth as wide, batches a quarter as
large, and steps 1,000 and not 500,000; so gradients are averaged over fewer steps, at a higher
rate.
"""

from __future__ import annotations

import functools
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from cellflow.model import CellFlow
from cellflow.preprocessing import centered_pca, project_pca, reconstruct_pca
from cellflow.utils import match_linear
from exchange import log_normalise, read_request, write_prediction

BATCH = 256  # the tutorial's: 1,024
MODEL = {
    "condition_mode": "deterministic",
    "regularization": 0.0,
    "pooling": "attention_token",
    "layers_before_pool": {
        "treatment": {"layer_type": "mlp", "dims": [128, 128], "dropout_rate": 0.5},
        "stratum": {"layer_type": "mlp", "dims": [32, 32], "dropout_rate": 0.0},
    },
    "layers_after_pool": {"layer_type": "mlp", "dims": [128, 128], "dropout_rate": 0.0},
    "condition_embedding_dim": 256,
    "cond_output_dropout": 0.9,
    "pool_sample_covariates": True,
    "time_freqs": 1024,
    "time_encoder_dims": [128, 128, 128],
    "hidden_dims": [256, 256, 256],
    "decoder_dims": [512, 512, 512],
    "probability_path": {"constant_noise": 0.5},
    "match_fn": functools.partial(match_linear, epsilon=0.5, tau_a=1.0, tau_b=1.0),
    "optimizer": optax.MultiSteps(optax.adam(5e-4), 4),  # the tutorial's: 5e-5, 20
}


def one_hot(names):
    """Embedding of each name."""
    names = sorted(names)
    return dict(zip(names, np.eye(len(names), dtype=np.float32), strict=True))


def fit(train, control, steps, seed):
    """Train on the principal components of all cells."""
    centered_pca(train, n_comps=50, keep_centered_data=False)
    train.obs["is_control"] = train.obs["treatment"] == control
    train.uns["treatments"] = one_hot(set(train.obs["treatment"]))
    train.uns["strata"] = one_hot(set(train.obs["stratum"]))
    model = CellFlow(train, solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="is_control",
        perturbation_covariates={"treatment": ("treatment",)},
        perturbation_covariate_reps={"treatment": "treatments"},
        sample_covariates=["stratum"],
        sample_covariate_reps={"stratum": "strata"},
        split_covariates=["stratum"],
        max_combination_length=1,
    )
    model.prepare_model(**MODEL, seed=seed)
    model.train(num_iterations=steps, batch_size=BATCH, valid_freq=steps + 1)
    return model


def flow_of(model):
    """Make a function that carries components along a flow: from 0, the control, to 1, or back.

    ``CellFlow.predict`` does the same forwards only, and compiles anew for each number of cells.
    """
    state = model.solver.vf_state_inference
    noise = jnp.zeros((1, MODEL["condition_embedding_dim"]))

    def velocity(t, y, condition):
        return state.apply_fn({"params": state.params}, t, y, condition, noise, train=False)[0]

    def carry(y, condition, start, end):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=start,
            t1=end,
            dt0=None,
            y0=y,
            args=condition,
            # CellFlow's 1e-5 takes ten times as long; components are of size 1 and more.
            stepsize_controller=diffrax.PIDController(rtol=1e-2, atol=1e-2),
        ).ys[0]

    carry_all = jax.jit(jax.vmap(carry, in_axes=(0, None, None, None)))

    def flow(x, treatment, stratum, start, end):
        names = {"treatment": [treatment], "stratum": [stratum], "is_control": [False]}
        condition = model.data_manager.get_condition_data(
            pd.DataFrame(names), rep_dict=model.adata.uns
        ).condition_data
        padded = np.pad(x, ((0, -len(x) % BATCH), (0, 0)))
        parts = np.split(padded, len(padded) // BATCH)
        return np.concatenate([carry_all(part, condition, start, end) for part in parts])[: len(x)]

    return flow


def predict(model, query, treatments, control):
    """Components of every query cell under each treatment.

    CellFlow maps controls to treatments. Its maps are flows and can be inverted, so a treated
    cell is first taken back, along the flow of its own treatment, to a control.
    """
    x, flow = query.obsm["X_pca"], flow_of(model)
    values = {t: x.copy() for t in treatments}
    for stratum, own in query.obs[["stratum", "treatment"]].drop_duplicates().itertuples(False):
        rows = ((query.obs["stratum"] == stratum) & (query.obs["treatment"] == own)).to_numpy()
        base = x[rows] if own == control else flow(x[rows], own, stratum, 1.0, 0.0)
        for t in treatments:
            if t == control:
                values[t][rows] = base
            elif t != own:
                values[t][rows] = flow(base, t, stratum, 0.0, 1.0)
    return values


def main(folder):
    """Read the request, train, and write log-normalised expression."""
    train, query, request = read_request(folder)
    log_normalise(train)
    log_normalise(query)
    model = fit(train, request["control"], request["epochs"], request["seed"])
    project_pca(query, ref_adata=train)
    values = []
    for components in predict(model, query, request["treatments"], request["control"]).values():
        query.obsm["X_pca"] = components
        reconstruct_pca(query, ref_adata=train)
        values.append(query.layers["X_recon"])
    write_prediction(folder, values, "log1p")


if __name__ == "__main__":
    main(sys.argv[1])
