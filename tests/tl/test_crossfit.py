"""Cross-fitting: what fold models may see, and what they leave alone."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvci.model import VCI
from scvci.tl._crossfit import cross_fit

QUIET = {"accelerator": "cpu", "max_epochs": 2, "show_progress": False}


def _model(adata, keys=("cell_type",), max_epochs=2, **setup):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=list(keys), **setup)
        model = VCI(adata, n_latent=3, seed=0)
        model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def _fit(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cross_fit(model, **{**QUIET, "n_folds": 3, **arguments})


@pytest.fixture
def model(adata):
    return _model(adata)


def test_folds_part_the_cells_of_every_pair(model):
    fit = _fit(model)
    cells = model.cells()
    treatment, stratum = cells.treatment, cells.stratum
    for pair in np.unique(stratum * 10 + treatment):
        sizes = np.bincount(fit.fold[stratum * 10 + treatment == pair], minlength=3)
        assert np.ptp(sizes) <= 1
    assert np.ptp(np.bincount(fit.fold)) <= 1


def test_predictions_have_the_shape_and_scale_of_the_model(model, adata):
    fit = _fit(model)
    expected = fit.predict("IFNb")
    assert expected.shape == adata.shape
    assert expected.dtype == np.float32
    library = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    np.testing.assert_allclose(expected.sum(axis=1), library, rtol=1e-4)
    np.testing.assert_allclose(fit.predict("IFNb", library_size=1e3).sum(axis=1), 1e3, rtol=1e-4)
    np.testing.assert_allclose(fit.predict("IFNb", log1p=True), np.log1p(expected), rtol=1e-5)
    # Little training, but the same as that of the model: mean predictions agree.
    model.predict_counterfactual("IFNb")
    own = adata.layers["counterfactual_IFNb"].mean(axis=0)
    assert np.corrcoef(own, expected.mean(axis=0))[0, 1] > 0.98


def test_rows_are_predicted_by_the_model_of_their_fold(model, adata):
    fit = _fit(model)
    values = fit.predict("TNFa")
    for k, fold_model in enumerate(fit.models):
        assert fold_model.adata is None
        part = adata[fit.fold == k].copy()
        part.X = part.layers["counts"]
        fold_model.predict_counterfactual("TNFa", adata=part, keep="state")
        np.testing.assert_allclose(
            values[fit.fold == k], part.layers["counterfactual_TNFa"], rtol=1e-6
        )


@pytest.mark.parametrize("clustered", [False, True])
def test_cells_of_the_fold_are_not_seen(adata, clustered):
    """Garbage in a fold's cells changes nothing in the fold's model."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(8, size=adata.n_obs) if clustered else None
    first = _fit(_model(adata.copy()), clusters=clusters)
    if clustered:
        assert all(len(np.unique(first.fold[clusters == c])) == 1 for c in range(8))
        assert len(np.unique(first.fold)) == 3
    counts = adata.layers["counts"].toarray()
    held = first.fold == 1
    counts[held] = rng.poisson(50, size=counts[held].shape)
    spoiled = adata.copy()
    spoiled.layers["counts"] = sparse.csr_matrix(counts)
    second = _fit(_model(spoiled), clusters=clusters)
    weights = [[m.module.state_dict() for m in fit.models] for fit in (first, second)]
    assert all(torch.equal(weights[0][1][k], weights[1][1][k]) for k in weights[0][1])
    # The others do see them.
    assert not all(torch.equal(weights[0][0][k], weights[1][0][k]) for k in weights[0][0])


def test_model_adata_and_generators_are_left_alone(model, adata):
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    before = adata.copy()
    state = torch.get_rng_state()
    n_managers = len(VCI._setup_adata_manager_store)
    n_instances = len(VCI._per_instance_manager_store)
    fit = _fit(model)
    fit.predict("IFNb")
    assert torch.equal(torch.get_rng_state(), state)
    assert len(VCI._setup_adata_manager_store) == n_managers
    kept = list(VCI._per_instance_manager_store.values())[n_instances:]
    assert not any(kept)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, weights[name])
    assert list(adata.layers) == list(before.layers)
    assert list(adata.uns) == list(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert model.n_trainings_ == 1


def test_fold_models_are_kept_until_training(model):
    first = _fit(model)
    assert all(a is b for a, b in zip(first.models, _fit(model).models, strict=True))
    assert _fit(model, n_folds=2).models[0] is not first.models[0]
    again = _fit(model)
    assert again.models[0] is not first.models[0]
    np.testing.assert_array_equal(again.predict("IFNb"), first.predict("IFNb"))
    assert _fit(model, max_epochs=1).models[0] is not again.models[0]
    kept = _fit(model).models
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    assert _fit(model).models[0] is not kept[0]


def test_other_counts_are_encoded(model, adata):
    fit = _fit(model)
    counts = np.floor(adata.layers["counts"].toarray() / 2)
    half = fit.with_counts(counts)
    np.testing.assert_allclose(half.predict("IFNb").sum(axis=1), counts.sum(axis=1), rtol=1e-4)
    # Not the size alone: the latent states differ.
    at_size = [f.predict("IFNb", library_size=1e3) for f in (half, fit)]
    assert not np.allclose(*at_size, rtol=1e-3)
    with pytest.raises(ValueError, match=r"counts of shape \(3, 30\)"):
        fit.with_counts(np.zeros((3, 30)))


def test_size_factors_follow_a_part_of_the_counts(adata):
    counts = adata.layers["counts"].copy()
    adata.layers["counts"] = counts * 2
    fit = _fit(_model(adata, size_factor_key="library_size"))
    whole, half = fit.predict("IFNb"), fit.with_counts(counts, 0.5)
    np.testing.assert_allclose(half.predict("IFNb"), 0.5 * whole, rtol=1e-3)


def test_tiny_pairs_strata_and_treatments(adata):
    """A lone cell is in no training set of its fold; names and codes stay the model's."""
    data = adata.copy()
    data.obs["cell_type"] = data.obs["cell_type"].cat.add_categories("lone")
    data.obs["treatment"] = data.obs["treatment"].cat.add_categories("once")
    data.obs.loc[data.obs_names[0], "cell_type"] = "lone"
    data.obs.loc[data.obs_names[1], "treatment"] = "once"
    model = _model(data)
    with pytest.warns(UserWarning, match="All cells of once are in one fold"):
        fit = cross_fit(model, n_folds=3, **QUIET)
    for treatment in model.treatments:
        assert np.isfinite(fit.predict(treatment)).all()
    assert all(m.treatments == model.treatments for m in fit.models)
    assert all(m.strata == model.strata for m in fit.models)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_folds": 1}, "n_folds=1 must lie between 2 and the number of cells, 300"),
        ({"n_folds": 3, "clusters": np.zeros(300, int)}, "number of clusters, 1"),
        ({"clusters": np.zeros(5, int)}, "5 codes of clusters for 300 cells"),
        ({"datasplitter_kwargs": {}}, "datasplitter_kwargs"),
    ],
)
def test_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        _fit(model, **arguments)


def test_needs_training_and_cells(adata, tmp_path):
    model = _model(adata)
    model.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="without cells"):
        cross_fit(loaded)
    with pytest.raises(RuntimeError, match="not trained"):
        cross_fit(VCI(adata, n_latent=3))
