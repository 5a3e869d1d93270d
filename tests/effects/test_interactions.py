"""Interactions of combined treatments."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scvci.effects import estimate_effects, interaction_effects

NAMES = ["control", "A", "B", "C", "A+B", "A+B+C"]
PAIR, TRIPLE = (4, [1, 2], 0), (5, [1, 2, 3], 0)


def run(outcomes, treatment, groups=None, combinations=(PAIR,), group_names=("all",), **kwargs):
    if groups is None:
        groups = np.zeros(len(treatment), dtype=int)
    return interaction_effects(
        outcomes,
        treatment,
        groups,
        combinations,
        treatments=NAMES,
        group_names=list(group_names),
        genes=[f"g{i}" for i in range(outcomes.shape[1])],
        **kwargs,
    )


@pytest.fixture
def cells():
    """Positive outcomes of 900 cells and 7 genes, arms and groups of unlike sizes."""
    rng = np.random.default_rng(0)
    treatment = rng.choice(6, size=900, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.1])
    groups = rng.integers(2, size=900)
    spread = rng.uniform(0.2, 0.6, size=(6, 7))[treatment]
    return 1 + spread * rng.gamma(2.0, size=(900, 7)), treatment, groups


@pytest.mark.parametrize("combination", [PAIR, TRIPLE])
def test_closed_form(cells, combination):
    outcomes, treatment, groups = cells
    table = run(outcomes, treatment, groups, [combination], ["x", "y"], min_cells=5, level=0.9)
    code, members, control = combination
    k = len(members)
    for group, name in enumerate("xy"):
        rows = table[table["stratum"] == name]
        arm = {
            a: outcomes[(treatment == a) & (groups == group)] for a in (code, *members, control)
        }
        mean = {a: y.mean(axis=0) for a, y in arm.items()}
        weight = {code: 1, control: k - 1} | dict.fromkeys(members, -1)
        v = {a: weight[a] ** 2 * y.var(axis=0, ddof=1) / len(y) for a, y in arm.items()}
        variance = sum(v.values())
        df = variance**2 / sum(v[a] ** 2 / (len(arm[a]) - 1) for a in v)
        effect = mean[code] - mean[control]
        additive = sum(mean[a] - mean[control] for a in members)
        half = stats.t.ppf(0.95, df) * np.sqrt(variance)
        p_value = 2 * stats.t.sf(np.abs(effect - additive) / np.sqrt(variance), df)
        np.testing.assert_allclose(rows["effect"], effect)
        np.testing.assert_allclose(rows["additive"], additive)
        np.testing.assert_allclose(rows["interaction"], effect - additive)
        np.testing.assert_allclose(rows["std_error"], np.sqrt(variance))
        np.testing.assert_allclose(rows["ci_low"], effect - additive - half)
        np.testing.assert_allclose(rows["ci_high"], effect - additive + half)
        np.testing.assert_allclose(rows["p_value"], p_value)
        np.testing.assert_allclose(rows["q_value"], stats.false_discovery_control(p_value))
        assert set(rows["n_treated"]) == {len(arm[code])}
        assert set(rows["note"]) == {""}


def test_rows_sparse_and_chunks_agree(cells):
    outcomes, treatment, groups = cells
    outcomes = np.where(outcomes > 1.4, outcomes, 0)
    given = {"groups": groups, "combinations": [TRIPLE, PAIR], "group_names": ["x", "y"]}
    whole = run(outcomes, treatment, min_cells=5, **given)
    assert list(whole["treatment"].unique()) == ["A+B+C", "A+B"]
    assert list(whole["gene"][:8]) == [*(f"g{i}" for i in range(7)), "g0"]
    for matrix in (sparse.csr_matrix(outcomes), sparse.csc_matrix(outcomes), outcomes):
        chunked = run(matrix, treatment, min_cells=5, chunk_size=3, **given)
        pd.testing.assert_frame_equal(chunked, whole)


@pytest.mark.parametrize("silent", [False, True])
def test_intervals_cover_and_p_values_are_uniform(silent):
    """Effects that add up: 95% of the intervals hold 0. Counts that few cells show err safely."""
    rng = np.random.default_rng(1)
    n_genes, sizes = 4000, [150, 40, 60, 30, 35, 30]
    treatment = np.repeat(np.arange(6), sizes)
    effect = np.array([0, 0.5, -0.3, 0.2, 0.2, 0.4])[:, None] * np.ones(n_genes)
    if silent:
        outcomes = np.log1p(rng.poisson(0.15, size=(len(treatment), n_genes)))
    else:
        spread = np.array([0.5, 1.0, 0.7, 0.6, 1.2, 0.9])[treatment, None]
        outcomes = 3 + effect[treatment] + spread * rng.normal(size=(len(treatment), n_genes))
    table = run(outcomes, treatment, combinations=[PAIR, TRIPLE])
    for _, rows in table.groupby("treatment"):
        kept = rows[rows["note"] == ""]
        covered = ((kept["ci_low"] < 0) & (kept["ci_high"] > 0)).mean()
        # Five standard errors of a share of 4000 are 0.017.
        assert covered > 0.933
        if not silent:
            assert len(kept) == n_genes
            assert covered < 0.967
            assert stats.kstest(kept["p_value"], "uniform").pvalue > 1e-3


def test_a_planted_interaction_is_found():
    rng = np.random.default_rng(2)
    treatment = np.repeat(np.arange(6), 200)
    planted = np.zeros(500)
    planted[:50] = np.where(np.arange(50) % 2, 1.5, -1.5)
    mean = np.array([0, 1.0, -0.5, 0, 0.5, 0.5])[treatment, None] + 4
    outcomes = mean + (treatment == 4)[:, None] * planted
    outcomes = outcomes + rng.normal(size=outcomes.shape)
    table = run(outcomes, treatment, combinations=[PAIR, TRIPLE])
    pair = table[table["treatment"] == "A+B"]
    found = (pair["q_value"] < 0.05).to_numpy()
    assert found[:50].all()
    assert found[50:].sum() <= 12
    z = (pair["interaction"] - planted) / pair["std_error"]
    assert abs(z.std() - 1) < 0.15
    np.testing.assert_allclose(pair["effect"] - pair["additive"], pair["interaction"])
    assert (table[table["treatment"] == "A+B+C"]["q_value"] < 0.05).sum() <= 5


def test_arms_without_enough_cells_are_skipped_and_named():
    rng = np.random.default_rng(3)
    treatment = np.repeat([0, 1, 2, 4], [40, 40, 7, 40])
    groups = np.zeros(len(treatment), dtype=int)
    outcomes = rng.normal(size=(len(treatment), 3))
    table = run(outcomes, treatment, groups, [PAIR, TRIPLE], ["x", "empty"])
    notes = table.groupby(["treatment", "stratum"], sort=False)["note"].first()
    assert notes["A+B", "x"] == "skipped: fewer than 30 cells with 'B' (7)"
    assert notes["A+B+C", "x"] == (
        "skipped: no cells with 'A+B+C', 'C'; fewer than 30 cells with 'B' (7)"
    )
    assert notes["A+B", "empty"] == "skipped: no cells with 'A+B', 'A', 'B', 'control'"
    assert table[["effect", "interaction", "p_value", "q_value"]].isna().all(axis=None)
    assert list(table["n_treated"][::3]) == [40, 0, 0, 0]


def test_genes_without_an_interval_say_why():
    rng = np.random.default_rng(4)
    treatment = np.repeat([0, 1, 2, 4], 40)
    outcomes = rng.normal(size=(160, 4)) + 3
    outcomes[:, 0] = 0
    outcomes[:, 1] = 0.1 + 0.2 * (treatment == 4)
    outcomes[:, 2] *= np.arange(160) % 40 == 0
    table = run(outcomes, treatment)
    assert list(table["note"]) == [
        "constant in every arm: no interval",
        "constant in every arm: no interval",
        "too few expressing cells for an interval",
        "",
    ]
    np.testing.assert_allclose(table["interaction"][1], 0.2)
    assert table["q_value"].notna().tolist() == [False, False, False, True]
    assert table["q_value"][3] == table["p_value"][3]


def test_clusters_that_are_single_cells_give_the_error_of_cells(cells):
    outcomes, treatment, groups = cells
    given = {"groups": groups, "combinations": [PAIR, TRIPLE], "group_names": ["x", "y"]}
    # Every cell expresses every gene: nothing is borrowed.
    plain = run(outcomes, treatment, min_cells=5, **given)
    single = run(outcomes, treatment, min_cells=5, clusters=np.arange(900), **given)
    pd.testing.assert_frame_equal(single, plain, rtol=1e-9)


@pytest.mark.parametrize("combination", [PAIR, TRIPLE])
def test_clusters_with_all_arms_give_the_t_test_of_their_interactions(cells, combination):
    outcomes, treatment, _ = cells
    donor = np.random.default_rng(5).integers(6, size=900)
    table = run(outcomes, treatment, combinations=[combination], clusters=donor, min_cells=5)
    code, members, control = combination
    mean = {
        a: np.stack([outcomes[(treatment == a) & (donor == d)].mean(axis=0) for d in range(6)])
        for a in (code, *members, control)
    }
    effect = mean[code] - mean[control]
    additive = sum(mean[a] - mean[control] for a in members)
    test = stats.ttest_1samp(effect - additive, 0)
    low, high = test.confidence_interval(0.95)
    np.testing.assert_allclose(table["effect"], effect.mean(axis=0))
    np.testing.assert_allclose(table["additive"], additive.mean(axis=0))
    np.testing.assert_allclose(table["p_value"], test.pvalue)
    np.testing.assert_allclose(table["ci_low"], low)
    np.testing.assert_allclose(table["ci_high"], high)


def test_clusters_nested_in_arms_give_welchs_error_of_their_means(cells):
    outcomes, treatment, _ = cells
    donor = 4 * treatment + np.random.default_rng(6).integers(4, size=900)
    table = run(outcomes, treatment, combinations=[TRIPLE], clusters=donor, min_cells=5)
    weight = {5: 1, 1: -1, 2: -1, 3: -1, 0: 2}
    means = {a: [outcomes[donor == 4 * a + d].mean(axis=0) for d in range(4)] for a in weight}
    v = {a: weight[a] ** 2 * np.var(means[a], axis=0, ddof=1) / 4 for a in weight}
    variance = sum(v.values())
    interaction = sum(weight[a] * np.mean(means[a], axis=0) for a in weight)
    df = variance**2 / sum(part**2 / 3 for part in v.values())
    np.testing.assert_allclose(table["interaction"], interaction)
    np.testing.assert_allclose(table["std_error"], np.sqrt(variance))
    np.testing.assert_allclose(
        table["p_value"], 2 * stats.t.sf(np.abs(interaction) / np.sqrt(variance), df)
    )


def test_clusters_with_some_arms_vary_in_blocks(cells):
    """Donors with control, A and A+B, and donors with control and B: 3 degrees each."""
    outcomes, treatment, _ = cells
    has = {0: range(8), 1: range(4), 2: range(4, 8), 4: range(4)}
    donor = np.random.default_rng(10).integers(4, size=900) + 4 * (treatment == 2)
    donor += 4 * ((treatment == 0) & (np.arange(900) % 2 == 0))
    table = run(outcomes, treatment, clusters=donor, min_cells=5)
    influence, interaction = np.zeros((8, 7)), 0
    for arm, weight in {4: 1, 1: -1, 2: -1, 0: 1}.items():
        mean = np.stack(
            [outcomes[(treatment == arm) & (donor == d)].mean(axis=0) for d in has[arm]]
        )
        n = len(mean)
        influence[list(has[arm])] += weight * (mean - mean.mean(axis=0)) / np.sqrt(n * (n - 1))
        interaction = interaction + weight * mean.mean(axis=0)
    blocks = (influence**2).reshape(2, 4, 7).sum(axis=1)
    error, df = np.sqrt(blocks.sum(axis=0)), blocks.sum(axis=0) ** 2 / (blocks**2 / 3).sum(axis=0)
    np.testing.assert_allclose(table["interaction"], interaction)
    np.testing.assert_allclose(table["std_error"], error)
    np.testing.assert_allclose(table["ci_high"], interaction + stats.t.ppf(0.975, df) * error)


def test_few_clusters_of_one_arm_make_clusters_count_the_same_in_all(cells):
    outcomes, treatment, _ = cells
    rng = np.random.default_rng(11)
    donor = np.where(treatment == 4, rng.integers(5, size=900), rng.integers(14, size=900))
    table = run(outcomes, treatment, clusters=donor, min_cells=5)
    expected = 0
    for arm, weight in {4: 1, 1: -1, 2: -1, 0: 1}.items():
        present = np.unique(donor[treatment == arm])
        of_donor = [outcomes[(treatment == arm) & (donor == d)].mean(axis=0) for d in present]
        expected = expected + weight * np.mean(of_donor, axis=0)
    np.testing.assert_allclose(table["interaction"], expected)


@pytest.mark.parametrize("n_donors", [7, 25])
def test_effects_in_clusters_are_those_of_estimate_effects(cells, n_donors):
    outcomes, treatment, groups = cells
    donor = np.random.default_rng(7).integers(n_donors, size=900)
    table = run(
        np.log1p(outcomes),
        treatment,
        groups,
        [TRIPLE],
        ["x", "y"],
        clusters=donor,
        min_cells=5,
    )
    single = estimate_effects(
        outcomes,
        treatment,
        groups,
        reference="control",
        treatments=NAMES,
        strata=["x", "y"],
        genes=[f"g{i}" for i in range(7)],
        groups=groups,
        group_names=["x", "y"],
        clusters=donor,
        scale="log1p",
        min_cells=5,
    )
    estimate = {t: rows["estimate"].to_numpy() for t, rows in single.groupby("treatment")}
    np.testing.assert_allclose(table["effect"], estimate["A+B+C"])
    np.testing.assert_allclose(table["additive"], sum(estimate[t] for t in "ABC"))


def test_order_names_and_storage_do_not_matter_to_clusters(cells):
    outcomes, treatment, groups = cells
    outcomes = np.where(outcomes > 1.4, outcomes, 0)
    rng = np.random.default_rng(8)
    # Arms have some donors in common.
    donor = rng.integers(5, size=900) + treatment
    names = rng.permutation(10)
    tables = []
    for rows, code in ((np.arange(900), donor), (rng.permutation(900), names[donor])):
        for matrix, size in ((outcomes[rows], None), (sparse.csr_matrix(outcomes[rows]), 3)):
            tables.append(
                run(
                    matrix,
                    treatment[rows],
                    groups[rows],
                    [TRIPLE, PAIR],
                    ["x", "y"],
                    clusters=code[rows],
                    min_cells=5,
                    chunk_size=size,
                )
            )
    assert set(tables[0]["note"]) == {""}
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-9)


@pytest.mark.parametrize("n_donors", [4, 12])
@pytest.mark.parametrize("design", ["across", "partly", "nested"])
def test_clusters_cover_where_cells_do_not(design, n_donors):
    """Effects that add up, donors that differ and respond differently; genes are the repeats."""
    rng = np.random.default_rng(n_donors)
    n_genes = 2000
    shift = {"across": 0, "partly": n_donors // 4, "nested": n_donors}[design]
    treatment = np.repeat(np.arange(6), 20 * n_donors)
    donor = np.tile(np.repeat(np.arange(n_donors), 20), 6) + shift * treatment
    n_all = donor.max() + 1
    effect = np.array([0, 0.5, -0.3, 0.2, 0.2, 0.4])[treatment, None]
    of_donor = 0.5 * rng.normal(size=(n_all, n_genes))
    of_response = 0.4 * rng.normal(size=(n_all, 6, n_genes))
    outcomes = 4 + effect + of_donor[donor] + of_response[donor, treatment]
    outcomes += rng.normal(size=outcomes.shape)
    covered = {}
    for name, clusters in (("clusters", donor), ("cells", None)):
        table = run(outcomes, treatment, combinations=[PAIR, TRIPLE], clusters=clusters)
        holds = (table["ci_low"] < 0) & (table["ci_high"] > 0)
        covered[name] = holds.groupby(table["treatment"]).mean()
    # Five standard errors of a share of 2000 are 0.024; few donors in some arms err safely.
    assert covered["clusters"].between(0.90, 0.99).all()
    assert (covered["cells"] < 0.80).all()


def test_too_few_clusters_are_skipped_and_named(cells):
    outcomes, treatment, _ = cells
    table = run(outcomes, treatment, combinations=[PAIR, TRIPLE], clusters=np.ones(900, int))
    notes = table.groupby("treatment", sort=False)["note"].first()
    assert notes["A+B"] == "skipped: one cluster of cells with 'A+B', 'A', 'B', 'control'"
    assert table[["interaction", "std_error", "p_value"]].isna().all(axis=None)
    donor = np.where(treatment == 3, 0, np.arange(900) % 4)
    table = run(outcomes, treatment, combinations=[PAIR, TRIPLE], clusters=donor)
    notes = table.groupby("treatment", sort=False)["note"].first()
    assert list(notes) == ["", "skipped: one cluster of cells with 'C'"]


def test_genes_that_do_not_vary_have_no_interval_in_clusters():
    treatment, donor = np.repeat([0, 1, 2, 4], 50), np.tile(np.arange(5), 40)
    outcomes = np.random.default_rng(9).normal(size=(200, 3)) + 3
    outcomes[:, 0] = 0.1 + 0.2 * (treatment == 4)
    outcomes[:, 1] *= np.arange(200) % 40 == 0
    table = run(outcomes, treatment, clusters=donor)
    assert list(table["note"]) == [
        "constant in every arm: no interval",
        "too few expressing cells for an interval",
        "",
    ]
    assert table["p_value"].notna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("combination", "message"),
    [
        ((4, [1], 0), r"'A\+B' has 1 member"),
        ((4, [1, 1], 0), r"'A\+B' uses the arm 'A' twice"),
        ((4, [1, 0], 0), "uses the arm 'control' twice"),
        ((4, [1, 4], 0), r"uses the arm 'A\+B' twice"),
        ((4, [1, 9], 0), "has the code 9, but treatments has 6 names"),
    ],
)
def test_wrong_combinations_are_named(cells, combination, message):
    outcomes, treatment, _ = cells
    with pytest.raises(ValueError, match=message):
        run(outcomes, treatment, combinations=[combination])


def test_wrong_input_is_named(cells):
    outcomes, treatment, _ = cells
    broken = outcomes.copy()
    broken[np.argmax(treatment == 4), 5] = np.nan
    with pytest.raises(ValueError, match="gene 'g5' are NaN"):
        run(broken, treatment)
    with pytest.raises(ValueError, match="gene 'g5' are NaN"):
        run(sparse.csr_matrix(broken), treatment, chunk_size=2)
    with pytest.raises(ValueError, match="groups has the code 1, but 1 names"):
        run(outcomes, treatment, np.ones(900, dtype=int))
    with pytest.raises(ValueError, match="min_cells=1"):
        run(outcomes, treatment, min_cells=1)
    for message, clusters in {
        "clusters has shape": np.zeros(899, dtype=int),
        "clusters holds float64 values": np.where(np.arange(900) < 5, np.nan, 1.0),
        "clusters has negative codes": np.arange(900) - 1,
    }.items():
        with pytest.raises(ValueError, match=message):
            run(outcomes, treatment, clusters=clusters)
    assert run(outcomes, treatment, combinations=[]).empty
    assert run(outcomes, treatment, combinations=[], clusters=treatment).empty
