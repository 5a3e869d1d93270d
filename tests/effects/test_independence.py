"""Tests of independence within strata are valid, have power, and look within strata only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binom, false_discovery_control, kstest

from scvci.effects import conditional_independence_test

TESTS = ["auc", "energy"]


def _joint(table):
    """Rows of the joint tests by test."""
    return table.drop_duplicates("test").set_index("test")


def _confounded(rng, n=80, n_latent=2):
    """Z ⟂ T | X, but both depend on X: marginally they are far from independent."""
    x = rng.integers(2, size=n)
    t = (rng.random(n) < 0.25 + 0.5 * x).astype(int)
    z = rng.normal(size=(n, n_latent)) * (1 + x[:, None]) + 2 * x[:, None]
    return z, t, x


def test_p_values_are_uniform_under_the_null():
    """Over 300 small confounded experiments; each test fails for one seed in 10,000."""
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(300):
        table = conditional_independence_test(
            *_confounded(rng), n_permutations=99, min_cells=3, max_cells=60, seed=seed
        )
        p_values.append(_joint(table)["p_value"].loc[TESTS].to_numpy(float))
    p_values = np.array(p_values)
    assert set(np.unique(np.round(p_values * 100, 9) % 1)) <= {0.0, 1.0}
    # Values of a grid of hundredths, spread over the hundredth below each
    spread = p_values - rng.random(p_values.shape) / 100
    for j in range(len(TESTS)):
        assert kstest(spread[:, j], "uniform").pvalue > 1e-4
        assert (p_values[:, j] <= 0.05).sum() <= binom.ppf(1 - 1e-4, 300, 0.05)


def test_dependence_through_the_stratum_is_no_leak():
    z, t, x = _confounded(np.random.default_rng(0), n=1200)
    within = _joint(conditional_independence_test(z, t, x, n_permutations=199))
    pooled = _joint(conditional_independence_test(z, t, n_permutations=199))
    assert (within["p_value"] > 0.02).all()
    assert within.loc["auc", "statistic"] < 0.55
    assert (pooled["p_value"] == 1 / 200).all()
    assert pooled.loc["auc", "statistic"] > 0.6


@pytest.mark.parametrize("kind", ["shift", "variance"])
def test_shift_and_variance_of_one_latent_are_seen(kind):
    rng = np.random.default_rng(2)
    n = 900
    x, t = rng.integers(2, size=n), rng.integers(3, size=n)
    z = rng.normal(size=(n, 4)) + x[:, None]
    treated = (t == 2) & (x == 0)
    z[treated, 1] = z[treated, 1] + 1.5 if kind == "shift" else 3 * z[treated, 1]
    table = conditional_independence_test(z, t, x, n_permutations=199)
    assert (_joint(table)["p_value"] == 1 / 200).all()
    strata = table[table["stratum"] != "all"].set_index(["test", "stratum"])
    for test in TESTS:
        assert strata.loc[(test, "0"), "q_value"] == pytest.approx(2 / 200)
        assert strata.loc[(test, "1"), "p_value"] > 0.01
    assert strata.loc[("auc", "0"), "statistic"] > 0.6
    assert "0 (" in table.attrs["verdict"]
    assert "1 (" not in table.attrs["verdict"].split("Clearest in")[1]


def test_auc_reaches_one_where_treatments_are_apart(rng):
    t = np.repeat([0, 1, 2], 30)
    z = np.eye(3)[t] * 50 + rng.normal(size=(90, 3))
    table = conditional_independence_test(z, t, n_permutations=39)
    assert _joint(table).loc["auc", "statistic"] == pytest.approx(1)
    assert "do not rely" in table.attrs["verdict"]


def test_energy_share_by_brute_force_and_its_null_mean(rng):
    """1 − W / T by its definition; over relabellings its mean is (k − 1) / (n − 1) exactly."""
    z, t = rng.normal(size=(40, 3)) * [1, 5, 0.1], np.repeat([0, 1, 2], [10, 12, 18])
    scaled = (z - z.mean(0)) / z.std(0)
    within = sum(
        cdist(scaled[t == k], scaled[t == k]).sum() / (2 * (t == k).sum()) for k in range(3)
    )
    total = cdist(scaled, scaled).sum() / (2 * 40)
    row = _joint(conditional_independence_test(z, t, n_permutations=4000)).loc["energy"]
    assert row["statistic"] == pytest.approx(1 - within / total)
    assert row["null_mean"] == pytest.approx(2 / 39, abs=5 * row["null_sd"] / 4000**0.5)


def test_joint_statistic_averages_strata_and_q_values_are_adjusted(rng):
    z, t, x = rng.normal(size=(300, 2)), rng.integers(2, size=300), rng.integers(3, size=300)
    table = conditional_independence_test(z, t, x, n_permutations=99)
    for test, rows in table.groupby("test"):
        joint, strata = rows.iloc[0], rows.iloc[1:]
        assert joint["stratum"] == "all"
        assert joint["n_cells"] == strata["n_cells"].sum() == 300
        np.testing.assert_allclose(
            strata["q_value"].astype(float), false_discovery_control(strata["p_value"])
        )
        assert joint["q_value"] == joint["p_value"]
        if test == "auc":
            mean = np.average(strata["statistic"], weights=strata["n_cells"])
            assert joint["statistic"] == pytest.approx(mean)
        assert (strata["null_q05"] < strata["null_mean"]).all()
        assert (strata["null_mean"] < strata["null_q95"]).all()


def test_order_of_cells_and_units_do_not_matter_and_the_seed_decides(rng):
    z, t, x = _confounded(rng, n=200, n_latent=3)
    arguments = {"n_permutations": 49, "max_cells": 60}
    first = conditional_independence_test(z, t, x, **arguments)
    order = rng.permutation(200)
    pd.testing.assert_frame_equal(
        first, conditional_independence_test(z[order], t[order], x[order], **arguments)
    )
    scaled = conditional_independence_test(z * [10, 0.1, 3] + 7, t, x, **arguments)
    pd.testing.assert_frame_equal(first, scaled)
    other = conditional_independence_test(z, t, x, seed=1, **arguments)
    assert (other["statistic"] != first["statistic"]).all()


def test_a_constant_latent_state_is_independent(rng):
    row = _joint(conditional_independence_test(np.ones((60, 2)), rng.integers(2, size=60)))
    assert row.loc["auc", "statistic"] == pytest.approx(0.5)
    assert row.loc["energy", "statistic"] == 0
    assert (row["p_value"] == 1).all()


def test_strata_that_cannot_be_tested_say_why(rng):
    x = np.repeat(["a", "b", "c"], [100, 40, 10])
    t = np.where(rng.random(150) < 0.5, "drug", "control")
    t[100:] = "control"
    t[100:104], t[140:] = "drug", "rare"
    t[:3] = "rare"
    table = conditional_independence_test(rng.normal(size=(150, 2)), t, x, n_permutations=39)
    notes = table[table["test"] == "auc"].set_index("stratum")["note"]
    assert notes["a"] == "left out, fewer than 10 cells: rare (3)"
    assert notes["b"] == "not tested: only 'control' has 10 or more cells"
    assert notes["c"] == "not tested: only 'rare' has 10 or more cells"
    assert notes["all"] == "2 strata not tested"
    untested = table.set_index("stratum").loc[["b", "c"], ["statistic", "p_value"]]
    assert untested.isna().to_numpy().all()
    assert _joint(table).loc["auc", "n_cells"] == 97

    none = conditional_independence_test(rng.normal(size=(150, 2)), t, x, min_cells=90)
    assert none["p_value"].isna().all()
    assert none.attrs["verdict"].startswith("Not tested")


def test_large_strata_are_drawn_from_evenly(rng):
    t = np.repeat([0, 1, 2, 3], [500, 60, 20, 5])
    table = conditional_independence_test(
        rng.normal(size=(585, 2)), t, n_permutations=39, max_cells=100
    )
    # 40 + 40 + 20; the last has fewer than min_cells.
    assert (table["n_cells"] == 100).all()
    assert (table["n_treatments"] == 3).all()
    many = conditional_independence_test(
        rng.normal(size=(600, 2)), np.arange(600) % 30, n_permutations=39, max_cells=100
    )
    assert (many["n_treatments"] == 10).all()
    assert many["note"].str.contains("20 treatments left out").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": np.zeros((19, 2))}, r"\(19, 2\).*20 treatments"),
        ({"latent": np.full((20, 2), np.nan)}, "NaN"),
        ({"treatment": np.full(20, "control")}, "all cells have the treatment 'control'"),
        ({"n_permutations": 38}, "n_permutations=38.*at least 39"),
        ({"min_cells": 1}, "min_cells=1"),
        ({"max_cells": 15}, "max_cells=15"),
    ],
)
def test_what_is_wrong_is_named(rng, change, message):
    arguments = {"latent": rng.normal(size=(20, 2)), "treatment": np.arange(20) % 2, **change}
    with pytest.raises(ValueError, match=message):
        conditional_independence_test(**arguments)


def _posteriors(rng, sizes, spread, shift=0.0):
    """Latent states N(0, 1) in both arms, of which one arm's cells tell less."""
    std = np.concatenate([np.full((n, 3), s) for n, s in zip(sizes, spread, strict=True)])
    treatment = np.repeat(["a", "b"], sizes)
    mean = np.sqrt(1 - std**2) * rng.normal(size=std.shape) + shift * (treatment == "b")[:, None]
    return mean, treatment, std


