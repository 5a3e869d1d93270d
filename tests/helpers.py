"""What several files of tests do alike."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

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
