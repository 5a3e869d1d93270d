"""Metrics of single cells, against hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest

from scvci import metrics


def test_ite_corr_by_hand():
    true = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    pred = np.array([[2.0, 0.0], [4.0, 1.0], [6.0, 2.0]])
    corr = np.corrcoef([0, 1, 0], [0, 1, 2])[0, 1]
    assert metrics.ite_corr(true, pred) == pytest.approx((1 + corr) / 2)
    assert metrics.ite_corr(true, pred, n_top=1) == pytest.approx(1)


def test_group_means_know_nothing_of_individuals(rng):
    true = rng.normal(1, 1, size=(50, 8))
    means = np.repeat(true.mean(0, keepdims=True), 50, axis=0)
    assert metrics.ite_corr(true, means) == 0
    assert metrics.ite_corr(true, 5 * true + 1) == pytest.approx(1)
    assert metrics.ite_corr(true, -true) == pytest.approx(-1)
    assert np.isnan(metrics.ite_corr(np.ones((5, 3)), rng.normal(size=(5, 3))))
    partly = true.copy()
    partly[:, 3] = 9.0  # a constant true effect, the largest, is left out
    assert metrics.ite_corr(partly, partly) == pytest.approx(1)


def test_per_cell_errors():
    true, pred = np.array([[1.0, 2.0]]), np.array([[2.0, 4.0]])
    assert metrics.per_cell_mse(true, pred) == 2.5
    assert metrics.per_cell_mse(true, pred, genes=np.array([0])) == 1
    assert metrics.pehe(true, pred) == pytest.approx(2.5**0.5)


@pytest.mark.parametrize("function", ["per_cell_mse", "ite_corr", "pehe"])
def test_shapes_that_differ_are_both_named(function):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        getattr(metrics, function)(np.zeros((2, 3)), np.zeros((2, 4)))
