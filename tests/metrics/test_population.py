"""Metrics of means and variances of cells, against hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

from scvci import metrics


def test_pseudobulk_sums_before_logs(rng):
    counts = rng.poisson(3, size=(20, 6))
    expected = np.log1p(1e4 * counts.sum(0) / counts.sum())
    np.testing.assert_allclose(metrics.pseudobulk(counts), expected)
    np.testing.assert_allclose(metrics.pseudobulk(sparse.csr_matrix(counts)), expected)
    with pytest.raises(ValueError, match="no counts"):
        metrics.pseudobulk(np.zeros((2, 3)))


def test_r2_of_means_and_of_effects(rng):
    control, true, pred = rng.normal(size=(3, 40))
    assert metrics.r2_means(true, pred) == pytest.approx(r2_score(true, pred))
    assert metrics.r2_delta(true, pred, control) == pytest.approx(
        r2_score(true - control, pred - control)
    )
    assert metrics.r2_delta(true, true, control) == 1
    # No change: 1 − Σ d² / Σ (d − d̄)², below zero wherever effects have a mean.
    d = np.array([1.0, 2.0, 3.0])
    assert metrics.r2_delta(d, np.zeros(3), np.zeros(3)) == pytest.approx(1 - 14 / 2)


def test_pearson_delta_is_blind_to_scale_and_shift(rng):
    control, true, pred = rng.normal(size=(3, 40))
    value = metrics.pearson_delta(true, pred, control)
    assert value == pytest.approx(np.corrcoef(true - control, pred - control)[0, 1])
    stretched = control + 3 * (pred - control) + 2
    assert metrics.pearson_delta(true, stretched, control) == pytest.approx(value)
    assert np.isnan(metrics.pearson_delta(true, control, control))


def test_systema_reference_takes_away_what_treatments_share(rng):
    control, shared, pred = rng.normal(size=(3, 40))
    own = rng.normal(0, 0.1, size=(4, 40))
    means = control + 5 * shared + own
    reference = metrics.systema_reference(means)
    np.testing.assert_allclose(reference, means.mean(axis=0))
    lazy = control + 5 * shared + 0.1 * pred
    assert metrics.pearson_delta(means[0], lazy, control) > 0.99
    assert abs(metrics.pearson_delta(means[0], lazy, reference)) < 0.5
    assert metrics.pearson_delta(means[0], means[0], reference) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"at least two treatments.*\(1, 40\)"):
        metrics.systema_reference(means[:1])


def test_cosine_of_log_fold_changes_by_hand():
    control, true, pred = np.array([0.9, 0.9]), np.array([9.9, 0.9]), np.array([9.9, 9.9])
    assert metrics.cosine_logfc(true, pred, control) == pytest.approx(2**-0.5)
    assert metrics.cosine_logfc(true, true, control) == pytest.approx(1)
    # ((0 + 0.1) / (0.9 + 0.1) = 1 / 10, the opposite direction.
    assert metrics.cosine_logfc(true, np.array([0.0, 0.9]), control) == pytest.approx(-1)
    assert np.isnan(metrics.cosine_logfc(true, control, control))


def test_l2_is_over_the_most_expressed_genes_of_the_control():
    control, true = np.array([5.0, 1.0, 4.0]), np.zeros(3)
    pred = np.array([3.0, 100.0, 4.0])
    assert metrics.l2_top_expressed(true, pred, control, n_top=2) == 5
    assert metrics.l2_top_expressed(true, pred, control) == pytest.approx(
        np.linalg.norm([3, 100, 4])
    )


def test_r2_of_variances(rng):
    scale = rng.gamma(2, 1, size=12)
    true, pred = rng.normal(size=(2, 400, 12)) * scale
    value = metrics.r2_variances(true, pred)
    assert value == pytest.approx(r2_score(true.var(0, ddof=1), pred.var(0, ddof=1)))
    assert metrics.r2_variances(true + 7, pred - 3) == pytest.approx(value)
    assert metrics.r2_variances(true, true) == 1
    # Predictions that do not vary are below zero, and not cut there.
    assert metrics.r2_variances(true, np.zeros((5, 12))) < 0


def test_shapes_that_differ_are_both_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        metrics.r2_means(np.zeros((2, 3)), np.zeros((2, 4)))
