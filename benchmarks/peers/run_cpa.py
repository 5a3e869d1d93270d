"""CPA: fit one case and predict its query cells. Runs in CPA's own environment.

The settings are those of CPA's tutorial on held-out (IFN-beta, cell type) pairs, with batches of
128 cells, the default of its ``train``, since the data sets here are smaller than the tutorial's.
"""

from __future__ import annotations

import sys
from types import ModuleType

import anndata
import numpy as np
from exchange import read_request, write_prediction

try:
    import tkinter  # noqa: F401
except ImportError:
    # CPA imports a name from tkinter that it never uses; many Pythons come without it.
    sys.modules["tkinter"] = ModuleType("tkinter")
    sys.modules["tkinter"].N = "n"

import cpa

MODEL = {
    "n_latent": 64,
    "recon_loss": "nb",
    "doser_type": "linear",
    "n_hidden_encoder": 128,
    "n_layers_encoder": 2,
    "n_hidden_decoder": 512,
    "n_layers_decoder": 2,
    "use_batch_norm_encoder": True,
    "use_layer_norm_encoder": False,
    "use_batch_norm_decoder": False,
    "use_layer_norm_decoder": True,
    "dropout_rate_encoder": 0.0,
    "dropout_rate_decoder": 0.1,
    "variational": False,
}
PLAN = {
    "n_epochs_pretrain_ae": 30,
    "n_epochs_adv_warmup": 50,
    "n_epochs_mixup_warmup": 0,
    "mixup_alpha": 0.0,
    "adv_steps": None,
    "n_hidden_adv": 64,
    "n_layers_adv": 3,
    "dropout_rate_adv": 0.3,
    "reg_adv": 20.0,
    "pen_adv": 5.0,
    "lr": 3e-4,
    "wd": 4e-7,
    "adv_lr": 3e-4,
    "adv_wd": 4e-7,
    "adv_loss": "cce",
    "doser_lr": 3e-4,
    "doser_wd": 4e-7,
    "do_clip_grad": True,
    "gradient_clip_value": 1.0,
    "step_size_lr": 10,
}


def setup(adata, control):
    """Register cells, their treatments and strata; ``"A+B"`` is a combination to CPA as well."""
    cpa.CPA.setup_anndata(
        adata,
        perturbation_key="treatment",
        control_group=control,
        categorical_covariate_keys=["stratum"],
        is_count_data=True,
        max_comb_len=max(t.count("+") + 1 for t in adata.obs["treatment"]),
    )


def with_targets(train, query, treatments, seed):
    """Training cells, then the query cells once for each treatment to predict.

    CPA's ``predict`` takes no treatment: it decodes a cell's own counts under the treatment of
    its row. So every query cell is repeated under every target, its counts kept.
    """
    split = np.full(train.n_obs, "train", dtype=object)
    rng = np.random.default_rng(seed)
    split[rng.permutation(train.n_obs)[: max(train.n_obs // 10, 1)]] = "valid"
    train.obs["split"] = split
    copies = []
    for i, treatment in enumerate(treatments):
        cells = query.copy()
        cells.obs["treatment"] = treatment
        cells.obs["split"] = "ood"
        cells.obs_names = [f"{i}:{name}" for name in query.obs_names]
        copies.append(cells)
    return anndata.concat([train, *copies])


def to_fit(everything):
    """Training cells, and one query cell for each (treatment, stratum) to predict.

    All pairs must be registered at the start. But CPA weighs its adversary's classes by how many
    cells are registered, split or not, so the copies of the query must not be among them.
    """
    query = everything.obs["split"] == "ood"
    first = ~everything.obs.loc[query, ["treatment", "stratum"]].duplicated()
    keep = ~query
    keep[first.index[first]] = True
    return everything[keep.to_numpy()].copy()


def main(folder):
    """Read the request, train, and write expected counts at each cell's own library size."""
    train, query, request = read_request(folder)
    everything = with_targets(train, query, request["treatments"], request["seed"])
    setup(everything, request["control"])  # writes the codes that predict() needs
    cells = to_fit(everything)
    setup(cells, request["control"])
    model = cpa.CPA(cells, split_key="split", valid_split="valid", seed=request["seed"], **MODEL)
    model.train(
        max_epochs=request["epochs"],
        use_gpu=False,
        batch_size=128,
        plan_kwargs=PLAN,
        early_stopping_patience=5,
        check_val_every_n_epoch=5,
        save_path=False,
        enable_progress_bar=False,
    )
    # The basal state is meant to be free of treatment, so a treated query cell is encoded from
    # its own counts like a control: what it keeps of its treatment is CPA's error, not ours.
    values = []
    for i, _ in enumerate(request["treatments"]):
        start = train.n_obs + i * query.n_obs
        target = everything[start : start + query.n_obs].copy()
        model.predict(target, batch_size=1024)
        values.append(target.obsm["CPA_pred"])
    write_prediction(folder, values, "counts")


if __name__ == "__main__":
    main(sys.argv[1])
