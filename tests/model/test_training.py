"""Training: repeatable, monitored, restored, and loud when the latent collapses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scvi
import torch
from helpers import Wreck

import scvci
from scvci.data._splitter import CounterfactualSplitter
from scvci.model import VCI

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def _model(adata, **arguments):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    return VCI(adata, **{"seed": 0, "n_latent": 3, **arguments})


def _train(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{"max_epochs": 3, **QUIET, **arguments})


def test_same_seed_same_numbers_and_caller_generator_untouched(adata):
    predictions, histories = [], []
    for seed in (3, 3, 4):
        cells = adata.copy()
        model = _model(cells, seed=seed)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        _train(model)
        assert torch.equal(torch.get_rng_state(), before)
        model.predict_counterfactual("IFNb")
        predictions.append(cells.layers["counterfactual_IFNb"])
        histories.append(model.history["validation_loss"].to_numpy(float))
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(histories[0], histories[1])
    assert not np.allclose(predictions[0], predictions[2])


def test_seed_is_recorded_where_none_is_set(adata):
    scvi.settings.seed = None
    first = _model(adata.copy(), seed=None)
    second = _model(adata.copy(), seed=None)
    assert first.seed_ != second.seed_
    again = _model(adata.copy(), seed=first.seed_)
    for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
    scvi.settings.seed = 7
    assert _model(adata.copy(), seed=None).seed_ == 7


@pytest.mark.parametrize("term", sorted(scvci.module.COVARIATE_TERMS))
def test_every_covariate_term_trains_and_every_term_is_in_the_history(adata, term):
    model = _model(adata, covariate_term=term)
    critic = [p.clone() for p in model.module.covariate_term.parameters()]
    _train(model, max_epochs=4, batch_size=64)
    for name in ("individual", "covariate", "divergence"):
        for part in ("train", "validation"):
            values = model.history[f"{name}_{part}"].to_numpy(float)
            assert len(values) == 4
            assert np.isfinite(values).all()
    assert (
        model.history["individual_train"].iloc[-1, 0]
        < model.history["individual_train"].iloc[0, 0]
    )
    moved = [
        not torch.equal(a, b)
        for a, b in zip(critic, model.module.covariate_term.parameters(), strict=True)
    ]
    assert all(moved)
    assert ("critic_train" in model.history) == model.module.covariate_term.has_critic
    model.predict_counterfactual("IFNb")


def test_loss_is_the_weighted_sum_of_the_terms(adata):
    weights = {"individual": 2.0, "covariate": 0.5, "divergence": 3.0}
    model = _model(adata, weights=weights)
    _train(model)
    history = model.history
    expected = sum(w * history[f"{k}_validation"].to_numpy(float) for k, w in weights.items())
    # The covariate term is averaged over supported cells, batch by batch; here all are supported.
    np.testing.assert_allclose(history["validation_loss"].to_numpy(float), expected, rtol=1e-3)


def test_validation_draws_are_the_same_in_every_epoch(adata):
    model = _model(adata)
    _train(model, max_epochs=3, plan_kwargs={"lr": 0.0})
    values = model.history["covariate_validation"].to_numpy(float).ravel()
    np.testing.assert_array_equal(values, values[0])


def test_best_weights_are_restored(adata):
    model = _model(adata)
    _train(model, max_epochs=8, callbacks=[Wreck(5)])
    losses = model.history["validation_loss"].to_numpy(float).ravel()
    assert losses.argmin() < 5
    assert losses[-1] > losses.min() + 1
    parts = (model.train_indices, model.validation_indices, model.test_indices)
    cells = model.cells().take(model.train_indices)
    sampler = model._start_training(cells)
    splitter = CounterfactualSplitter(sampler, parts, batch_size=128, seed=model.seed_)
    (again,) = model.trainer.validate(
        model.trainer.lightning_module, splitter.val_dataloader(), verbose=False
    )
    assert again["validation_loss"] == pytest.approx(losses.min(), rel=1e-5)


def test_early_stopping_is_on_by_default_and_can_be_turned_off(adata):
    model = _model(adata)
    _train(model, max_epochs=200, early_stopping_patience=2, plan_kwargs={"lr": 0.02})
    assert len(model.history["train_loss"]) < 200
    other = _model(adata.copy())
    _train(other, max_epochs=6, early_stopping=False)
    assert len(other.history["train_loss"]) == 6


def test_without_validation_cells_there_is_a_warning(adata):
    model = _model(adata)
    with pytest.warns(UserWarning, match="no validation cells"):
        model.train(max_epochs=1, train_size=1.0, **QUIET)


def test_cells_left_out_enter_nothing(adata):
    """Poisoned test cells change neither weights nor calibration."""
    rows = np.arange(adata.n_obs)
    parts = [rows[rows % 3 > 0][20:], rows[rows % 3 > 0][:20], rows[rows % 3 == 0]]
    results = []
    for poison in (False, True):
        cells = adata.copy()
        if poison:
            counts = cells.layers["counts"].toarray()
            counts[parts[2]] = 1000 * counts[parts[2]][:, ::-1]
            cells.layers["counts"] = counts
        model = _model(cells)
        _train(model, datasplitter_kwargs={"external_indexing": [p.copy() for p in parts]})
        results.append({**model.module.state_dict(), "shift": model.calibration.shift})
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


def test_collapse_explains_itself():
    adata = scvci.datasets.simulate_perturbation(
        n_cells=300, n_genes=30, n_treatments=2, n_latent=2, seed=1
    )
    model = _model(adata, weights={"divergence": 1e5})
    with pytest.warns(UserWarning, match="latent state has collapsed.*group means"):
        model.train(max_epochs=15, **QUIET)


def test_training_twice_continues(adata):
    model = _model(adata)
    _train(model, max_epochs=2)
    scale = model.module.reference_size.clone()
    _train(model, max_epochs=2)
    assert model.module.reference_size == scale
    assert len(model.history["train_loss"]) == 4


@pytest.mark.parametrize("likelihood", ["zinb", "poisson"])
def test_other_count_likelihoods(adata, likelihood):
    model = _model(adata, likelihood=likelihood)
    _train(model, max_epochs=4)
    model.predict_counterfactual("IFNb")
    model.predict_counterfactual("IFNb", n_samples=1, layer_added="draw")
    assert np.isfinite(adata.layers["counterfactual_IFNb"]).all()
    assert adata.layers["draw"].min() >= 0


def test_normal_on_log_data_with_continuous_covariates_and_size_factors(adata):
    counts = adata.layers["counts"].toarray()
    adata.obs["age"] = np.random.default_rng(0).normal(50, 10, adata.n_obs)
    adata.obs["sf"] = counts.sum(1) / counts.sum(1).mean()
    adata.layers["log"] = np.log1p(counts / adata.obs["sf"].to_numpy()[:, None])
    VCI.setup_anndata(adata, layer="log", continuous_covariate_keys=["age"])
    model = VCI(adata, likelihood="normal", seed=0)
    _train(model, max_epochs=4)
    model.predict_counterfactual("IFNb")
    with pytest.raises(ValueError, match="normal"):
        model.predict_counterfactual("IFNb", log1p=True)
    VCI.setup_anndata(adata, layer="counts", size_factor_key="sf")
    model = VCI(adata, seed=0)
    _train(model, max_epochs=4)
    model.predict_counterfactual("control", layer_added="sf_control")
    ratio = adata.layers["sf_control"].sum() / counts.sum()
    assert 0.5 < ratio < 2


def test_repr_says_what_the_model_is(adata):
    model = _model(adata)
    text = repr(model)
    assert "IFNb" in text
    assert "control: 'control'" in text
    assert "cell_type; 3 strata" in text
    assert "no; call train()" in text
    _train(model, max_epochs=1)
    assert "yes, seed 0" in repr(model)


def test_dispersion_starts_from_the_data():
    """A few steps do not move it far."""
    found = []
    for inverse_dispersion in (0.5, 50.0):
        data = scvci.datasets.simulate_perturbation(
            n_cells=400, n_genes=30, n_treatments=3, inverse_dispersion=inverse_dispersion, seed=0
        )
        model = _model(data)
        _train(model, max_epochs=1)
        found.append(model.module.likelihood.log_theta.detach().exp().median().item())
    assert found[0] < 0.6
    assert found[1] > 1.5
