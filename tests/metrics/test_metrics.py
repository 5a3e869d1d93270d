"""Metrics and baselines against hand-computed numbers and reference implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

from scvci import metrics
from scvci.metrics._tables import baseline_tables


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


@pytest.mark.parametrize("function", ["r2_means", "per_cell_mse", "ite_corr", "pehe"])
def test_shapes_that_differ_are_both_named(function):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        getattr(metrics, function)(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.fixture
def table(rng):
    """Additive truth c_x + d_t for 3 strata, 4 treatments and 5 genes."""
    base, effect = rng.normal(size=(3, 1, 5)), rng.normal(size=(1, 4, 5))
    effect[:, 0] = 0
    return base + effect


def test_additive_recovers_what_is_additive(table):
    seen = table.copy()
    seen[1, 2] = np.nan
    np.testing.assert_allclose(metrics.additive(seen), table)


def test_baselines_never_use_the_pair_itself_where_there_is_another(table):
    poisoned = table.copy()
    poisoned[1, 2] += 100
    for name in ("treatment mean", "additive", "low-rank linear"):
        baseline = metrics.BASELINES[name]
        np.testing.assert_allclose(baseline(poisoned)[1, 2], baseline(table)[1, 2], err_msg=name)


def test_no_change_and_treatment_mean_by_hand(table):
    assert (metrics.no_change(table)[:, 3] == table[:, 0]).all()
    expected = (table[1, 2] + table[2, 2]) / 2
    np.testing.assert_allclose(metrics.treatment_mean(table)[0, 2], expected)


def test_treatment_of_a_single_stratum(table):
    only = table.copy()
    only[1:, 3] = np.nan
    np.testing.assert_allclose(metrics.additive(only)[1, 3], table[1, 3])
    np.testing.assert_allclose(metrics.treatment_mean(only)[0, 3], table[0, 3])
    nowhere = table.copy()
    nowhere[:, 3] = np.nan
    for baseline in (metrics.additive, metrics.treatment_mean, metrics.low_rank_linear):
        assert np.isnan(baseline(nowhere)[:, 3]).all()


def test_low_rank_linear_keeps_the_control_and_predicts_low_rank_effects(rng):
    profiles = rng.normal(size=(1, 30))
    size = np.array([0.0, 1.0, 2.0, 3.0, -2.0])[None, :, None]
    means = rng.normal(size=(6, 1, 30)) + size * profiles
    predicted = metrics.low_rank_linear(means, ridge=1e-6)
    np.testing.assert_allclose(predicted[:, 0], means[:, 0])
    np.testing.assert_allclose(predicted, means, atol=1e-3)


def test_pair_pseudobulks(rng):
    counts = rng.poisson(5, size=(40, 6))
    treatment, stratum = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    table = metrics.pair_pseudobulks(counts, treatment, stratum, (3, 2))
    np.testing.assert_allclose(
        table[1, 0], metrics.pseudobulk(counts[(treatment == 0) & (stratum == 1)])
    )
    assert np.isnan(table[2]).all()
    assert set(baseline_tables(table)) == set(metrics.BASELINES)


def test_tables_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        metrics.additive(np.zeros((2, 3)))
