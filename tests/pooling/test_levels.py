"""Levels of controls: noise is averaged out between strata that do not differ."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.pooling import PairMeans, Pairs, pool_levels


def _controls(true, noise, rng):
    """Measured controls of strata, and a treated pair beside each."""
    n, n_genes = true.shape
    pairs = Pairs(np.repeat(np.arange(n), 2), np.tile([0, 1], n), n, 2)
    spread = noise * rng.uniform(0.5, 1.5, size=(2 * n, n_genes))
    value = np.repeat(true, 2, axis=0) + np.sqrt(spread) * rng.normal(size=spread.shape)
    return PairMeans(pairs, value, spread)


def _squared_error(means, true):
    return np.mean((means.value[::2] - true) ** 2)


@pytest.mark.parametrize("n_strata", [2, 3, 8])
def test_replicates_of_one_kind_get_their_mean(n_strata):
    rng = np.random.default_rng(0)
    true = np.repeat(rng.normal(3, 1, size=(1, 400)), n_strata, axis=0)
    means = _controls(true, 0.2, rng)
    pooled = pool_levels(means, 0)
    assert _squared_error(pooled, true) < 1.3 / n_strata * _squared_error(means, true)
    np.testing.assert_array_equal(pooled.value[1::2], means.value[1::2])
    np.testing.assert_array_equal(pooled.noise[1::2], means.noise[1::2])


def test_strata_that_differ_in_every_gene_stay():
    rng = np.random.default_rng(0)
    true = rng.normal(3, 1, size=(5, 400))
    means = _controls(true, 0.01, rng)
    pooled = pool_levels(means, 0)
    np.testing.assert_allclose(pooled.value, means.value, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_markers_stay_while_the_noise_of_other_genes_goes(seed):
    rng = np.random.default_rng(seed)
    marker = rng.random((4, 600)) < 0.05
    true = rng.normal(3, 1, size=(1, 600)) + np.where(marker, rng.normal(0, 2, (4, 600)), 0)
    means = _controls(true, 0.1, rng)
    pooled = pool_levels(means, 0)
    assert _squared_error(pooled, true) < 0.6 * _squared_error(means, true)
    strong = marker & (np.abs(true - true.mean(axis=0)) > 2)
    off = pooled.value[::2] - true
    assert np.abs(off[strong]).mean() < 1.15 * np.sqrt(0.1)


def test_the_noise_that_is_stated_is_that_which_is_left():
    rng = np.random.default_rng(1)
    true = rng.normal(3, 1, size=(1, 3000)) + rng.normal(0, 0.3, size=(4, 3000))
    pooled = pool_levels(_controls(true, 0.1, rng), 0)
    assert _squared_error(pooled, true) == pytest.approx(pooled.noise[::2].mean(), rel=0.25)


def test_a_lone_stratum_is_as_measured():
    rng = np.random.default_rng(0)
    means = _controls(rng.normal(3, 1, size=(1, 20)), 0.1, rng)
    assert pool_levels(means, 0) is means
    without = means.take(means.pairs.treatment == 1)
    assert pool_levels(without, 0) is without
