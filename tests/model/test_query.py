"""A reference for colleagues: new strata, batches and treatments."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from scvci.datasets import simulate_perturbation, simulate_screen
from scvci.metrics import pseudobulk, r2_delta
from scvci.model import VCI


def _train(adata, max_epochs=5, architecture=None, **setup):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"], **setup)
    architecture = {"n_hidden": 32, **(architecture or {})}
    model = VCI(adata, n_latent=4, architecture=architecture, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=max_epochs, enable_progress_bar=False, accelerator="cpu")
    return model


def _is(adata, column, *values):
    return adata.obs[column].astype(str).isin(values).to_numpy()


@pytest.fixture(scope="module")
def world():
    """All cells, and a reference that lacks one cell type, one drug and one batch."""
    adata = simulate_screen(
        n_cells=3000,
        n_genes=60,
        n_strata=4,
        n_members=3,
        n_batches=3,
        doses=(0.1, 1.0),
        stratum_interaction=0.1,
        seed=0,
    )
    reference = adata[
        ~_is(adata, "cell_type", "B")
        & ~_is(adata, "treatment", "drug_3")
        & _is(adata, "batch", "0", "1")
    ].copy()
    return adata, _train(
        reference, max_epochs=60, dose_key="dose", separator="+", batch_key="batch"
    )


def test_known_cells_get_the_same_numbers(world):
    _, reference = world
    cells = reference.adata[:50].copy()
    query = VCI.load_query_data(cells.copy(), reference)
    assert query.treatments == reference.treatments
    (layer,) = reference.predict_counterfactual("drug_1@1", cells)
    query.predict_counterfactual("drug_1@1")
    np.testing.assert_allclose(query.adata.layers[layer], cells.layers[layer], rtol=1e-5)
    with pytest.raises(ValueError, match="nothing new to train"):
        query.train(max_epochs=1)


def test_what_is_new_leaves_what_was_known_as_it_was(world):
    adata, reference = world
    query = VCI.load_query_data(adata.copy(), reference)
    assert query.treatments[: len(reference.treatments)] == reference.treatments
    assert set(query.treatments) - set(reference.treatments) == {"drug_3@0.1", "drug_3@1"}
    assert query.strata[: len(reference.strata)] == reference.strata
    assert query.batches == ["0", "1", "2"]
    cells, again = reference.adata[:50].copy(), reference.adata[:50].copy()
    (layer,) = reference.predict_counterfactual("drug_2@1", cells)
    query.predict_counterfactual("drug_2@1", again)
    np.testing.assert_allclose(again.layers[layer], cells.layers[layer], rtol=1e-4)


def test_a_colleague_with_controls_only_is_served(world):
    adata, reference = world
    rows = _is(adata, "cell_type", "B") & _is(adata, "treatment", "control")
    controls = adata[rows].copy()
    query = VCI.load_query_data(controls, reference)
    layers = query.predict_counterfactual(["control", "drug_1@1", "drug_2@1"])
    base = pseudobulk(controls.layers["true_control"])
    predicted = {layer: pseudobulk(controls.layers[layer]) for layer in layers}
    assert np.abs(predicted["counterfactual_control"] - base).mean() < 0.15
    for arm in ("drug_1@1", "drug_2@1"):
        true = pseudobulk(controls.layers[f"true_{arm}"])
        assert r2_delta(true, predicted[f"counterfactual_{arm}"], base) > 0.5


def test_fine_tuning_moves_only_what_is_new(world):
    adata, reference = world
    query = VCI.load_query_data(adata.copy(), reference)
    before = {k: v.clone() for k, v in query.module.state_dict().items()}
    fresh, _ = _error(query, adata, "drug_3@1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        query.train(max_epochs=15, enable_progress_bar=False, accelerator="cpu")
    n_old = len(reference.strata), len(reference.treatments)
    after = query.module.state_dict()
    known = after["calibration"][: n_old[0], : n_old[1]]
    torch.testing.assert_close(known, before["calibration"][: n_old[0], : n_old[1]])
    weights = after["decoder.effects.weight"]
    position = 1 + query._arms.members.index("drug_3")
    assert not torch.equal(weights[:, position], before["decoder.effects.weight"][:, position])
    torch.testing.assert_close(
        weights[:, :position], before["decoder.effects.weight"][:, :position], rtol=0, atol=0
    )
    for name in ("encoder.mean.weight", "decoder.baseline_out.weight", "likelihood.log_theta"):
        assert torch.equal(after[name], before[name])
    tuned, change = _error(query, adata, "drug_3@1")
    assert tuned < 0.6 * change
    assert tuned <= fresh


def _error(model, adata, arm):
    """RMSE of the mean prediction in a known stratum, and that of no change."""
    rows = np.flatnonzero(_is(adata, "cell_type", "CD4 T"))
    cells = adata[rows].copy()
    (layer,) = model.predict_counterfactual(arm, cells)
    true, base = (pseudobulk(cells.layers[f"true_{t}"]) for t in (arm, "control"))
    predicted = pseudobulk(cells.layers[layer])
    return tuple(float(np.sqrt(np.mean((v - true) ** 2))) for v in (predicted, base))


def test_a_query_is_saved_and_not_trained_blindly(world, tmp_path):
    adata, reference = world
    reference.save(tmp_path / "reference")
    cells = adata[_is(adata, "cell_type", "B")][:80].copy()
    query = VCI.load_query_data(cells, str(tmp_path / "reference"))
    (layer,) = query.predict_counterfactual("drug_1@1")
    query.save(tmp_path / "query")
    again = cells.copy()
    loaded = VCI.load(tmp_path / "query", again, accelerator="cpu")
    loaded.predict_counterfactual("drug_1@1")
    np.testing.assert_allclose(again.layers[layer], cells.layers[layer], rtol=1e-5)
    with pytest.raises(ValueError, match="load_query_data with the reference again"):
        loaded.train(max_epochs=1)


def test_genes_are_aligned_by_name_and_missing_ones_listed(world):
    adata, reference = world
    cells = reference.adata[:30].copy()
    shuffled = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    query = VCI.load_query_data(shuffled, reference)
    assert list(query.adata.var_names) == list(reference.adata.var_names)
    with pytest.raises(ValueError, match="lacks 1 of the model's 60 genes: Gene0000"):
        VCI.load_query_data(cells[:, 1:].copy(), reference)
    strong = cells.copy()
    strong.obs["dose"] = strong.obs["dose"].astype(str).replace("1", "5")
    with pytest.raises(ValueError, match="beyond 1, the largest dose of 'drug_"):
        VCI.load_query_data(strong, reference)


def test_what_cannot_be_extended_says_so():
    adata = simulate_perturbation(n_cells=200, n_genes=10, n_strata=2, n_treatments=2, seed=0)
    VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    untrained = VCI(adata, preset="paper", likelihood="nb", seed=0)
    with pytest.raises(RuntimeError, match="not trained"):
        VCI.load_query_data(adata.copy(), untrained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untrained.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    other = adata.copy()
    other.obs["cell_type"] = "new"
    with pytest.raises(ValueError, match="cannot be extended"):
        VCI.load_query_data(other, untrained)
