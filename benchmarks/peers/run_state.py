"""STATE's transition model: fit one case and predict its query cells. In its own environment.

It is trained from scratch with the settings of its README's ``state tx train``, on log-normalised
expression of all genes in the place of highly variable ones. For a CPU, its small configuration
(``state_sm``) is made a fifth as wide, with half as many cells in a set and sets in a batch; it
takes 2,000 steps and not 40,000, at a higher rate.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from exchange import log_normalise, read_request, write_prediction
from state.__main__ import load_hydra_config
from state._cli import run_tx_train
from state.tx.models.state_transition import StateTransitionPerturbationModel

SET = 64  # the configuration's: 128
SETTINGS = {
    "data.kwargs.embed_key": "X_hvg",
    "data.kwargs.output_space": "gene",
    "data.kwargs.pert_col": "treatment",
    "data.kwargs.cell_type_key": "stratum",
    "data.kwargs.batch_col": "batch",
    "data.kwargs.num_workers": 0,
    "data.kwargs.pin_memory": "false",
    "training.batch_size": 4,  # the README's: 8
    "training.lr": 5e-4,  # the configuration's: 1e-4
    "model": "state_sm",
    "model.kwargs.cell_set_len": SET,
    "model.kwargs.hidden_dim": 128,
    "model.kwargs.transformer_backbone_kwargs.intermediate_size": 512,
    "model.kwargs.transformer_backbone_kwargs.head_dim": 16,
    "use_wandb": "false",
}


def fit(train, control, steps, seed, folder):
    """Train as ``state tx train`` does, and load what it wrote."""
    (folder / "data").mkdir()
    train.obs["batch"] = "all"
    train.obs = train.obs.astype("category")
    train.obsm["X_hvg"] = train.X
    train.write_h5ad(folder / "data" / "train.h5ad")
    splits = folder / "splits.toml"
    splits.write_text(f'[datasets]\ncase = "{folder / "data"}"\n\n[training]\ncase = "train"\n')
    settings = SETTINGS | {
        "data.kwargs.toml_config_path": splits,
        "data.kwargs.control_pert": control,
        "training.max_steps": steps,
        # Nothing is validated; what is written is the last step.
        "training.val_freq": steps,
        "training.ckpt_every_n_steps": steps,
        "training.train_seed": seed,
        "output_dir": folder,
        "name": "run",
    }
    run_tx_train(load_hydra_config("tx", [f"{k}={v}" for k, v in settings.items()]))
    checkpoint = folder / "run" / "checkpoints" / "final.ckpt"
    model = StateTransitionPerturbationModel.load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=False
    )
    codes = torch.load(folder / "run" / "pert_onehot_map.pt", weights_only=False)
    return model.eval(), codes


def bases(train, query, control, seed):
    """Expression of the control that stands for each query cell.

    STATE maps sets of controls to sets of treated cells. A control stands for itself. A treated
    cell is, as in STATE's own inference, replaced by a random control of its stratum.
    """
    rng = np.random.default_rng(seed)
    values = query.X.copy()
    pool = train[(train.obs["treatment"] == control).to_numpy()]
    for stratum in query.obs["stratum"].unique():
        rows = (query.obs["stratum"] == stratum) & (query.obs["treatment"] != control)
        controls = pool.X[(pool.obs["stratum"] == stratum).to_numpy()]
        if rows.any():
            values[rows.to_numpy()] = controls[rng.integers(len(controls), size=rows.sum())]
    return values


@torch.no_grad()
def predict(model, code, base, strata):
    """Expression under a treatment, in sets of cells of one stratum as in training."""
    values = np.empty_like(base)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        for cells in np.array_split(rows, max(len(rows) // SET, 1)):
            batch = {
                "ctrl_cell_emb": torch.as_tensor(base[cells]),
                "pert_emb": code.float().expand(len(cells), -1),
            }
            values[cells] = model.predict_step(batch, 0, padded=False)["preds"].numpy()
    return values


def main(folder):
    """Read the request, train, and write log-normalised expression."""
    train, query, request = read_request(folder)
    log_normalise(train)
    log_normalise(query)
    control, seed = request["control"], request["seed"]
    model, codes = fit(train, control, request["epochs"], seed, Path(folder))
    base = bases(train, query, control, seed)
    strata = query.obs["stratum"].to_numpy(str)
    # The control is a treatment to STATE as well: its effect is nothing, up to the model's error.
    values = [predict(model, codes[t], base, strata) for t in request["treatments"]]
    write_prediction(folder, values, "log1p")


if __name__ == "__main__":
    main(sys.argv[1])