def test_cells_that_tell_less_about_themselves_are_no_leak():
    """Draws have one distribution; means do not, and their spread is reported apart."""
    rng = np.random.default_rng(5)
    p_values = []
    for seed in range(60):
        z, t, std = _posteriors(rng, (120, 60), (0.6, 0.25))
        table = conditional_independence_test(z, t, std=std, n_permutations=99, seed=seed)
        joint = _joint(table)
        p_values.append(joint.loc[TESTS, "p_value"].to_numpy(float))
        assert joint.loc["spread", "p_value"] == 0.01
        assert joint.loc["spread", "statistic"] > 0.95
    p_values = np.array(p_values)
    assert ((p_values <= 0.05).sum(axis=0) <= binom.ppf(1 - 1e-4, 60, 0.05)).all()
    assert (p_values.mean(axis=0) < 0.65).all()
    of_means = _joint(conditional_independence_test(z, t, n_permutations=99))
    assert of_means.loc["auc", "p_value"] == 0.01
    verdict = conditional_independence_test(z, t, std=std).attrs["verdict"]
    assert "No sign of the treatment" in verdict
    assert "tell less about themselves" in verdict


def test_a_leak_is_seen_in_draws_as_well():
    z, t, std = _posteriors(np.random.default_rng(6), (150, 150), (0.5, 0.5), shift=0.5)
    table = conditional_independence_test(z, t, std=std, n_permutations=199)
    joint = _joint(table)
    assert (joint.loc[TESTS, "p_value"] <= 0.01).all()
    assert joint.loc["spread", "statistic"] == pytest.approx(0.5, abs=0.05)
    assert "registering what differs" in table.attrs["verdict"]


def test_one_draw_without_spread_is_the_state_itself():
    z, t, _ = _confounded(np.random.default_rng(7))
    plain = conditional_independence_test(z, t, n_permutations=99)
    drawn = conditional_independence_test(z, t, std=0 * z, n_draws=1, n_permutations=99)
    assert list(plain["test"]) == TESTS
    np.testing.assert_allclose(drawn["statistic"][:2], plain["statistic"], atol=0.05)
    with pytest.raises(ValueError, match="std of shape"):
        conditional_independence_test(z, t, std=-np.ones_like(z))


def test_a_leak_that_a_linear_classifier_cannot_see_is_not_called_harmless():
    """Two latents go together in one arm and against each other in the other."""
    rng = np.random.default_rng(9)
    t = np.repeat([0, 1], 300)
    first = rng.normal(size=600)
    z = np.stack([first, np.where(t == 1, 1, -1) * first], axis=1) + 0.1 * rng.normal(
        size=(600, 2)
    )
    verdict = conditional_independence_test(z, t, n_permutations=99).attrs["verdict"]
    assert "hardly sees" in verdict
    assert "trace" not in verdict
