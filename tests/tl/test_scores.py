"""Predicted effects on single cells, as one number each."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from scvci import tl
from scvci.model import VCI


def _model(data, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
        model = VCI(data, n_latent=3, seed=0, **arguments)
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture
def model(adata):
    return _model(adata)


def _log1p_differences(model, adata, treatment, reference="control"):
    size = float(model.module.reference_size)
    names = model.predict_counterfactual(
        [treatment, reference], library_size=size, log1p=True, keep="state"
    )
    return (adata.layers[names[0]] - adata.layers[names[1]]).astype(float)


def test_scores_are_projections_on_the_mean_effect(model, adata):
    assert tl.effect_scores(model, "IFNb", batch_size=70) == "effect_IFNb"
    scores = adata.obs["effect_IFNb"].to_numpy()
    d = _log1p_differences(model, adata, "IFNb")
    mean = d.mean(axis=0)
    np.testing.assert_allclose(scores, d @ mean / (mean @ mean), rtol=1e-3, atol=1e-4)
    assert np.mean(scores) == pytest.approx(1, abs=1e-4)
    assert adata.uns["scvci"]["effect_IFNb"]["scale"] == "multiples of the mean effect"
    assert adata.uns["scvci"]["effect_IFNb"]["reference"] == "control"


def test_scores_of_genes_and_weights(model, adata):
    genes = [adata.var_names[3], adata.var_names[11]]
    d = _log1p_differences(model, adata, "IFNb", "TNFa")[:, [3, 11]]
    key = tl.effect_scores(model, "IFNb", genes=genes, reference="TNFa", key_added="mine")
    np.testing.assert_allclose(adata.obs[key], d.mean(axis=1), rtol=1e-3, atol=1e-5)
    assert adata.uns["scvci"]["mine"]["scale"] == "log1p expression"
    weights = pd.Series([3.0, -1.0], genes)
    tl.effect_scores(model, "IFNb", genes=weights, reference="TNFa", key_added="mine")
    np.testing.assert_allclose(adata.obs["mine"], d @ [0.75, -0.25], rtol=1e-3, atol=1e-5)


def test_scores_of_other_cells(model, adata):
    tl.effect_scores(model, "IFNb", genes=["Gene0001"])
    other = adata[::-1, ::-1].copy()
    tl.effect_scores(model, "IFNb", genes=["Gene0001"], adata=other, indices=np.arange(50))
    assert other.obs["effect_IFNb"].isna().sum() == other.n_obs - 50
    np.testing.assert_allclose(
        other.obs["effect_IFNb"][:50], adata.obs["effect_IFNb"][::-1][:50], rtol=1e-4, atol=1e-6
    )


def test_scores_can_be_saved(model, adata, tmp_path):
    tl.effect_scores(model, "IFNb")
    adata.write_h5ad(tmp_path / "scored.h5ad")


def test_scores_with_a_normal_likelihood(adata):
    data = adata.copy()
    data.layers["counts"] = data.layers["counts"].log1p()
    model = _model(data, likelihood="normal")
    tl.effect_scores(model, "IFNb")
    assert np.mean(data.obs["effect_IFNb"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"treatment": "IFNg"}, "'IFNg' is unknown"),
        ({"treatment": "control"}, "'control' is compared with itself"),
        ({"treatment": "IFNb", "genes": ["Gene01"]}, "Gene 'Gene01' is unknown"),
        ({"treatment": "IFNb", "genes": []}, "no gene a weight"),
        ({"treatment": "IFNb", "genes": {"Gene0001": np.nan}}, "no gene a weight"),
    ],
)
def test_errors_of_scores(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        tl.effect_scores(model, **arguments)


def test_an_untrained_model_is_refused(adata):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    with pytest.raises(RuntimeError, match="not trained"):
        tl.effect_scores(VCI(adata), "IFNb")
