"""Numbers that networks cannot compute with: refused at setup, or training stops by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from scvci.model import VCI, ImageVCI
from scvci.train import NotFiniteError
from scvci.train._finite import require_finite_sums, require_finite_weights
from tests.image_data import blobs

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def _model(adata, **settings):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    return VCI(adata, **{"n_latent": 3, "seed": 0, **settings})


def _train(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{"max_epochs": 2, **QUIET, **arguments})


@pytest.mark.parametrize("value", [1e-40, 1e38, np.nan, np.inf])
def test_columns_out_of_range_are_refused_at_setup(adata, value):
    adata.obs["column"] = 1.0
    adata.obs.loc[adata.obs_names[7], "column"] = value
    where = rf"obs\['column'\].*size_factor_key.*1 cells.*{adata.obs_names[7]}"
    with pytest.raises(ValueError, match=where):
        VCI.setup_anndata(adata, layer="counts", size_factor_key="column")
    if value > 1:
        with pytest.raises(
            ValueError, match=r"obs\['column'\].*continuous_covariate_keys.*1e\+15"
        ):
            VCI.setup_anndata(adata, layer="counts", continuous_covariate_keys=["column"])
    assert "_scvi_uuid" not in adata.uns


def test_new_cells_out_of_range_are_refused_by_name(adata):
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    VCI.setup_anndata(adata, layer="counts", continuous_covariate_keys=["age"])
    model = VCI(adata, n_latent=3, seed=0)
    _train(model)
    adata.obs.loc[adata.obs_names[5], "age"] = 1e38
    with pytest.raises(ValueError, match=rf"obs\['age'\].*{adata.obs_names[5]}.*1e\+38"):
        model.predict_counterfactual("IFNb", adata.copy())
    # No number of its own, but weights that it is multiplied with.
    adata.obs["age"] = 0.5
    with torch.no_grad():
        next(model.module.encoder.parameters())[0] = torch.nan
    for predict in (
        lambda: model.predict_counterfactual("IFNb"),
        lambda: model.predict_counterfactual("IFNb", output="means"),
        model.get_normalized_expression,
    ):
        with pytest.raises(ValueError, match=f"for cell {adata.obs_names[0]!r} is not finite"):
            predict()
    assert "counterfactual_IFNb" not in adata.layers


@pytest.mark.parametrize("kind", [VCI, ImageVCI])
def test_weights_that_diverge_stop_training(adata, kind):
    if kind is VCI:
        model = _model(adata)
    else:
        images = blobs(200)
        ImageVCI.setup_anndata(images, treatment_keys=["brightness"])
        model = ImageVCI(images, seed=0, architecture={"width": 4, "depth": 1})
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(
        NotFiniteError, match=r"stopped in epoch \d+: .*the weights diverged. Lower"
    ):
        _train(model, max_epochs=20, plan_kwargs={"lr": 1e10, "clip": None})
    assert not model.is_trained_
    assert model.history is None
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_the_cells_are_named_where_they_are_at_fault(adata, monkeypatch):
    """A trained model stays as it was."""
    model = _model(adata)
    _train(model)
    model.predict_counterfactual("IFNb")
    before = adata.layers["counterfactual_IFNb"].copy()
    read = model.cells().tensors

    def tensors(cells, rows):
        found = read(rows)
        found["X"][np.isin(rows, [11, 200])] = torch.inf
        return found

    with monkeypatch.context() as patched:
        patched.setattr("scvci.data._cells.Cells.tensors", tensors)
        name = str(adata.obs_names[11])
        with pytest.raises(NotFiniteError, match=rf"{name!r}.*; row 11\): look at their counts"):
            _train(model, train_size=1.0, batch_size=300)
    model.predict_counterfactual("IFNb")
    np.testing.assert_array_equal(adata.layers["counterfactual_IFNb"], before)
    assert model.is_trained_


def test_the_term_and_the_weight_at_fault_are_named():
    good, bad = torch.tensor(1.0), torch.tensor(torch.nan)
    require_finite_sums({"train": {"train_loss": good}, "validation": {}}, 3)
    sums = {"train": {"train_loss": bad, "individual_train": good, "covariate_train": bad}}
    with pytest.raises(NotFiniteError, match="in epoch 3: covariate_train is nan in the train c"):
        require_finite_sums(sums, 3)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net.requires_grad_(False)
    require_finite_weights(net, 0)
    for value in (torch.nan, torch.inf, -torch.inf):
        torch.nn.init.zeros_(net[1].bias)[1] = value
        with pytest.raises(NotFiniteError, match=r"weights \(1.bias\) are not finite"):
            require_finite_weights(net, 0)
