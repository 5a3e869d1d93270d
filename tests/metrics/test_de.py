"""Differential expression and the recovery of responding genes."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import stats

from scvci import metrics


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
