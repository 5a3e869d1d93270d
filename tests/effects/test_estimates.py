"""Closed forms that the estimates and their intervals must agree with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scvci.effects import estimate_effects

COLUMNS = ["estimate", "std_error", "ci_low", "ci_high", "p_value"]


def names(n_genes, treatments="cab", strata="s"):
    return {
        "reference": treatments[0],
        "treatments": list(treatments),
        "strata": list(strata),
        "genes": [f"g{i}" for i in range(n_genes)],
    }


@pytest.fixture
def cells():
    """Outcomes (dense, positive), treatments and strata of 600 cells and 12 genes."""
    rng = np.random.default_rng(0)
    treatment = rng.integers(3, size=600)
    stratum = rng.integers(3, size=600)
    mean = 1 + 0.3 * stratum[:, None] + 0.4 * (treatment == 1)[:, None] * rng.random(12)
    outcomes = mean * rng.gamma(2 + 2 * (treatment == 1)[:, None], 0.4, size=(600, 12))
    return outcomes, treatment, stratum


def test_observed_is_welchs_t_test(cells):
    outcomes, treatment, _ = cells
    one = np.zeros(600, dtype=int)
    table = estimate_effects(outcomes, treatment, one, scale="counts", level=0.9, **names(12))
    for code, name in ((1, "a"), (2, "b")):
        rows = table[table["treatment"] == name]
        a, b = outcomes[treatment == code], outcomes[treatment == 0]
        expected = stats.ttest_ind(a, b, equal_var=False)
        interval = expected.confidence_interval(0.9)
        np.testing.assert_allclose(rows["estimate"], a.mean(axis=0) - b.mean(axis=0))
        np.testing.assert_allclose(rows["p_value"], expected.pvalue)
        np.testing.assert_allclose(rows["ci_low"], interval.low)
        np.testing.assert_allclose(rows["ci_high"], interval.high)
        np.testing.assert_allclose(rows["mean_factual"], a.mean(axis=0))
        np.testing.assert_allclose(rows["mean_counterfactual"], b.mean(axis=0))
        assert set(rows["n_treated"]) == {len(a)}
        assert set(rows["n_reference"]) == {len(b)}
        np.testing.assert_allclose(rows["propensity"], len(a) / 600)


def test_log1p_is_taken_inside(cells):
    outcomes, treatment, stratum = cells
    table = estimate_effects(
        outcomes, treatment, stratum, scale="log1p", **names(12, strata="xyz")
    )
    logged = estimate_effects(
        np.log1p(outcomes), treatment, stratum, scale="counts", **names(12, strata="xyz")
    )
    pd.testing.assert_frame_equal(table, logged)


def test_q_values_are_benjamini_and_hochbergs_over_the_genes_of_a_contrast(cells):
    outcomes, treatment, stratum = cells
    table = estimate_effects(
        outcomes,
        treatment,
        stratum,
        groups=stratum,
        group_names=list("xyz"),
        **names(12, strata="xyz"),
    )
    for _, rows in table.groupby(["treatment", "stratum"]):
        expected = stats.false_discovery_control(rows["p_value"], method="bh")
        np.testing.assert_allclose(rows["q_value"], expected)


@pytest.mark.parametrize("estimand", ["ate", "att"])
def test_strata_are_averaged_by_their_cells(cells, estimand):
    outcomes, treatment, stratum = cells
    table = estimate_effects(
        outcomes,
        treatment,
        stratum,
        targets=["a"],
        scale="counts",
        estimand=estimand,
        **names(12, strata="xyz"),
    )
    effect, variance, weight = [], [], []
    for x in range(3):
        a = outcomes[(stratum == x) & (treatment == 1)]
        b = outcomes[(stratum == x) & (treatment == 0)]
        effect.append(a.mean(axis=0) - b.mean(axis=0))
        variance.append(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
        weight.append(len(a) if estimand == "att" else (stratum == x).sum())
    weight = np.array(weight) / np.sum(weight)
    np.testing.assert_allclose(table["estimate"], weight @ effect)
    np.testing.assert_allclose(table["std_error"] ** 2, weight**2 @ variance)
    assert set(table["stratum"]) == {"all"}


def test_fold_changes_have_errors_of_the_delta_method():
    rng = np.random.default_rng(1)
    n_genes = 2000
    treatment = np.repeat([0, 1], [150, 100])
    mean = np.where(treatment == 1, 6.0, 3.0)[:, None]
    outcomes = rng.gamma(2.0, mean / 2, size=(250, n_genes))
    stratum = np.zeros(250, dtype=int)
    table = estimate_effects(outcomes, treatment, stratum, scale="lfc", **names(n_genes, "ca"))
    means = outcomes[treatment == 1].mean(axis=0), outcomes[treatment == 0].mean(axis=0)
    np.testing.assert_allclose(table["estimate"], np.log2(means[0] / means[1]))
    assert table["std_error"].mean() == pytest.approx(table["estimate"].std(), rel=0.06)
    assert ((table["ci_low"] < 1) & (table["ci_high"] > 1)).mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("clustered", [False, True])
def test_genes_that_are_silenced_or_switched_on_are_found(clustered):
    rng = np.random.default_rng(6)
    treatment, cluster = np.repeat([0, 1], 300), np.arange(600) % 6
    outcomes = rng.poisson(1.0, (600, 40)) * 4.0
    outcomes[treatment == 1, 0] = outcomes[treatment == 0, 1] = 0
    table = estimate_effects(
        outcomes,
        treatment,
        np.zeros(600, dtype=int),
        clusters=cluster if clustered else None,
        **names(40, "ca"),
    )
    assert (table["p_value"].iloc[:2] < 1e-4).all()
    assert table["ci_high"].iloc[0] < -1
    assert table["ci_low"].iloc[1] > 1
    assert (table["p_value"].iloc[2:] < 0.05).mean() < 0.2


def test_unequal_numbers_of_cells_bias_no_logarithm():
    """Forty donors with 100 control and 15 treated cells each, few counts, no effect."""
    rng = np.random.default_rng(7)
    n_genes, n_donors = 300, 40
    donor = np.repeat(np.arange(n_donors), 115)
    treatment = np.tile(np.repeat([0, 1], [100, 15]), n_donors)
    rate = np.exp(rng.uniform(-5, 1, n_genes) + rng.normal(0, 0.2, (n_donors, n_genes)))[donor]
    outcomes = 25.0 * rng.poisson(rate * rng.gamma(2, 0.5, rate.shape))
    table = estimate_effects(
        outcomes, treatment, np.zeros_like(donor), clusters=donor, **names(n_genes, "ca")
    )
    z = (table["estimate"] / table["std_error"]).dropna()
    # A mean over 300 genes has a standard error of 0.06.
    assert abs(z.mean()) < 0.2
    assert (table["p_value"] < 0.05).sum() / len(z) < 0.09


def test_clusters_with_both_arms_give_the_paired_t_test(cells):
    outcomes = cells[0]
    treatment, cluster = np.repeat([0, 1], 300), np.tile(np.arange(6), 100)
    means = [
        [outcomes[(treatment == t) & (cluster == c)].mean(axis=0) for c in range(6)]
        for t in (1, 0)
    ]
    expected = stats.ttest_rel(*means)
    # As blocks of one effect, too: the donor may be a covariate.
    for stratum in (np.zeros(600, dtype=int), cluster):
        table = estimate_effects(
            outcomes,
            treatment,
            stratum,
            clusters=cluster,
            scale="counts",
            moderated=False,
            **names(12, "ca", "uvwxyz"),
        )
        np.testing.assert_allclose(table["p_value"], expected.pvalue)
        np.testing.assert_allclose(table["ci_low"], expected.confidence_interval().low)
        np.testing.assert_allclose(table["df"], 5)


def test_clusters_nested_in_arms_have_welchs_errors(cells):
    outcomes = cells[0]
    cluster = np.random.default_rng(2).integers(9, size=600)
    treatment = (cluster >= 4).astype(int)
    table = estimate_effects(
        outcomes,
        treatment,
        np.zeros(600, dtype=int),
        clusters=cluster,
        scale="counts",
        moderated=False,
        **names(12, "ca"),
    )
    means = np.array([outcomes[cluster == c].mean(axis=0) for c in range(9)])
    variance = means[4:].var(axis=0, ddof=1) / 5 + means[:4].var(axis=0, ddof=1) / 4
    np.testing.assert_allclose(table["estimate"], means[4:].mean(axis=0) - means[:4].mean(axis=0))
    np.testing.assert_allclose(table["std_error"] ** 2, variance)
    # Welch's for arms whose clusters vary alike.
    df = (1 / 5 + 1 / 4) ** 2 / (1 / 5**2 / 4 + 1 / 4**2 / 3)
    np.testing.assert_allclose(table["df"], df)


def test_errors_of_cells_and_of_wells_are_those_of_statsmodels(cells):
    """HC2 errors of least squares: of cells in two arms, of wells within plates."""
    api = pytest.importorskip("statsmodels.api")
    outcomes = cells[0]
    treatment = np.random.default_rng(5).integers(2, size=600)
    table = estimate_effects(
        outcomes, treatment, np.zeros(600, dtype=int), scale="counts", **names(12, "ca")
    )
    well = np.repeat(np.arange(24), 25)
    plate, arm = well // 8, well % 3 == 0
    by_well = estimate_effects(
        outcomes,
        arm.astype(int),
        np.zeros(600, dtype=int),
        clusters=well,
        batch=plate,
        scale="counts",
        moderated=False,
        **names(12, "ca"),
    )
    means = outcomes.reshape(24, 25, 12).mean(axis=1)
    design = np.column_stack([arm[::25], *(plate[::25] == p for p in range(3))]).astype(float)
    for g in range(12):
        fit = api.OLS(outcomes[:, g], api.add_constant(treatment)).fit(cov_type="HC2")
        np.testing.assert_allclose(table["estimate"][g], fit.params[1])
        np.testing.assert_allclose(table["std_error"][g], fit.bse[1])
        fit = api.OLS(means[:, g], design).fit(cov_type="HC2")
        np.testing.assert_allclose(by_well["estimate"][g], fit.params[0])
        np.testing.assert_allclose(by_well["std_error"][g], fit.bse[0])


def _cr2(y, design, weights, contrast, cluster):
    """Weighted least squares with CR2 errors and Satterthwaite degrees of freedom, by matrices."""
    bread = np.linalg.pinv(design.T @ (weights[:, None] * design))
    to_fit = bread @ design.T * weights
    annihilator = np.eye(len(y)) - design @ to_fit
    pulls = []
    for c in np.unique(cluster):
        rows = cluster == c
        inner = annihilator[rows] @ annihilator[rows].T
        value, vector = np.linalg.eigh(inner)
        kept = value > 1e-9
        root = vector[:, kept] / np.sqrt(value[kept]) @ vector[:, kept].T
        pulls.append((contrast @ to_fit)[rows] @ root @ annihilator[rows])
    gram = np.array(pulls) @ np.array(pulls).T
    error = np.sqrt(((np.array(pulls) @ y) ** 2).sum(axis=0))
    return contrast @ to_fit @ y, error, np.trace(gram) ** 2 / (gram**2).sum()


@pytest.mark.parametrize("weighting", ["equal", "cells"])
def test_partly_paired_clusters_in_batches_are_a_regression_with_robust_errors(weighting):
    """Uneven donors, some with one arm, in three batches and two strata, against matrices."""
    rng = np.random.default_rng(4)
    n_donors, n_genes = 12, 6
    donor = rng.choice(n_donors, 3000, p=rng.dirichlet(np.ones(n_donors) * 2))
    batch, stratum = donor % 3, rng.integers(2, size=3000)
    treatment = np.where(donor < 4, donor % 2, rng.integers(2, size=3000))
    y = rng.normal(size=(n_donors, n_genes))[donor] + rng.normal(size=(3000, n_genes))
    table = estimate_effects(
        y,
        treatment,
        stratum,
        clusters=donor,
        cluster_weights=weighting,
        batch=batch,
        scale="counts",
        moderated=False,
        min_cells=5,
        **names(n_genes, "ca", "xy"),
    )
    keys, row = np.unique(np.stack([donor, treatment, stratum]), axis=1, return_inverse=True)
    row, size = row.ravel(), np.bincount(row.ravel()).astype(float)
    means = np.stack([np.bincount(row, y[:, g]) / size for g in range(n_genes)], axis=1)
    cluster, arm, x = keys
    units = [(cluster % 3 == b) & (x == s) for s in (0, 1) for b in range(3)]
    columns = [arm * (x == 0), arm * (x == 1), *units]
    weights = np.ones(len(size)) if weighting == "equal" else size
    share = np.bincount(stratum) / 3000
    contrast = np.concatenate([share, np.zeros(6)])
    design = np.stack(columns, axis=1).astype(float)
    estimate, error, df = _cr2(means, design, weights, contrast, cluster)
    np.testing.assert_allclose(table["estimate"], estimate)
    np.testing.assert_allclose(table["std_error"], error)
    np.testing.assert_allclose(table["df"], df)


def test_the_estimand_does_not_depend_on_the_number_of_clusters():
    """Larger donors respond more: the mean donor does not, at nine donors and at ten."""
    for n_donors in (9, 10):
        found = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            size = np.maximum((50 * np.exp(rng.normal(size=n_donors))).astype(int), 5)
            response = 0.5 * (np.log(size) - np.log(size).mean())
            donor = np.tile(np.repeat(np.arange(n_donors), size), 2)
            treatment = np.repeat([0, 1], size.sum())
            y = rng.normal(size=(len(donor), 8)) + (treatment * response[donor])[:, None]
            arguments = {"clusters": donor, "scale": "counts", **names(8, "ca")}
            one = np.zeros_like(donor)
            equal, cells_ = (
                estimate_effects(y, treatment, one, cluster_weights=w, **arguments)["estimate"]
                for w in ("equal", "cells")
            )
            found.append((equal.mean(), cells_.mean(), size @ response / size.sum()))
        equal, cells_, expected = np.mean(found, axis=0)
        assert abs(equal) < 0.04
        assert cells_ == pytest.approx(expected, abs=0.04)


def test_strata_without_common_clusters_each_cost_a_degree_of_freedom(cells):
    outcomes = cells[0]
    cluster, treatment = np.tile(np.arange(8), 75), np.repeat([0, 1], 300)
    stratum = (cluster >= 4).astype(int)
    table = estimate_effects(
        outcomes,
        treatment,
        stratum,
        clusters=cluster,
        scale="counts",
        moderated=False,
        **names(12, "ca", "xy"),
    )
    means = np.array(
        [
            [outcomes[(treatment == t) & (cluster == c)].mean(axis=0) for c in range(8)]
            for t in (1, 0)
        ]
    )
    difference = means[0] - means[1]
    variances = [difference[part].var(axis=0, ddof=1) / 4 for part in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(table["std_error"] ** 2, 0.25 * (variances[0] + variances[1]))
    np.testing.assert_allclose(table["df"], 6)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("estimator", ["observed", "robust"])
@pytest.mark.parametrize("scale", ["log1p", "lfc"])
def test_order_chunks_and_storage_do_not_matter(cells, clustered, estimator, scale):
    outcomes, treatment, stratum = cells
    rng = np.random.default_rng(4)
    outcomes = outcomes * (rng.random(outcomes.shape) < 0.6)
    cluster = rng.integers(7, size=600) if clustered else None
    predicted = rng.random((3, *outcomes.shape))

    def run(rows, columns, as_sparse=False, chunk_size=None):
        matrix = outcomes[np.ix_(rows, columns)]
        table = estimate_effects(
            sparse.csr_matrix(matrix) if as_sparse else matrix,
            treatment[rows],
            stratum[rows],
            groups=stratum[rows] // 2,
            group_names=["one", "two"],
            estimator=estimator,
            scale=scale,
            clusters=None if cluster is None else cluster[rows],
            predictions=lambda t, genes: predicted[t][np.ix_(rows, columns)][:, genes],
            chunk_size=chunk_size,
            **{**names(12, strata="xyz"), "genes": [f"g{i}" for i in columns]},
        )
        return table.sort_values(["treatment", "stratum", "gene"], ignore_index=True)

    cells_in_order, genes_in_order = np.arange(600), np.arange(12)
    expected = run(cells_in_order, genes_in_order)
    assert expected["p_value"].notna().all()
    for other in (
        run(rng.permutation(600), genes_in_order),
        run(cells_in_order, rng.permutation(12)),
        run(cells_in_order, genes_in_order, as_sparse=True, chunk_size=5),
    ):
        pd.testing.assert_frame_equal(expected, other, rtol=1e-9)


def test_a_silent_arm_borrows_variance_and_intervals_need_expressing_cells():
    treatment = np.repeat([0, 1], [300, 30])
    outcomes = np.zeros((330, 3))
    outcomes[:60, 0] = 2.0  # the treated show none of a gene that a fifth expresses
    outcomes[:9, 1] = 2.0  # too few cells of any arm
    outcomes[300:324, 2] = 2.0  # switched on: none of 300 against 24 of 30
    table = estimate_effects(
        outcomes, treatment, np.zeros(330, dtype=int), scale="counts", **names(3, "ca")
    )
    reference_only = outcomes[:300, 0].std(ddof=1) / np.sqrt(300)
    pooled = outcomes[:300, 0].var() * 300 / 328
    assert table["std_error"][0] > 3 * reference_only
    assert table["std_error"][0] ** 2 == pytest.approx(reference_only**2 + pooled / 30)
    assert np.isnan(table["p_value"][1])
    assert "expressing" in table["note"][1]
    assert table["estimate"][1] == pytest.approx(-0.06)
    assert table["p_value"][2] < 1e-6
