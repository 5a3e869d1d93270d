"""Variances that borrow from other genes."""

from __future__ import annotations

import numpy as np
from scipy import stats

from scvci.effects import estimate_effects
from scvci.effects._moderation import moderate, share_arms


def _variances(rng, n_genes, df, prior_df, scale=2.0):
    true = scale * prior_df / rng.chisquare(prior_df, n_genes)
    return true, true * rng.chisquare(df, n_genes) / df


def test_prior_is_recovered_and_intervals_hold():
    """Estimates with an error of 2 degrees of freedom: moderated intervals are valid and short."""
    rng = np.random.default_rng(0)
    true, measured = _variances(rng, 20_000, df=2, prior_df=8.0)
    estimate = np.sqrt(true) * rng.normal(size=len(true))
    variance, df = moderate(measured, np.full(len(true), 2.0))
    # 8 prior degrees of freedom, of which 0.7 are counted.
    np.testing.assert_allclose(df, 7.6, rtol=0.15)
    z = np.abs(estimate) / np.sqrt(variance)
    assert abs((z < stats.t.ppf(0.975, df)).mean() - 0.95) < 0.01
    shorter = stats.t.ppf(0.975, df) * np.sqrt(variance)
    assert np.median(shorter / (stats.t.ppf(0.975, 2) * np.sqrt(measured))) < 0.7


def test_equal_variances_are_pooled_and_missing_ones_stay():
    rng = np.random.default_rng(1)
    measured = 3.0 * rng.chisquare(4, 5000) / 4
    measured[:2] = np.nan, 0.0
    variance, df = moderate(measured, np.full(5000, 4.0))
    assert np.isnan(variance[0])
    assert variance[1] == 0
    np.testing.assert_allclose(variance[2:], 3.0, rtol=0.25)
    assert (df[2:] > 70).all()


def test_a_few_genes_are_left_alone():
    variance, df = np.arange(1.0, 6.0), np.full(5, 2.0)
    for got, given in zip(moderate(variance, df), (variance, df), strict=True):
        np.testing.assert_array_equal(got, given)


def test_three_donors_find_what_their_own_errors_cannot():
    """Paired donors of unlike genes: more is found, at the false discovery rate asked for."""
    found, false, plain, covered = 0, 0, 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n_genes, n_donors, n_each = 200, 3, 40
        effect = np.where(np.arange(n_genes) < 40, 1.0, 0.0)
        spread = np.sqrt(0.03 * 6 / rng.chisquare(6, n_genes))
        donor = np.repeat(np.arange(n_donors), 2 * n_each)
        treatment = np.tile(np.repeat([0, 1], n_each), n_donors)
        by_donor = spread * rng.normal(size=(n_donors, n_genes))
        y = 5 + rng.normal(size=(len(donor), n_genes)) * 0.3
        y += treatment[:, None] * (effect + by_donor[donor])
        tables = [
            estimate_effects(
                y,
                treatment,
                np.zeros_like(treatment),
                reference="control",
                treatments=["control", "drug"],
                strata=["all"],
                genes=[f"g{i}" for i in range(n_genes)],
                scale="counts",
                clusters=donor,
                moderated=moderated,
            )
            for moderated in (True, False)
        ]
        np.testing.assert_array_equal(tables[0]["estimate"], tables[1]["estimate"])
        hits = tables[0]["q_value"].to_numpy() < 0.1
        found, false = found + hits[:40].sum(), false + hits[40:].sum()
        plain += (tables[1]["q_value"].to_numpy() < 0.1)[:40].sum()
        inside = tables[0]["ci_low"].le(effect) & tables[0]["ci_high"].ge(effect)
        covered.append(inside.mean())
    assert found > 1.3 * plain
    assert false / (found + false) < 0.12
    assert abs(np.mean(covered) - 0.95) < 0.015


def test_variances_follow_mean_expression_and_outliers_keep_their_own():
    """A trend of four powers of ten is followed; one gene in fifty varies a hundred times more."""
    rng = np.random.default_rng(2)
    average = rng.uniform(0, 4, 2000)
    true = 10.0**average
    true[::50] *= 300
    measured = true * rng.chisquare(4, 2000) / 4
    variance, df = moderate(measured, np.full(2000, 4.0), average)
    usual = np.arange(2000) % 50 > 0
    assert np.abs(np.log(variance / true)[usual]).mean() < 0.2
    assert (df[usual] > 30).mean() > 0.95
    # An outlier that is shrunk to the others would be far too sure of itself.
    assert np.median((variance / true)[~usual]) > 0.5


