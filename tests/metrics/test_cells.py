"""Distances between populations, discrimination of effects and recovery of responding genes."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import stats
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


def test_centroid_accuracy_by_hand():
    means = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert metrics.centroid_accuracy(np.array([0.8, 0.0]), means, 1) == 1
    assert metrics.centroid_accuracy(np.array([0.4, 0.0]), means, 1) == 0.5
    assert metrics.centroid_accuracy(np.array([-9.0, 0.0]), means, 2) == 0
    assert np.isnan(metrics.centroid_accuracy(means[0], means[:1], 0))


def test_discrimination_by_hand():
    true = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    pds = metrics.perturbation_discrimination
    assert pds(np.array([2.0, 0.1]), true, 0) == 1
    assert pds(np.array([2.0, 0.1]), true, 1) == 0.5
    assert pds(np.array([2.0, 0.1]), true, 2) == 0
    for metric in ("cosine", "l1", "l2"):
        # A prediction of nothing is equally far from all of them: ties share their ranks.
        assert pds(np.zeros(2), true, 1, metric) == 0.5
    # Cosine is blind to size, the others are not.
    far, near = np.array([[1.0, 0.0], [9.0, 3.0]]), np.array([9.0, 0.0])
    assert pds(near, far, 0, "cosine") == 1
    assert pds(near, far, 0, "l1") == pds(near, far, 0, "l2") == 0
    assert np.isnan(pds(true[0], true[:1], 0))
    with pytest.raises(ValueError, match=r"'l3'.*cosine"):
        pds(true[0], true, 0, "l3")
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 2\)"):
        pds(np.zeros(3), true, 0)


def test_discrimination_of_noise_is_one_half(rng):
    scores = [
        metrics.perturbation_discrimination(rng.normal(size=20), rng.normal(size=(9, 20)), 4)
        for _ in range(400)
    ]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.06)


@pytest.fixture
def two_groups(rng):
    """Log-normalised cells of which the first 5 of 30 genes respond."""
    treated, control = rng.poisson(4, size=(80, 30)), rng.poisson(4, size=(60, 30))
    treated[:, :5] += rng.poisson(6, size=(80, 5))
    return np.log1p(treated.astype(float)), np.log1p(control.astype(float))


@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_differential_expression_agrees_with_scanpy(two_groups, method):
    treated, control = two_groups
    table = metrics.differential_expression(treated, control, method)
    adata = AnnData(np.concatenate([treated, control]))
    adata.obs["group"] = np.repeat(["t", "c"], [len(treated), len(control)])
    adata.obs["group"] = adata.obs["group"].astype("category")
    sc.tl.rank_genes_groups(
        adata, "group", groups=["t"], reference="c", method=method, tie_correct=True
    )
    found = sc.get.rank_genes_groups_df(adata, "t").set_index("names")
    found = found.loc[adata.var_names]
    # scanpy's rank-sum test has no continuity correction.
    tolerance = {"t-test": 1e-4, "wilcoxon": 0.05}[method]
    np.testing.assert_allclose(table["p_value"], found["pvals"], rtol=tolerance, atol=1e-12)
    np.testing.assert_allclose(table["q_value"], found["pvals_adj"], rtol=tolerance, atol=1e-12)
    if method == "t-test":
        np.testing.assert_allclose(table["score"], found["scores"], rtol=1e-4)
    assert set(np.flatnonzero(table["q_value"] < 0.01)) >= set(range(5))
    np.testing.assert_allclose(table["log_fold_change"], treated.mean(0) - control.mean(0))


def test_differential_expression_by_definition(two_groups):
    treated, control = two_groups
    treated[:, 7] = control[:, 7] = 0
    table = metrics.differential_expression(treated, control)
    welch = stats.ttest_ind(treated[:, 0], control[:, 0], equal_var=False)
    assert table.loc[0, "score"] == pytest.approx(welch.statistic)
    assert table.loc[0, "p_value"] == pytest.approx(welch.pvalue)
    # A gene that nobody expresses is no news.
    assert list(table.loc[7, ["score", "p_value", "log_fold_change"]]) == [0, 1, 0]
    with pytest.raises(ValueError, match="'z'"):
        metrics.differential_expression(treated, control, "z")


def test_recovery_by_hand():
    true, pred = np.array([3.0, -2.0, 1.0, 0.0]), np.array([-1.0, -5.0, 4.0, 0.5])
    assert metrics.top_k_overlap(true, pred, k=2) == 0.5
    assert metrics.top_k_overlap(true, 9 * true, k=2) == 1
    assert np.isnan(metrics.top_k_overlap(true, pred, k=4))
    assert np.isnan(metrics.top_k_overlap(true, np.zeros(4), k=2))
    significant = np.array([True, True, True, False])
    assert metrics.direction_match(true, pred, significant) == pytest.approx(2 / 3)
    assert metrics.direction_match(true, np.zeros(4), significant) == 0
    assert metrics.logfc_spearman(true, pred, significant) == pytest.approx(0.5)
    assert metrics.logfc_spearman(true, np.exp(true), significant) == pytest.approx(1)
    assert metrics.de_jaccard(significant, np.array([False, True, True, True])) == 0.5
    nothing = np.zeros(4, dtype=bool)
    assert np.isnan(metrics.direction_match(true, pred, nothing))
    assert np.isnan(metrics.logfc_spearman(true, pred, nothing))
    assert np.isnan(metrics.de_jaccard(nothing, nothing))
    with pytest.raises(ValueError, match="Shapes differ"):
        metrics.direction_match(true, pred[:3], significant)
