"""Marginal calibration of pairs without cells."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

import scvci
from scvci.data import compute_statistics
from scvci.metrics import effect_variances, forecast_levels
from scvci.model import VCI, _calibration


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


def _level(adata, layer, stratum):
    """log1p per 10,000 of the mean of the stratum's cells, all at the same library size."""
    mean = adata.layers[layer][adata.obs["cell_type"] == stratum].mean(axis=0)
    return np.log1p(1e4 * mean / mean.sum())


def _levels_under_treatment(model, adata, share, monkeypatch):
    """Mean under the treatment by stratum, calibrated with that share."""
    monkeypatch.setattr(_calibration, "_forecast_share", lambda *_: share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model._after_training(np.arange(adata.n_obs), np.random.default_rng(0))
        model.predict_counterfactual(library_size=1e4)
    strata = adata.obs["cell_type"].cat.categories
    return {x: _level(adata, "counterfactual_IFNb", x) for x in strata}


def _forecast(model, adata):
    statistics = compute_statistics(model._cohort(np.arange(adata.n_obs)), uses_size=True)
    levels = _calibration.measured_levels(model.module, statistics)
    return forecast_levels(levels, effect_variances(levels))


def test_a_pair_without_cells_is_half_way_to_the_forecast(fitted, monkeypatch):
    model, adata = fitted
    shares = (0.0, 0.5, 1.0)
    means = {s: _levels_under_treatment(model, adata, s, monkeypatch)["B"] for s in shares}
    expected = _forecast(model, adata)[model.strata.index("B"), model.treatments.index("IFNb")]
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
    model, adata = fitted
    asked, share_of = {}, _calibration._forecast_share

    def record(levels, variances, treatment, control, least):
        quiet = dataclasses.replace(levels, noise=np.zeros_like(levels.noise))
        assert share_of(quiet, variances, treatment, control, least) == pytest.approx(least)
        loud = dataclasses.replace(levels, noise=np.full_like(levels.noise, 1e6))
        assert share_of(loud, variances, treatment, control, least) == pytest.approx(1, abs=1e-3)
        asked.setdefault(least, []).append(treatment)
        return share_of(levels, variances, treatment, control, least)

    monkeypatch.setattr(_calibration, "_forecast_share", record)
    model._after_training(np.arange(adata.n_obs), np.random.default_rng(0))
    assert asked[1 / 3] == [model.treatments.index("IFNb")]
    assert len(asked[1 / 2]) == len(model.strata) * len(model.treatments) - 1


def test_without_the_forecast_the_mean_change_is_borrowed(fitted, monkeypatch):
    """shift(x, t) = shift(x, control) + mean over other strata of the shifts that close gaps."""
    model, adata = fitted
    found = []
    fit_gaps = _calibration._fit_gaps

    def record(*arguments):
        found.append(fit_gaps(*arguments))
        return found[-1].copy()

    monkeypatch.setattr(_calibration, "_fit_gaps", record)
    _levels_under_treatment(model, adata, 0.0, monkeypatch)
    shift = model.module.calibration.numpy()
    t, x = model.treatments.index("IFNb"), model.strata.index("B")
    others = [i for i in range(3) if i != x]
    borrowed = shift[x, 0] + (found[0][others, t] - found[0][others, 0]).mean(0)
    np.testing.assert_allclose(shift[x, t], borrowed, atol=1e-4)


def test_a_measured_pair_with_all_the_share_has_the_forecast_mean(fitted, monkeypatch):
    model, adata = fitted
    _levels_under_treatment(model, adata, 1.0, monkeypatch)
    forecast = _forecast(model, adata)
    t = model.treatments.index("IFNb")
    for stratum in ("CD4 T", "CD14 Mono"):
        level = _level(adata, "counterfactual_IFNb", stratum)
        off = level - forecast[model.strata.index(stratum), t]
        # Shares of one total: all move together where logs of means do not sum to it.
        assert np.abs(off - np.median(off)).max() < 0.02