def _nested(rng, sizes, sds, n_genes):
    """Difference of two arms' clusters, its error by Welch, and what each cluster pulls at it."""
    of_arms, plan = [], []
    for n, sd in zip(sizes, sds, strict=True):
        of_arms.append(sd * rng.normal(size=(n, n_genes)))
        plan.append((np.eye(n) - 1 / n) / np.sqrt(n * (n - 1)))
    pulls = np.concatenate([p @ y for p, y in zip(plan, of_arms, strict=True)])
    whole = np.zeros((sum(sizes), sum(sizes)))
    whole[: sizes[0], : sizes[0]], whole[sizes[0] :, sizes[0] :] = plan
    effect = of_arms[0].mean(axis=0) - of_arms[1].mean(axis=0)
    products = whole @ whole.T
    df = np.full(n_genes, np.trace(products) ** 2 / (products**2).sum())
    return effect, (pulls**2).sum(axis=0), df, pulls, products


def _kinds(*sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def test_pooled_variance_where_clusters_vary_alike():
    """With much information on the pattern the error is that of a t-test of equal variances."""
    rng = np.random.default_rng(0)
    gene_sd = np.exp(0.5 * rng.normal(size=20_000))
    _, variance, df, pulls, alike = _nested(rng, (3, 7), (gene_sd, gene_sd), 20_000)
    shared, shared_df = share_arms(variance, np.full(len(df), 1e-9), pulls, alike, _kinds(3, 7))
    # Pulls are centred observations over sqrt(n (n - 1)).
    sums = [(pulls[:3] ** 2).sum(axis=0) * 6, (pulls[3:] ** 2).sum(axis=0) * 42]
    expected = (sums[0] + sums[1]) / 8 * (1 / 3 + 1 / 7)
    np.testing.assert_allclose(shared / expected, 1, atol=0.15)
    np.testing.assert_allclose(shared_df, 8, rtol=1e-3)


def test_two_clusters_against_many_are_judged_by_what_all_genes_say_of_the_arms():
    rng = np.random.default_rng(1)
    gene_sd = np.exp(0.5 * rng.normal(size=4000))
    for sds in ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        sd = [s * gene_sd for s in sds]
        effect, variance, df, pulls, alike = _nested(rng, (2, 8), sd, 4000)
        assert 1 < df[0] < 2
        shared, shared_df = share_arms(variance, df, pulls, alike, _kinds(2, 8))
        p_value = 2 * stats.t.sf(np.abs(effect) / np.sqrt(shared), shared_df)
        for level in (0.05, 0.005):
            error = np.sqrt(level * (1 - level) / 4000)
            assert (p_value < level).mean() < level + 3.5 * error + 0.2 * level, (sds, level)
        assert (p_value < 0.05).mean() > 0.03
        assert (shared_df > 4 * df).all()


def test_a_genes_own_pattern_decides_where_there_are_many_clusters():
    rng = np.random.default_rng(2)
    sds = [np.ones(2000), np.ones(2000)]
    sds[0][:200] = 4.0
    _, variance, df, pulls, alike = _nested(rng, (60, 300), sds, 2000)
    shared, shared_df = share_arms(variance, df, pulls, alike, _kinds(60, 300))
    true = sds[0] ** 2 / 60 + sds[1] ** 2 / 300
    assert 0.75 < np.median(shared[:200] / true[:200]) < 1.05
    assert 0.9 < np.median(shared[200:] / true[200:]) < 1.1
    assert (shared_df > 50).all()


def test_paired_clusters_keep_their_variance_and_few_genes_theirs():
    rng = np.random.default_rng(3)
    n, difference = 5, rng.normal(size=(5, 300)) * np.exp(rng.normal(size=300))
    plan = (np.eye(n) - 1 / n) / np.sqrt(n * (n - 1))
    pulls, df = plan @ difference, np.full(300, 4.0)
    variance = difference.var(axis=0, ddof=1) / n
    shared, shared_df = share_arms(variance, df, pulls, plan @ plan.T, np.zeros(n))
    np.testing.assert_allclose(shared_df, 4.0)
    assert 0.9 < np.median(shared / variance) < 1.1
    few = share_arms(variance[:9], df[:9], pulls[:, :9], plan @ plan.T, np.zeros(n))
    for got, given in zip(few, (variance[:9], df[:9]), strict=True):
        np.testing.assert_array_equal(got, given)
    variance[3] = np.nan
    assert np.isnan(share_arms(variance, df, pulls, plan @ plan.T, np.zeros(n))[0][3])
