"""What several files of tests do alike."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from scvci.data import Cells, Condition, Treatments
from scvci.data._conditions import TreatmentKeys
from scvci.data._validation import get_matrix
from scvci.model import VCI

if TYPE_CHECKING:
    from anndata import AnnData


def train(
    adata: AnnData,
    architecture: dict[str, Any] | None = None,
    *,
    max_epochs: int,
    n_latent: int = 3,
    n_hidden: int = 16,
    **setup: Any,
) -> VCI:
    """A small model of counts, with the cell type as covariate unless ``setup`` says otherwise."""
    setup = {"categorical_covariate_keys": ["cell_type"], **setup}
    VCI.setup_anndata(adata, layer="counts", **setup)
    architecture = {"n_hidden": n_hidden, **(architecture or {})}
    model = VCI(adata, n_latent=n_latent, architecture=architecture, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=max_epochs, enable_progress_bar=False, accelerator="cpu")
    return model


def without_layers(data: AnnData) -> AnnData:
    """A copy without counterfactual layers and their records."""
    copy = data.copy()
    for name in [n for n in copy.layers if n and n.startswith("counterfactual")]:
        del copy.layers[name]
    copy.uns.pop("scvci", None)
    return copy


def table_of_cells(
    adata: AnnData,
    treatment: np.ndarray,
    stratum: np.ndarray,
    n_treatments: int,
    n_strata: int,
    rows: np.ndarray | None = None,
    **values: Any,
) -> Cells:
    """A table of cells under given codes, all in question unless ``rows`` says otherwise.

    ``values`` are further attributes of the table, such as ``layer`` or ``size_factor``.
    """
    members = [f"drug{i:05d}" for i in range(1, n_treatments)]
    return Cells(
        adata=adata,
        rows=np.arange(adata.n_obs) if rows is None else rows,
        treatments=Treatments.from_conditions(
            [Condition((member,), (1.0,)) for member in members],
            TreatmentKeys("treatment", ("control",)),
        ),
        genes=adata.var_names.to_numpy(),
        matrix=get_matrix(adata, values.get("layer")),
        columns=None,
        treatment=treatment,
        stratum=stratum,
        covariates=stratum[:, None],
        strata=[f"stratum{i}" for i in range(n_strata)],
        **values,
    )


class Wreck(pl.Callback):
    """Spoil the weights at the start of an epoch, so that the best are those of before."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add noise to all weights."""
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                for parameter in pl_module.module.parameters():
                    parameter.add_(torch.randn_like(parameter))
