"""The one-step estimator, the test of leakage that it rests on, and what happens without it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvci.effects import estimate_effects, leakage_test

EFFECT = 0.8
N_CELLS, N_REPEATS = 2000, 300


def names(n_genes, strata="s"):
    return {
        "reference": "control",
        "treatments": ["control", "drug"],
        "strata": list(strata),
        "genes": [f"g{i}" for i in range(n_genes)],
    }


def draw(seed):
    """One stratum, P(T = t) = 0.1, Y = Z + 0.8 T + 0.5 ε; every gene is a repeat."""
    rng = np.random.default_rng(seed)
    treatment = (rng.random(N_CELLS) < 0.1).astype(int)
    latent = rng.normal(size=(N_CELLS, N_REPEATS))
    noise = 0.5 * rng.normal(size=latent.shape)
    return treatment, latent, latent + EFFECT * treatment[:, None] + noise


#: Predictions under the drug, of an effect that is 0.3 too small, by rule.
RULES = {
    "constant": lambda t, z, y: np.full(y.shape, 0.5),
    "true latent": lambda t, z, y: z + 0.5,
    "leaky latent": lambda t, z, y: y - 0.4 * t[:, None] + 0.5,
    "autoencoder": lambda t, z, y: np.where(t[:, None] == 1, y, y + 0.5),
}
#: Bias of the plug-in and of the robust estimator, standard deviation, coverage, rejections.
TABLE = {
    "constant": (-0.30, 0.00, 0.078, 0.95, 0.0),
    "true latent": (-0.30, 0.00, 0.042, 0.95, 0.05),
    "leaky latent": (-0.26, -0.36, 0.025, 0.00, 0.998),
    "autoencoder": (-0.27, -0.27, 0.025, 0.00, 0.945),
}


@pytest.fixture(scope="module")
def simulations():
    return [draw(seed) for seed in range(3)]


def mean_under_drug(treatment, outcomes, predicted, **options):
    """Mean under the drug: its contrast with an arm whose outcomes and predictions are 0."""
    return estimate_effects(
        np.where(treatment[:, None] == 1, outcomes, 0.0),
        treatment,
        np.zeros(N_CELLS, dtype=int),
        scale="counts",
        predictions=lambda code, genes: (predicted if code else 0 * predicted)[:, genes],
        **names(N_REPEATS),
        **options,
    )


@pytest.mark.parametrize("rule", RULES)
def test_table_of_the_limitation(simulations, rule):
    plugin_bias, bias, deviation, coverage, rejections = TABLE[rule]
    found = []
    for treatment, latent, outcomes in simulations:
        predicted = RULES[rule](treatment, latent, outcomes)
        plugin = mean_under_drug(treatment, outcomes, predicted, estimator="plugin")
        # With a level that no test reaches the estimator is not refused.
        robust = mean_under_drug(
            treatment,
            outcomes,
            predicted,
            estimator="robust",
            prediction_weight=1.0,
            leakage_level=1e-15,
        )
        leaks = leakage_test(
            lambda code, genes, m=predicted: m[:, genes],
            treatment,
            np.zeros(N_CELLS, dtype=int),
            targets=["drug"],
            **{k: v for k, v in names(N_REPEATS).items() if k != "reference"},
        )
        covered = (robust["ci_low"] < EFFECT) & (EFFECT < robust["ci_high"])
        found.append(
            (
                plugin["estimate"].mean() - EFFECT,
                robust["estimate"].mean() - EFFECT,
                robust["estimate"].std(),
                covered.mean(),
                (leaks["p_value"] < 0.05).mean(),
            )
        )
    measured = np.mean(found, axis=0)
    # Monte-Carlo errors of 900 repeats: below 0.003 for biases, 0.008 for shares.
    np.testing.assert_allclose(measured[:2], (plugin_bias, bias), atol=0.01)
    assert measured[2] == pytest.approx(deviation, abs=0.004)
    np.testing.assert_allclose(measured[3:], (coverage, rejections), atol=0.03)


@pytest.mark.parametrize("rule", ["leaky latent", "autoencoder"])
@pytest.mark.parametrize("weight", [None, 1.0])
def test_guard_returns_intervals_that_cover(simulations, rule, weight):
    coverage = []
    for treatment, latent, outcomes in simulations:
        predicted = RULES[rule](treatment, latent, outcomes)
        table = mean_under_drug(
            treatment, outcomes, predicted, estimator="robust", prediction_weight=weight
        )
        assert table["leakage"].mean() > 0.95
        refused = table[table["leakage"]]
        assert set(refused["estimator"]) == {"observed"}
        assert refused["note"].str.contains("leakage").all()
        coverage.append((table["ci_low"] < EFFECT) & (EFFECT < table["ci_high"]))
    assert np.mean(coverage) > 0.92


@pytest.mark.parametrize("rule", ["leaky latent", "autoencoder"])
def test_default_does_not_use_predictions_of_measured_arms(simulations, rule):
    coverage = []
    for treatment, latent, outcomes in simulations:
        table = mean_under_drug(treatment, outcomes, RULES[rule](treatment, latent, outcomes))
        assert set(table["estimator"]) == {"observed"}
        coverage.append((table["ci_low"] < EFFECT) & (EFFECT < table["ci_high"]))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.025)


def test_least_variance_is_not_longer_than_observed(simulations):
    treatment, latent, outcomes = simulations[0]
    observed = mean_under_drug(treatment, outcomes, latent, estimator="observed")
    for predicted, shortest in ((latent, 0.6), (-latent, 1.0), (3 * latent, 0.6)):
        table = mean_under_drug(treatment, outcomes, predicted, estimator="robust")
        ratio = table["std_error"] / observed["std_error"]
        # The choice costs one of some two hundred degrees of freedom.
        assert ratio.max() < 1.005
        assert ratio.mean() == pytest.approx(shortest, abs=0.1)


@pytest.mark.parametrize("estimand", ["ate", "att"])
@pytest.mark.parametrize("clustered", [False, True])
def test_predictions_that_are_constant_change_nothing(estimand, clustered):
    rng = np.random.default_rng(5)
    treatment, stratum = rng.integers(2, size=500), rng.integers(2, size=500)
    outcomes = rng.gamma(2, size=(500, 8))
    options = {
        "scale": "counts",
        "estimand": estimand,
        "clusters": rng.integers(5, size=500) if clustered else None,
        **names(8, "xy"),
    }
    observed = estimate_effects(outcomes, treatment, stratum, **options)
    robust = estimate_effects(
        outcomes,
        treatment,
        stratum,
        estimator="robust",
        predictions=lambda code, genes: np.full((500, 8), 2.0 + code)[:, genes],
        **options,
    )
    assert set(robust["estimator"]) == {"robust"}
    pd.testing.assert_frame_equal(
        observed.drop(columns="estimator"), robust.drop(columns="estimator")
    )


def test_robust_is_the_one_step_estimator_with_its_centred_influence():
    rng = np.random.default_rng(6)
    treatment = rng.integers(2, size=400)
    latent = rng.normal(size=(400, 5))
    outcomes = 3 + latent + rng.normal(size=(400, 5))
    predicted = [2 + latent, 3 + 0.5 * latent]
    table = estimate_effects(
        outcomes,
        treatment,
        np.zeros(400, dtype=int),
        estimator="robust",
        prediction_weight=1.0,
        scale="counts",
        predictions=lambda code, genes: predicted[code][:, genes],
        **names(5),
    )
    means, influences = [], []
    for t, m in enumerate(predicted):
        arm = (treatment == t)[:, None]
        residual = outcomes - m
        share = arm.mean()
        means.append((m + arm / share * residual).mean(axis=0))
        centred = residual - residual[arm[:, 0]].mean(axis=0)
        influences.append(m - m.mean(axis=0) + arm / share * centred)
    np.testing.assert_allclose(table["mean_counterfactual"], means[0])
    np.testing.assert_allclose(table["estimate"], means[1] - means[0])
    variance = ((influences[1] - influences[0]) ** 2).sum(axis=0) / 400**2
    # The sums of squares of each arm are divided by its cells less one.
    np.testing.assert_allclose(table["std_error"] ** 2, variance, rtol=0.01)
    assert (table["std_error"] ** 2 > variance).all()


def test_effect_on_the_treated_corrects_the_reference_only():
    rng = np.random.default_rng(7)
    treatment = rng.integers(2, size=400)
    latent = rng.normal(size=(400, 5))
    outcomes = latent + rng.normal(size=(400, 5)) * 0.5 + 4 + treatment[:, None]
    table = estimate_effects(
        outcomes,
        treatment,
        np.zeros(400, dtype=int),
        estimator="robust",
        estimand="att",
        prediction_weight=1.0,
        scale="counts",
        predictions=lambda code, genes: latent[:, genes],
        **names(5),
    )
    treated, reference = treatment == 1, treatment == 0
    residual = outcomes - latent
    expected = residual[treated].mean(axis=0) - residual[reference].mean(axis=0)
    error = residual[treated].var(axis=0, ddof=1) / treated.sum()
    error += residual[reference].var(axis=0, ddof=1) / reference.sum()
    np.testing.assert_allclose(table["estimate"], expected)
    np.testing.assert_allclose(table["std_error"] ** 2, error)
    np.testing.assert_allclose(table["mean_factual"], outcomes[treated].mean(axis=0))


def test_clusters_of_one_cell_are_cells():
    rng = np.random.default_rng(8)
    treatment, stratum = rng.integers(2, size=300), rng.integers(2, size=300)
    latent = rng.normal(size=(300, 6))
    outcomes = latent + rng.gamma(2, size=(300, 6))
    tables = [
        estimate_effects(
            outcomes,
            treatment,
            stratum,
            estimator="robust",
            scale="counts",
            prediction_weight=0.7,
            clusters=clusters,
            predictions=lambda code, genes: latent[:, genes] + code,
            **names(6, "xy"),
        )
        for clusters in (None, np.arange(300))
    ]
    for column in ("estimate", "std_error"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-3)


@pytest.mark.parametrize("clustered", [False, True])
def test_leakage_statistic_is_the_mean_over_all_less_that_of_the_arm(clustered):
    rng = np.random.default_rng(9)
    treatment, stratum = rng.integers(2, size=300), rng.integers(2, size=300)
    predicted = rng.normal(size=(300, 4)) + 0.8 * treatment[:, None] * (np.arange(4) == 0)
    table = leakage_test(
        lambda code, genes: predicted[:, genes],
        treatment,
        stratum,
        clusters=np.arange(300) // 2 if clustered else None,
        **{k: v for k, v in names(4, "xy").items() if k != "reference"},
    )
    assert list(table.columns) == [
        *("treatment", "stratum", "gene", "statistic", "std_error", "p_value", "q_value"),
        "n_cells",
    ]
    for (code, x), rows in table.groupby(["treatment", "stratum"]):
        inside = stratum == "xy".index(x)
        arm = inside & (treatment == ["control", "drug"].index(code))
        if clustered:
            cluster = np.arange(300) // 2
            of_all, of_arm = (
                np.mean([predicted[r & (cluster == c)].mean(axis=0) for c in set(cluster[r])], 0)
                for r in (inside, arm)
            )
            expected = of_all - of_arm
        else:
            expected = predicted[inside].mean(axis=0) - predicted[arm].mean(axis=0)
        np.testing.assert_allclose(rows["statistic"], expected, atol=1e-12)
        assert set(rows["n_cells"]) == {arm.sum()}
    leaking = table["gene"] == "g0"
    assert (table.loc[leaking, "q_value"] < 0.05).all()
    assert (table.loc[~leaking, "q_value"] > 0.05).all()


def test_leakage_test_says_nothing_where_there_are_too_few_cells():
    rng = np.random.default_rng(10)
    treatment = np.repeat([0, 1], [90, 10])
    table = leakage_test(
        lambda code, genes: rng.normal(size=(100, 3))[:, genes],
        treatment,
        np.zeros(100, dtype=int),
        **{k: v for k, v in names(3).items() if k != "reference"},
    )
    assert table["p_value"].isna().all()
    assert set(table["n_cells"]) == {90, 10}
