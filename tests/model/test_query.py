"""A reference for colleagues: new strata, batches and treatments."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import train

from scvci.datasets import simulate_perturbation, simulate_screen
from scvci.metrics import PairLevels, effect_variances, forecast_levels, pseudobulk, r2_delta
from scvci.model import VCI, _calibration

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
    # Calibration alone finds most of the mean of a new treatment, in strata that have cells of it.
    assert tuned < 0.6 * change
    assert tuned < 1.1 * fresh


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
    """RMSE of log1p per 10,000 of mean predictions, every cell at the same library size."""
    layers = query.predict_counterfactual(arms, library_size=1e4)
    means = [query.adata.layers[layer].mean(axis=0) for layer in layers]
    off = np.stack([np.log1p(1e4 * mean / mean.sum()) for mean in means]) - expected
    # Shares of one total: all move together where logs of means do not sum to it.
    return np.sqrt(np.mean((off - np.median(off, axis=1, keepdims=True)) ** 2))


def test_a_new_stratum_is_averaged_with_what_strata_have_in_common(world, monkeypatch):
    """At a share of 1 the mean effect is the mixed model's for a stratum without effects."""
    adata, reference = world
    monkeypatch.setattr(_calibration, "_forecast_share", lambda *_: 1.0)
    query = VCI.load_query_data(_controls(adata), reference)
    arms = ["control", "drug_1@1", "drug_2@1"]
    levels = PairLevels(**query.levels_)
    forecast = forecast_levels(levels, effect_variances(levels))
    codes = [query.treatments.index(arm) for arm in arms]
    forecast = forecast[query.strata.index("B"), codes]
    with_share_1 = _distance(query, arms, forecast)
    monkeypatch.setattr(_calibration, "_forecast_share", lambda *_: 0.0)
    query = VCI.load_query_data(_controls(adata), reference)
    assert with_share_1 < 0.4 * _distance(query, arms, forecast)


def test_a_reference_without_saved_levels_borrows_shifts(world):
    """Models saved before the levels were part of them."""
    adata, reference = world
    levels = reference.levels_
    try:
        del reference.levels_
        query = VCI.load_query_data(_controls(adata), reference)
    finally:
        reference.levels_ = levels
    x, known = query.strata.index("B"), len(reference.strata)
    shift = query.module.calibration.numpy()
    treated = [query.treatments.index(arm) for arm in reference.treatments[1:]]
    borrowed = (shift[:known, treated] - shift[:known, :1]).mean(axis=0)
    base = shift[x, treated] - borrowed
    np.testing.assert_allclose(base, np.broadcast_to(base[0], base.shape), atol=1e-5)


def test_levels_of_a_reference_move_with_the_control():
    """Stratum 0 is known to both, 1 to the reference, 2 is new; treatment 2 is new."""
    own = PairLevels(
        np.array([[3.0, 9.0, 5.0], [0, 0, 0], [7.0, 0, 8.0]])[..., None],
        np.array([[0.3, 0.9, 0.5], [0, 0, 0], [0.7, 0, 0.8]])[..., None],
        np.array([[True, True, True], [False] * 3, [True, False, True]]),
    )
    reference = PairLevels(
        np.array([[1.0, 2.0, 0], [4.0, 6.0, 0], [0, 0, 0]])[..., None],
        np.full((3, 3, 1), 0.1),
        np.array([[True, True, False], [True, True, False], [False] * 3]),
    )
    carried = np.zeros((3, 3), dtype=bool)
    carried[:2, :2] = True
    merged = _calibration.merge_levels(reference, own, carried, control=0)
    np.testing.assert_array_equal(
        merged.observed, [[True] * 3, [True, True, False], [True, False, True]]
    )
    value = np.where(merged.observed, merged.value[..., 0], np.nan)
    # The reference's effect of +1 stays +1, now on the level of the new control.
    np.testing.assert_allclose(value, [[3, 4, 5], [4, 6, np.nan], [7, np.nan, 8]])
    noise = np.where(merged.observed, merged.noise[..., 0], np.nan)
    np.testing.assert_allclose(noise, [[0.3, 0.1, 0.5], [0.1, 0.1, np.nan], [0.7, np.nan, 0.8]])
