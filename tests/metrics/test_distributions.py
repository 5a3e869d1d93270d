"""Distances between populations of cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from scvci import metrics
from scvci.metrics._distributions import MMD_GAMMAS


def test_energy_distance_against_brute_force(rng):
    x, y = rng.normal(size=(9, 3)), rng.normal(1, 1, size=(7, 3))
    d = distance.cdist
    brute = (
        2 * d(x, y).mean()
        - d(x, x)[~np.eye(9, dtype=bool)].mean()
        - d(y, y)[~np.eye(7, dtype=bool)].mean()
    )
    assert metrics.energy_distance(x, y) == pytest.approx(brute)
    same = np.mean([metrics.energy_distance(*rng.normal(size=(2, 20, 3))) for _ in range(200)])
    assert abs(same) < 0.03


def test_mmd_by_hand():
    # Two points a side at distance d: within, half the pairs are a point with itself.
    x, y = np.zeros((2, 1)), np.full((2, 1), 2.0)
    assert metrics.mmd(x, y, gammas=[0.25]) == pytest.approx(2 - 2 * np.exp(-1))
    ladder = [metrics.mmd(x, y, gammas=[g]) for g in MMD_GAMMAS]
    assert metrics.mmd(x, y) == pytest.approx(np.mean(ladder))
    assert metrics.mmd(x, x) == 0


@pytest.mark.parametrize("function", [metrics.mmd, metrics.energy_distance])
def test_distances_do_not_see_order_or_a_common_shift(rng, function):
    x, y = rng.normal(size=(30, 4)), rng.normal(0.5, 1, size=(20, 4))
    value = function(x, y)
    assert function(x[::-1], y[rng.permutation(20)]) == pytest.approx(value)
    assert function(x[:, ::-1] + 3, y[:, ::-1] + 3) == pytest.approx(value)
    assert function(y, x) == pytest.approx(value)
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        function(x[:1], y)


def test_covariance_error_in_closed_form(rng):
    x = rng.normal(size=(50, 4))
    assert metrics.covariance_error(x, x) == 0
    assert metrics.covariance_error(x, x + 3.0) == pytest.approx(0, abs=1e-12)
    assert metrics.covariance_error(x, 2 * x) == pytest.approx(3)
    assert metrics.covariance_error(x, np.zeros((9, 4))) == pytest.approx(1)
    assert np.isnan(metrics.covariance_error(np.ones((5, 4)), x))
    with pytest.raises(ValueError, match="two sets"):
        metrics.covariance_error(x, x[:, :2])


def test_covariance_error_sees_dependence_that_variances_do_not(rng):
    common = rng.normal(size=(2000, 1))
    together = np.hstack([common, common]) + 0.1 * rng.normal(size=(2000, 2))
    apart = np.column_stack([rng.permutation(column) for column in together.T])
    assert metrics.r2_variances(together, apart) == pytest.approx(1)
    assert metrics.covariance_error(together, apart) > 0.5
