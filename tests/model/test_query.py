"""A reference for colleagues: new strata, batches and treatments."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import train

from scvci.datasets import simulate_perturbation, simulate_screen
from scvci.metrics import pseudobulk, r2_delta
from scvci.model import VCI, _shift_solver
from scvci.pooling import effect_variances, forecast, pool_levels

_train = partial(train, max_epochs=5, n_latent=4, n_hidden=32)


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
    shift = _shifts(query, reference)
    fresh, _ = _error(query, adata, "drug_3@1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Training history cannot be updated")
        query.train(max_epochs=15, enable_progress_bar=False, accelerator="cpu")
    assert len(query.history["train_loss"]) == 15
    after = query.module.state_dict()
    np.testing.assert_allclose(_shifts(query, reference), shift, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shift, _shifts(reference, reference))
    weights = after["decoder.effects.weight"]
    position = 1 + query.arms.members.index("drug_3")
    assert not torch.equal(weights[:, position], before["decoder.effects.weight"][:, position])
    torch.testing.assert_close(
        weights[:, :position], before["decoder.effects.weight"][:, :position], rtol=0, atol=0
    )
    for name in ("encoder.mean.weight", "decoder.baseline_out.weight", "likelihood.log_theta"):
        assert torch.equal(after[name], before[name])
    tuned, change = _error(query, adata, "drug_3@1")
    # Calibration alone finds most of the mean of a new treatment, in strata that have cells of it.
    assert tuned < 0.6 * change
    assert tuned < 1.1 * fresh


def _shifts(model, reference):
    """Shifts of the strata and treatments of the reference."""
    shifts = [
        model.calibration.shift_of(model.module, t) for t in range(len(reference.treatments))
    ]
    return np.stack(shifts)[:, : len(reference.strata)]


def _error(model, adata, arm):
    """RMSE of the mean prediction in a known stratum, and that of no change."""
    rows = np.flatnonzero(_is(adata, "cell_type", "CD4 T"))
    cells = adata[rows].copy()
    (layer,) = model.predict_counterfactual(arm, cells)
    true, base = (pseudobulk(cells.layers[f"true_{t}"]) for t in (arm, "control"))
    predicted = pseudobulk(cells.layers[layer])
    return tuple(float(np.sqrt(np.mean((v - true) ** 2))) for v in (predicted, base))


def test_a_saved_query_trains_on_as_the_unsaved_one(world, tmp_path):
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
    before = {k: v.clone() for k, v in query.module.state_dict().items()}
    for model in (query, loaded):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    after, other = query.module.state_dict(), loaded.module.state_dict()
    assert not torch.equal(after["decoder.effects.weight"], before["decoder.effects.weight"])
    for name, value in after.items():
        torch.testing.assert_close(other[name], value, msg=name)
    name = "encoder.mean.weight"
    assert torch.equal(other[name], before[name])


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


def _controls(adata):
    rows = _is(adata, "cell_type", "B") & _is(adata, "treatment", "control")
    return adata[rows].copy()


def _distance(query, arms, expected):
    """RMSE of log1p per 10,000 of summed predictions."""
    layers = query.predict_counterfactual(arms)
    means = [query.adata.layers[layer].mean(axis=0) for layer in layers]
    off = np.stack([np.log1p(1e4 * mean / mean.sum()) for mean in means]) - expected
    # Shares of one total: all move together where logs of means do not sum to it.
    return np.sqrt(np.mean((off - np.median(off, axis=1, keepdims=True)) ** 2))


def test_a_new_stratum_is_averaged_with_what_strata_have_in_common(world, monkeypatch):
    """At a share of 1 the mean effect is the mixed model's for a stratum without effects."""
    adata, reference = world
    monkeypatch.setattr(_shift_solver, "_forecast_weight", lambda share, _: np.ones_like(share))
    query = VCI.load_query_data(_controls(adata), reference)
    arms = ["control", "drug_1@1", "drug_2@1"]
    means = pool_levels(query.calibration.means, 0)
    codes = np.array([query.treatments.index(arm) for arm in arms])
    stratum = np.full_like(codes, query.strata.index("B"))
    expected = forecast(means, effect_variances(means)).at(stratum, codes)
    with_share_1 = _distance(query, arms, expected)
    monkeypatch.setattr(_shift_solver, "_forecast_weight", lambda share, _: np.zeros_like(share))
    query = VCI.load_query_data(_controls(adata), reference)
    assert with_share_1 < 0.4 * _distance(query, arms, expected)


def test_a_reference_without_means_lends_its_shifts(world):
    """As one whose cells had no control: there is no forecast, but there are shifts."""
    adata, reference = world
    calibration = reference.calibration
    means = calibration.means.take(np.zeros(len(calibration.means.pairs), dtype=bool))
    fitted = dataclasses.replace(calibration.forecast, means=means)
    try:
        reference.calibration = dataclasses.replace(calibration, forecast=fitted, controls=means)
        query = VCI.load_query_data(_controls(adata), reference)
    finally:
        reference.calibration = calibration
    x, known = query.strata.index("B"), len(reference.strata)
    shift = np.stack(
        [query.calibration.shift_of(query.module, t) for t in range(len(query.treatments))], axis=1
    )
    treated = [query.treatments.index(arm) for arm in reference.treatments[1:]]
    borrowed = (shift[:known, treated] - shift[:known, :1]).mean(axis=0)
    base = shift[x, treated] - borrowed
    np.testing.assert_allclose(base, np.broadcast_to(base[0], base.shape), atol=1e-5)


def test_pairs_that_the_reference_did_not_measure_keep_its_prediction():
    """Cells of such a pair in the new data change nothing that the reference says of it."""
    adata = simulate_screen(n_cells=600, n_genes=30, n_strata=3, n_members=2, seed=0)
    hole = _is(adata, "cell_type", "B") & _is(adata, "treatment", "drug_2")
    reference = _train(adata[~hole].copy())
    query = VCI.load_query_data(adata.copy(), reference)
    t, x = query.treatments.index("drug_2"), query.strata.index("B")
    assert reference.calibration.pairs.rows(x, t) < 0
    assert query.calibration.pairs.rows(x, t) >= 0
    expected = reference.calibration.shift_of(reference.module, t)
    found = query.calibration.shift_of(query.module, t)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-5)


def test_a_source_registry_is_applied_where_the_call_says_expression_lies(world):
    _, reference = world
    cells = reference.adata[:20].copy()
    del cells.uns["_scvi_uuid"]
    cells.X = cells.layers.pop(reference.setup_args["layer"]).copy()
    args = {**reference.setup_args, "layer": None}
    with pytest.raises(KeyError, match="layer"):
        VCI.setup_anndata(
            cells, source_registry=reference.registry, **{**args, "layer": "no such layer"}
        )
    VCI.setup_anndata(cells, source_registry=reference.registry, **args)
    registry = VCI.registry_of(cells)
    assert registry["setup_args"]["layer"] is None
    query = VCI(cells, **reference.init_params_["non_kwargs"])
    assert query.treatments == reference.treatments
    np.testing.assert_array_equal(
        query.cells().expression(np.arange(20)), reference.cells().expression(np.arange(20))
    )
