"""The mixed model of effects against brute force, and what it recovers."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.metrics import (
    EffectVariances,
    PairLevels,
    effect_variances,
    forecast_levels,
    pair_levels,
)


def _draw(rng, variances, shape, noise, missing=()):
    """Levels from the model itself; the control has no effect."""
    n_x, n_t, n_genes = shape
    scale = np.sqrt([variances.common, variances.treatment, variances.stratum, variances.pair])
    effect = (
        scale[0] * rng.normal(size=(1, 1, n_genes))
        + scale[1] * rng.normal(size=(1, n_t, n_genes))
        + scale[2] * rng.normal(size=(n_x, 1, n_genes))
        + scale[3] * rng.normal(size=shape)
    )
    effect[:, 0] = 0
    true = rng.normal(3, 1, size=(n_x, 1, n_genes)) + effect
    spread = np.full(shape, noise) * rng.uniform(0.5, 1.5, size=(1, 1, n_genes))
    observed = np.ones((n_x, n_t), dtype=bool)
    for pair in missing:
        observed[pair] = False
    value = true + np.sqrt(spread) * rng.normal(size=shape)
    value[~observed] = 0
    return PairLevels(value, spread, observed), true


@pytest.mark.parametrize("seed", range(3))
def test_variances_are_recovered(seed):
    rng = np.random.default_rng(seed)
    truth = EffectVariances(common=0.2, treatment=0.5, stratum=0.1, pair=0.05)
    levels, _ = _draw(rng, truth, (8, 12, 400), noise=0.1, missing=[(0, 3), (2, 5)])
    found = effect_variances(levels)
    # The parts are averages over 400 genes and about ten draws each.
    for part in ("common", "treatment", "stratum", "pair"):
        assert getattr(found, part) == pytest.approx(getattr(truth, part), rel=0.35), part


def test_noise_alone_has_no_variance():
    found = []
    for seed in range(8):
        levels, _ = _draw(
            np.random.default_rng(seed), EffectVariances(0, 0, 0, 0), (3, 9, 300), noise=0.2
        )
        found.append(effect_variances(levels))
    assert np.mean([sum(vars(f).values()) for f in found]) < 0.02


def test_forecast_is_the_best_linear_prediction():
    """Backfitting against the conditional mean from the full covariance, gene by gene."""
    rng = np.random.default_rng(0)
    variances = EffectVariances(common=0.3, treatment=0.4, stratum=0.2, pair=0.1)
    levels, _ = _draw(rng, variances, (3, 4, 5), noise=0.15, missing=[(1, 2)])
    forecast = forecast_levels(levels, variances)
    pairs = [(x, t) for x in range(3) for t in range(1, 4)]
    seen = [p for p in pairs if p != (1, 2)]

    def covariance(p, q, gene, noise):
        value = variances.common + variances.treatment * (p[1] == q[1])
        value += variances.stratum * (p[0] == q[0]) + variances.pair * (p == q)
        # The control's noise is in all effects of its stratum.
        value += levels.noise[p[0], 0, gene] * (p[0] == q[0])
        return value + noise * levels.noise[(*p, gene)] * (p == q)

    for gene in range(5):
        k = np.array([[covariance(p, q, gene, 1) for q in seen] for p in seen])
        d = np.array([levels.value[(*p, gene)] - levels.value[p[0], 0, gene] for p in seen])
        for p in pairs:
            cross = np.array([covariance(p, q, gene, 0) for q in seen])
            expected = levels.value[p[0], 0, gene] + cross @ np.linalg.solve(k, d)
            assert forecast[(*p, gene)] == pytest.approx(expected, abs=1e-3)
        for x in range(3):
            noise = levels.noise[x, 0, gene] * np.array([q[0] == x for q in seen])
            expected = levels.value[x, 0, gene] + noise @ np.linalg.solve(k, d)
            assert forecast[x, 0, gene] == pytest.approx(expected, abs=1e-3)


def test_forecast_beats_the_additive_mean_and_no_change_of_a_missing_pair():
    errors = {"forecast": [], "additive": [], "no change": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth = EffectVariances(common=0.05, treatment=0.05, stratum=0.05, pair=0.02)
        levels, true = _draw(rng, truth, (3, 6, 200), noise=0.2, missing=[(0, 1)])
        base = levels.value[0, 0]
        additive = base + np.mean([levels.value[x, 1] - levels.value[x, 0] for x in (1, 2)], 0)
        forecast = forecast_levels(levels, effect_variances(levels))[0, 1]
        for name, guess in (("forecast", forecast), ("additive", additive), ("no change", base)):
            errors[name].append(np.mean((guess - true[0, 1]) ** 2))
    errors = {name: np.mean(values) for name, values in errors.items()}
    assert errors["forecast"] < 0.8 * errors["additive"]
    assert errors["forecast"] < 0.8 * errors["no change"]


def test_levels_and_their_noise():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.2, 3, size=30)
    means = rng.poisson(rate, size=(400, 50, 30)).mean(axis=1)
    shape = (1, 2, 30)
    levels = pair_levels(
        np.broadcast_to(rate, shape), np.broadcast_to(rate, shape), np.full((1, 2), 50)
    )
    expected = np.log1p(1e4 * rate / rate.sum())
    np.testing.assert_allclose(levels.value[0, 0], expected)
    # A fixed scale, as in the delta method
    spread = np.log1p(1e4 / rate.sum() * means).var(axis=0)
    np.testing.assert_allclose(levels.noise[0, 0], spread, rtol=0.4)


def test_a_gene_that_a_pair_does_not_show_is_not_known_without_error():
    mean = np.full((1, 2, 4), 0.3)
    mean[0, 1, 2] = 0
    levels = pair_levels(mean, mean, np.array([[200, 10]]))
    assert levels.noise[0, 1, 2] > 0
    empty = pair_levels(np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), np.array([[5, 0]]))
    assert not empty.observed.any()


@pytest.mark.parametrize("shape", [(1, 2, 20), (1, 5, 20), (4, 2, 20)])
def test_designs_that_cannot_tell_parts_apart(shape):
    rng = np.random.default_rng(0)
    levels, _ = _draw(rng, EffectVariances(0.5, 0.2, 0.1, 0.1), shape, noise=0.01)
    variances = effect_variances(levels)
    assert np.isfinite(list(vars(variances).values())).all()
    assert sum(vars(variances).values()) > 0.1
    assert np.isfinite(forecast_levels(levels, variances)).all()


def test_a_stratum_without_control_has_no_forecast():
    rng = np.random.default_rng(0)
    levels, _ = _draw(rng, EffectVariances(0.5, 0.2, 0.1, 0.1), (3, 3, 20), 0.01, [(2, 0)])
    forecast = forecast_levels(levels, effect_variances(levels))
    assert np.isnan(forecast[2]).all()
    assert np.isfinite(forecast[:2]).all()
