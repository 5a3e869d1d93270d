"""The whole job on real data, with few epochs: it runs, and what is known comes out."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest

from scvci.metrics import pseudobulk, r2_delta
from scvci.model import VCI

pytestmark = pytest.mark.real
INTERFERON_GENES = ["ISG15", "IFI6", "IFIT1", "IFIT2", "IFIT3", "MX1", "CXCL10"]


def _fit(adata, covariates, max_epochs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, categorical_covariate_keys=covariates)
        model = VCI(adata, seed=0)
        model.train(max_epochs=max_epochs, enable_progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def kang(real_data):
    """Everything but the stimulated monocytes, those, and the model of the former."""
    adata = anndata.read_h5ad(real_data / "kang.h5ad")
    obs = adata.obs
    held = ((obs["treatment"] == "IFNB") & (obs["cell_type"] == "CD14+ Monocytes")).to_numpy()
    train, unseen = adata[~held].copy(), adata[held].copy()
    return _fit(train, ["cell_type"], max_epochs=40), train, unseen


def test_interferon_genes_go_up_in_every_control_cell_type(kang):
    model, adata, _ = kang
    model.predict_counterfactual(library_size=1e4, log1p=True)
    change = adata.layers["counterfactual_IFNB"] - adata.layers["counterfactual_control"]
    genes = adata.var_names.get_indexer([g for g in INTERFERON_GENES if g in adata.var_names])
    assert len(genes) >= 5
    for cell_type in adata.obs["cell_type"].unique():
        rows = (adata.obs["cell_type"] == cell_type).to_numpy()
        assert (change[np.ix_(rows, genes)].mean(axis=0) > 0).all(), cell_type
        # They stand out from the other genes.
        assert change[rows][:, genes].mean() > np.quantile(change[rows].mean(axis=0), 0.9)


def test_a_held_out_cell_type_is_predicted_better_than_no_change(kang):
    model, adata, unseen = kang
    rows = (adata.obs["cell_type"] == "CD14+ Monocytes").to_numpy()
    model.predict_counterfactual("IFNB", indices=rows, layer_added="held_out")
    control = pseudobulk(adata.X[rows])
    score = r2_delta(pseudobulk(unseen.X), pseudobulk(adata.layers["held_out"][rows]), control)
    # Predicting no change scores at most 0.
    assert score > 0.3


def test_donors_as_covariate_and_a_cell_without_counts(real_data):
    adata = anndata.read_h5ad(real_data / "kang_donors.h5ad")
    empty = np.asarray(adata.X.sum(axis=1)).ravel() == 0
    assert empty.sum() == 1
    model = _fit(adata, ["cell_type", "donor"], max_epochs=1)
    model.predict_counterfactual("IFNB")
    layer = adata.layers["counterfactual_IFNB"]
    assert np.isfinite(layer).all()
    np.testing.assert_allclose(layer.sum(axis=1), adata.X.sum(axis=1).A1, rtol=1e-3)


@pytest.mark.parametrize("name", ["norman", "mcfaline"])
def test_many_treatments(real_data, name):
    adata = anndata.read_h5ad(real_data / f"{name}.h5ad")
    model = _fit(adata, ["cell_type"], max_epochs=1)
    layers = model.predict_counterfactual(indices=np.arange(50))
    assert len(layers) == adata.obs["treatment"].nunique()
    assert np.isfinite(adata.layers[layers[-1]][:50]).all()
    assert np.isnan(adata.layers[layers[-1]][50:]).all()
