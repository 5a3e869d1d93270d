"""Means of pairs on the scale of effects, and those of a reference beside them."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.pooling import PairMeans, Pairs, pair_means
from scvci.pooling._means import merge_means


def _pairs(observed):
    return Pairs(*np.nonzero(observed), *observed.shape)


def test_means_and_their_noise():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.2, 3, size=30)
    drawn = rng.poisson(rate, size=(400, 50, 30)).mean(axis=1)
    pairs = _pairs(np.ones((1, 2), dtype=bool))
    moments = np.broadcast_to(rate, (2, 30))
    means = pair_means(pairs, moments, moments, np.full(2, 50))
    expected = np.log1p(1e4 * rate / rate.sum())
    np.testing.assert_allclose(means.value[0], expected)
    # A fixed scale, as in the delta method
    spread = np.log1p(1e4 / rate.sum() * drawn).var(axis=0)
    np.testing.assert_allclose(means.noise[0], spread, rtol=0.4)


def test_a_gene_that_a_pair_does_not_show_is_not_known_without_error():
    pairs = _pairs(np.ones((1, 2), dtype=bool))
    mean = np.full((2, 4), 0.3)
    mean[1, 2] = 0
    means = pair_means(pairs, mean, mean, np.array([200, 10]))
    assert means.noise[1, 2] > 0
    # The whole stratum's moments count as 20 cells.
    pooled = 10 / 30 * 0 + 20 / 30 * 0.3 * 200 / 210
    scale = 1e4 / 0.9
    expected = scale**2 * pooled / 10 / (1 + scale * pooled) ** 2
    assert means.noise[1, 2] == pytest.approx(expected)
    empty = pair_means(pairs, np.zeros((2, 4)), np.zeros((2, 4)), np.array([5, 5]))
    assert len(empty.pairs) == 0


def test_noise_of_log_normalised_means():
    pairs = _pairs(np.array([[True, True], [False, True]]))
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(3, 5)), rng.uniform(size=(3, 5))
    means = pair_means(pairs, mean, variance, np.array([10, 30, 5]), is_count=False)
    np.testing.assert_array_equal(means.value, mean)
    stratum = (10 * variance[0] + 30 * variance[1]) / 40
    np.testing.assert_allclose(means.noise[0], (10 * variance[0] + 20 * stratum) / 30 / 10)
    np.testing.assert_allclose(means.noise[2], variance[2] / 5)


def test_means_of_a_reference_move_with_the_control():
    """Stratum 0 is known to both, 1 to the reference, 2 is new; treatment 2 is new."""

    def means(observed, value, noise):
        pairs = Pairs(*np.nonzero(observed), 3, 3)
        return PairMeans(
            pairs, np.array(value)[observed][:, None], np.array(noise)[observed][:, None]
        )

    own = means(
        np.array([[True, True, True], [False] * 3, [True, False, True]]),
        [[3.0, 9.0, 5.0], [0, 0, 0], [7.0, 0, 8.0]],
        [[0.3, 0.9, 0.5], [0, 0, 0], [0.7, 0, 0.8]],
    )
    reference = means(
        np.array([[True, True, False], [True, True, False], [False] * 3]),
        [[1.0, 2.0, 0], [4.0, 6.0, 0], [0, 0, 0]],
        np.full((3, 3), 0.1),
    )
    merged = merge_means(reference, own, control=0)
    pairs = list(zip(merged.pairs.stratum, merged.pairs.treatment, strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2)]
    # The reference's effect of +1 stays +1, now beside the new control.
    np.testing.assert_allclose(merged.value[:, 0], [3, 4, 5, 4, 6, 7, 8])
    np.testing.assert_allclose(merged.noise[:, 0], [0.3, 0.1, 0.5, 0.1, 0.1, 0.7, 0.8])
