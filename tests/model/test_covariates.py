"""Technical batches, and strata from continuous covariates."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import train

from scvci.data import _constants as keys
from scvci.data._sampler import CounterfactualSampler
from scvci.data._statistics import compute_statistics
from scvci.datasets import simulate_screen
from scvci.model import VCI

_train = partial(train, max_epochs=5, n_hidden=32, categorical_covariate_keys=None)


def _unbalanced(seed=0):
    """Two batches that differ much; most treated cells are in the second."""
    adata = simulate_screen(
        n_cells=1600, n_genes=40, n_strata=1, n_members=1, n_batches=2, batch_effect=1.0, seed=seed
    )
    rng = np.random.default_rng(seed)
    treated = (adata.obs["treatment"] != "control").to_numpy()
    first = (adata.obs["batch"].astype(str) == "0").to_numpy()
    kept = rng.random(adata.n_obs) < np.where(treated == first, 0.2, 1.0)
    return adata[kept].copy()


def _log_ratio(layer, control):
    ratio = np.log(np.asarray(layer) + 1e-4) - np.log(np.asarray(control) + 1e-4)
    return (ratio - ratio.mean(axis=1, keepdims=True)).mean(axis=0)


def test_a_batch_is_not_taken_for_an_effect():
    errors = {"told apart": [], "ignored": []}
    for seed in range(2):
        adata = _unbalanced(seed)
        truth = _log_ratio(adata.layers["true_drug_1"], adata.layers["true_control"])
        for name, setup in (("told apart", {"batch_key": "batch"}), ("ignored", {})):
            model = _train(adata.copy(), max_epochs=30, **setup)
            cells = model.adata
            model.predict_counterfactual(["drug_1", "control"])
            found = _log_ratio(
                cells.layers["counterfactual_drug_1"], cells.layers["counterfactual_control"]
            )
            errors[name].append(np.sqrt(np.mean((found - truth) ** 2)))
    assert np.mean(errors["told apart"]) < 0.5 * np.mean(errors["ignored"])


@pytest.fixture(scope="module")
def batched():
    adata = simulate_screen(
        n_cells=400, n_genes=20, n_members=2, n_batches=3, batch_effect=1.0, seed=0
    )
    return _train(adata, batch_key="batch", categorical_covariate_keys=["cell_type"])


def test_a_counterfactual_stays_in_its_batch_or_moves(batched):
    assert batched.batches == ["0", "1", "2"]
    assert len(batched.strata) == 2  # batches are no strata
    cells = batched.adata[:60].copy()
    (own,) = batched.predict_counterfactual("drug_1", cells)
    own = cells.layers[own]
    for batch in batched.batches:
        (layer,) = batched.predict_counterfactual("drug_1", cells, batch=batch)
        same = (cells.obs["batch"].astype(str) == batch).to_numpy()
        np.testing.assert_allclose(cells.layers[layer][same], own[same], rtol=1e-5)
        assert not np.allclose(cells.layers[layer][~same], own[~same], rtol=1e-3)
        assert cells.uns["scvci"][layer]["batch"] == batch
    with pytest.raises(ValueError, match="Batch 'plate 9' is unknown"):
        batched.predict_counterfactual("drug_1", cells, batch="plate 9")


def test_targets_come_in_batches_of_the_pair(batched):
    cells = batched.cells()
    sampler = CounterfactualSampler(cells, compute_statistics(cells, uses_size=True))
    rows = np.arange(300)
    batch = sampler(rows, np.random.default_rng(0))
    target, drawn = batch[keys.TARGET_KEY][:, 0], batch[keys.TARGET_BATCH_KEY][:, 0]
    for x, t, b in zip(cells.stratum[rows], target, drawn, strict=True):
        pair = (cells.stratum == x) & (cells.treatment == t)
        assert b in cells.batch[pair]


def test_effects_do_not_depend_on_the_batch(batched):
    decoder = batched.module.decoder
    z, x = torch.randn(5, 3), torch.zeros(5, 5)
    x[:, 0] = 1
    treated, control = torch.tensor([[1.0, 0.0]] * 5), torch.zeros(5, 2)
    effects = []
    for b in range(3):
        with torch.inference_mode():
            own = x.clone()
            own[:, 2 + b] = 1
            effects.append(decoder(z, treated, own) - decoder(z, control, own))
    torch.testing.assert_close(effects[0], effects[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(effects[0], effects[2], atol=1e-5, rtol=1e-4)


def test_batches_are_saved_and_refused_where_unknown(batched, tmp_path):
    batched.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    cells, again = batched.adata[:20].copy(), batched.adata[:20].copy()
    (layer,) = batched.predict_counterfactual("drug_2", cells)
    loaded.predict_counterfactual("drug_2", again)
    np.testing.assert_array_equal(cells.layers[layer], again.layers[layer])
    again.obs["batch"] = "new"
    with pytest.raises(ValueError, match="'batch' 'new' is unknown"):
        loaded.predict_counterfactual("drug_2", again)


def test_continuous_covariates_make_strata_by_quantile(tmp_path):
    adata = simulate_screen(n_cells=600, n_genes=15, n_members=1, n_strata=1, seed=0)
    adata.obs["age"] = np.random.default_rng(0).gamma(2.0, 10.0, adata.n_obs)
    model = _train(adata, continuous_covariate_keys=["age"], continuous_strata=3)
    assert model.strata == ["age q1", "age q2", "age q3"]
    code = np.digitize(adata.obs["age"], np.quantile(adata.obs["age"], [1 / 3, 2 / 3]))
    np.testing.assert_array_equal(model.cells().stratum, code)
    model.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    new = adata[:10].copy()
    new.obs["age"] = 1e3  # older than any cell of the training data: the last bin
    (layer,) = loaded.predict_counterfactual("drug_1", new)
    assert np.isfinite(new.layers[layer]).all()
    with pytest.raises(ValueError, match="continuous_strata=0"):
        VCI.setup_anndata(adata, continuous_covariate_keys=["age"], continuous_strata=0)
