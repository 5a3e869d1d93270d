"""Adaptive shrinkage of effects on few genes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from scvci.pooling import PairMeans, Pairs, effect_variances, forecast
from scvci.pooling._mixture import mixture_variances


def _shrunk(z, noise, variance):
    prior = mixture_variances(z, noise, variance)
    return prior / (prior + noise) * z


def test_normal_effects_are_shrunk_as_by_a_normal_prior():
    rng = np.random.default_rng(0)
    effect, noise = rng.normal(size=(10, 500)), np.full((10, 500), 0.5)
    z = effect + rng.normal(size=effect.shape) * np.sqrt(noise)
    found, expected = _shrunk(z, noise, 1.0), z / 1.5
    loss = ((found - effect) ** 2).mean() / ((expected - effect) ** 2).mean()
    assert loss < 1.03


def test_strong_effects_stay_and_noise_goes():
    rng = np.random.default_rng(1)
    effect = np.where(rng.random((20, 400)) < 0.03, 2.0 * rng.normal(size=(20, 400)), 0.0)
    noise = rng.uniform(0.02, 0.1, effect.shape)
    z = effect + rng.normal(size=effect.shape) * np.sqrt(noise)
    variance = (effect**2).mean()
    normal, found = z * variance / (variance + noise), _shrunk(z, noise, variance)
    assert ((found - effect) ** 2).mean() < 0.5 * ((normal - effect) ** 2).mean()
    strong = np.abs(effect) > 2
    assert np.median(found[strong] / z[strong]) > 0.95
    assert np.abs(found[effect == 0]).mean() < 0.4 * np.abs(normal[effect == 0]).mean()


def test_a_treatment_without_effect_is_shrunk_more_than_one_with_many():
    rng = np.random.default_rng(2)
    effect = np.stack([np.zeros(500), rng.normal(size=500)])
    noise = np.full(effect.shape, 0.3)
    z = effect + rng.normal(size=effect.shape) * np.sqrt(noise)
    found = _shrunk(z, noise, 0.5)
    kept = (found * z).sum(axis=1) / (z**2).sum(axis=1)
    # The normal prior of both keeps 0.62.
    assert kept[0] < 0.2
    assert kept[1] == pytest.approx(1 / 1.3, abs=0.1)


def test_the_variance_gives_the_posterior_mean_of_the_mixture():
    """Against numerical integration, with weights that all genes agree on."""
    rng = np.random.default_rng(3)
    noise = np.full((1, 4000), 1.0)
    large = rng.random((1, 4000)) < 0.5
    z = np.where(large, 8.0, 0.0) * rng.normal(size=(1, 4000)) + rng.normal(size=(1, 4000))
    z[0, :3] = 0.5, 3.0, 12.0
    found = _shrunk(z, noise, 4.0)[0, :3]

    for value, got in zip(z[0, :3], found, strict=True):

        def density(a, at=value):
            return 0.5 * stats.norm.pdf(a, 0, 8.0) * stats.norm.pdf(at, a, 1)

        def weighted(a, at=value):
            return a * density(a, at)

        total, first = (integrate.quad(f, -60, 60, points=[value])[0] for f in (density, weighted))
        expected = first / (total + 0.5 * stats.norm.pdf(value))
        assert got == pytest.approx(expected, abs=0.15)


def test_missing_estimates_keep_the_variance():
    z, noise = np.array([[1.0, np.nan, 2.0]]), np.array([[1.0, 1.0, np.inf]])
    found = mixture_variances(z, noise, 0.7)
    np.testing.assert_array_equal(found[0, 1:], 0.7)
    np.testing.assert_array_equal(mixture_variances(z * np.nan, noise, 0.7), 0.7)


def test_a_knock_down_is_forecast_in_another_replicate():
    """Twelve sigma in one replicate: a normal prior would take much of it for noise."""
    rng = np.random.default_rng(4)
    n_treatments, n_genes = 21, 300
    effect = np.zeros((n_treatments, n_genes))
    effect[np.arange(1, n_treatments), np.arange(1, n_treatments)] = -1.2
    x, t = (v.ravel() for v in np.meshgrid([0, 1], np.arange(n_treatments), indexing="ij"))
    noise = np.full((2 * n_treatments, n_genes), 0.01)
    value = effect[t] + 0.1 * rng.normal(size=noise.shape)
    kept = (x == 0) | (t == 0) | (t > 10)
    means = PairMeans(Pairs(x[kept], t[kept], 2, n_treatments), value[kept], noise[kept])
    variances = effect_variances(means)
    asked = np.arange(1, 11)
    errors = []
    for adaptive in (False, True):
        fitted = forecast(means, variances, adaptive=adaptive)
        predicted = fitted.at(np.ones(10, int), asked)
        errors.append(((predicted - effect[asked]) ** 2).mean())
        if adaptive:
            assert np.median(predicted[np.arange(10), asked]) < -1.05
    assert errors[1] < errors[0]
