"""Marginal calibration of pairs without cells."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import scvci
from scvci.data._statistics import pseudobulk_moments
from scvci.model import VCI, _calibration_fit, _shift_solver, _stratum_cells
from scvci.pooling import Pairs, effect_variances, forecast, pool_levels


@pytest.fixture(scope="module")
def fitted():
    """An experiment with a held-out pair, and a model with little training."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=600, n_genes=40, n_treatments=3, held_out=[("IFNb", "B")], seed=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
        model = VCI(adata, n_latent=3, seed=0)
        model.train(max_epochs=6, enable_progress_bar=False, accelerator="cpu")
    return model, adata


def _mean(adata, layer, stratum):
    """Pseudobulk of the stratum's cells, log1p per 10,000."""
    mean = adata.layers[layer][adata.obs["cell_type"] == stratum].mean(axis=0)
    return np.log1p(1e4 * mean / mean.sum())


def _means_under_treatment(model, adata, share, monkeypatch):
    """Mean under the treatment by stratum, calibrated with that share."""
    monkeypatch.setattr(_shift_solver, "_forecast_weight", lambda s, _: np.full_like(s, share))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model._after_training(model.cells(), np.random.default_rng(0))
        model.predict_counterfactual(keep="state")
    strata = adata.obs["cell_type"].cat.categories
    return {x: _mean(adata, "counterfactual_IFNb", x) for x in strata}


def _forecast(model, strata, treatment):
    moments = pseudobulk_moments(model.cells(), float(model.module.reference_size))
    means = pool_levels(_calibration_fit.measured_means(model.module, moments), 0)
    codes = np.array([model.strata.index(x) for x in strata])
    treatments = np.full_like(codes, model.treatments.index(treatment))
    return forecast(means, effect_variances(means)).at(codes, treatments)


def test_a_pair_without_cells_is_half_way_to_the_forecast(fitted, monkeypatch):
    model, adata = fitted
    shares = (0.0, 0.5, 1.0)
    means = {s: _means_under_treatment(model, adata, s, monkeypatch)["B"] for s in shares}
    (expected,) = _forecast(model, ["B"], "IFNb")
    gap = np.abs(means[0.0] - means[1.0]).max()
    assert gap > 0.05
    # The whole moves a little, as the forecast has another total; nor is the fixed point run to
    # its very end.
    off = means[1.0] - expected
    np.testing.assert_allclose(off - np.median(off), 0, atol=0.1 * gap)
    half = (means[0.0] + means[1.0]) / 2
    np.testing.assert_allclose(means[0.5], half, atol=0.1 * gap)


def test_forecasts_weigh_a_third_without_cells_and_a_half_with_them(fitted, monkeypatch):
    """And more by the share of noise in the measured effects."""
    model, _ = fitted
    asked, weight_of = {}, _shift_solver._forecast_weight

    def record(share, least):
        np.testing.assert_allclose(weight_of(np.zeros_like(share), least), least)
        np.testing.assert_allclose(weight_of(np.ones_like(share), least), 1)
        asked[least] = asked.get(least, 0) + len(share)
        return weight_of(share, least)

    monkeypatch.setattr(_shift_solver, "_forecast_weight", record)
    model._after_training(model.cells(), np.random.default_rng(0))
    n_pairs = len(model.strata) * len(model.treatments)
    assert asked == {1 / 2: n_pairs - 1}
    calibration, ifn = model.calibration, model.treatments.index("IFNb")
    for t in range(len(model.treatments)):
        calibration.shift_of(model.module, t)
    assert asked == {1 / 2: n_pairs - 1, 1 / 3: 1}
    calibration.shift_of(model.module, ifn)
    assert asked[1 / 3] == 1
    noise = calibration.means.noise
    loud = dataclasses.replace(calibration.means, noise=np.full_like(noise, 1e6))
    loud = dataclasses.replace(calibration.forecast, means=loud)
    np.testing.assert_allclose(loud.noise_share, 1, atol=1e-3)


def test_without_the_forecast_the_mean_change_is_borrowed(fitted, monkeypatch):
    """shift(x, t) = shift(x, control) + mean over other strata of the shifts that close gaps."""
    model, adata = fitted
    _means_under_treatment(model, adata, 0.0, monkeypatch)
    calibration = model.calibration
    t, x = model.treatments.index("IFNb"), model.strata.index("B")
    found, control = (calibration.shift_of(model.module, code) for code in (t, 0))
    others = [i for i in range(3) if i != x]
    # Without the forecast, shifts of measured pairs are those that close the gaps.
    borrowed = control[x] + (found[others] - control[others]).mean(axis=0)
    np.testing.assert_allclose(found[x], borrowed, atol=1e-4)


def test_a_measured_pair_with_all_the_share_has_the_forecast_mean(fitted, monkeypatch):
    model, adata = fitted
    _means_under_treatment(model, adata, 1.0, monkeypatch)
    strata = ("CD4 T", "CD14 Mono")
    for stratum, expected in zip(strata, _forecast(model, strata, "IFNb"), strict=True):
        off = _mean(adata, "counterfactual_IFNb", stratum) - expected
        # Shares of one total: all move together where logs of means do not sum to it.
        assert np.abs(off - np.median(off)).max() < 0.02


def test_a_pair_without_cells_is_predicted_after_loading_without_cells(fitted, tmp_path):
    model, _ = fitted
    model._after_training(model.cells(), np.random.default_rng(0))
    model.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    for t in range(len(model.treatments)):
        expected = model.calibration.shift_of(model.module, t)
        found = loaded.calibration.shift_of(loaded.module, t)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cells_of_an_unknown_stratum_are_not_shifted(fitted):
    model, _ = fitted
    stratum, treatment = torch.tensor([-1, 0, -1, 1]), torch.tensor([0, 1, 1, 2])
    shift = model.calibration.shift_of_cells(model.module, stratum, treatment)
    assert (shift[[0, 2]] == 0).all()
    for cell in (1, 3):
        expected = model.calibration.shift_of(model.module, int(treatment[cell]))
        np.testing.assert_array_equal(shift[cell], expected[stratum[cell]])


def test_the_number_of_cells_falls_with_the_number_of_arms():
    count = _stratum_cells.n_cells_per_stratum
    assert count(60_000, 15, 3) == 1000
    assert count(60_000, 1500, 3) == 160
    assert count(60_000, 15_000, 3) == 64
    assert count(10**7, 10_000, 1000) == 100


def test_chunks_of_arms_give_what_all_arms_give(fitted, monkeypatch):
    model, _ = fitted
    shifts = []
    for most in (_stratum_cells._MAX_NUMBERS, 1):
        monkeypatch.setattr(_stratum_cells, "_MAX_NUMBERS", most)
        model._after_training(model.cells(), np.random.default_rng(0))
        shifts.append(model.calibration.shift)
    np.testing.assert_allclose(*shifts, atol=1e-5)


def test_batches_are_drawn_in_the_proportions_of_each_pair():
    stratum, treatment = np.zeros(60, dtype=int), np.repeat([0, 1], [40, 20])
    batch = np.concatenate([np.repeat([0, 1], [30, 10]), np.full(20, 2)])
    cells = SimpleNamespace(rows=np.arange(60), stratum=stratum, treatment=treatment, batch=batch)
    pairs, _ = Pairs.count(stratum, treatment, 1, 2)
    batches = _stratum_cells.PairBatches.of(cells, pairs)
    drawn = batches.draw(np.array([1, 0]), 20, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(drawn), [[2] * 20, [0] * 15 + [1] * 5])
