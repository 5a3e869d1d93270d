"""Who is ahead, over pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from scvci import metrics


def test_summary_by_hand():
    rows = [
        ("a", "x", "model", "m", 1.0),
        ("a", "y", "model", "m", 3.0),
        ("a", "x", "additive", "b", 2.0),
        ("a", "y", "additive", "b", 2.5),
        ("a", "x", "partial", "b", 9.0),
    ]
    table = pd.DataFrame(rows, columns=["treatment", "stratum", "method", "kind", "value"])
    table["kind"] = table["kind"].map({"m": "model", "b": "baseline"})
    table = table.assign(metric="mse", pair="seen", higher_is_better=False)
    table = metrics._verdict.add_best_baseline(table)
    row = metrics.summarize(table).iloc[0]
    assert (row["value"], row["best_baseline_value"], row["best_baseline"]) == (
        2,
        2.25,
        "additive",
    )
    # The model leads by 1 in one pair and is behind by 0.5 in the other.
    assert row["advantage"] == pytest.approx(0.25)
    assert row["std_error"] == pytest.approx(0.75)
    assert not row["baseline_wins"]
    assert (row["n_pairs"], row["n_pairs_baseline_wins"]) == (2, 1)
    assert "level with the best baseline, additive (2.250; standard error 0.750)" in (
        metrics.verdict(table)
    )


@pytest.mark.parametrize(
    ("leads", "standing", "advice"),
    [
        ([0.1, 0.2, 0.15, 0.12], "ahead of", "Use it."),
        ([-0.1, -0.2, -0.15, -0.12], "BEHIND", "the baseline that is named is what to use."),
        ([0.1, -0.2, 0.15, -0.12], "level with", "does as well."),
        ([-0.009, 0.004, 0.003, -0.001], "level with", "does as well."),
        ([0.01], "ahead of", "Use it."),
    ],
)
def test_ahead_means_two_standard_errors(leads, standing, advice):
    rows = [
        ("t", f"x{i}", *row)
        for i, lead in enumerate(leads)
        for row in (("own", "model", 0.5 + i + lead), ("mean", "baseline", 0.5 + i))
    ]
    table = pd.DataFrame(rows, columns=["treatment", "stratum", "method", "kind", "value"])
    table = table.assign(metric="r2_delta", pair="seen", higher_is_better=True)
    text = metrics.verdict(metrics._verdict.add_best_baseline(table))
    assert f"is {standing} the best baseline, mean" in text
    assert text.splitlines()[-1].endswith(advice) or advice in text.splitlines()[-1]


def _table(rows):
    columns = ["treatment", "stratum", "fold", "method", "kind", "value"]
    table = pd.DataFrame(rows, columns=columns).assign(
        metric="r2_delta", pair="seen", higher_is_better=True
    )
    return metrics._verdict.add_best_baseline(table)


def test_folds_of_a_pair_are_compared_with_their_own_baseline():
    rows = []
    for i, lead in enumerate((0.1, 0.3)):
        for fold in range(3):
            rows.append(("t", f"x{i}", fold, "own", "model", fold + lead))
            rows.append(("t", f"x{i}", fold, "mean", "baseline", float(fold)))
    row = metrics.summarize(_table(rows)).iloc[0]
    # Two pairs with leads 0.1 and 0.3, whatever the folds' level.
    assert row["advantage"] == pytest.approx(0.2)
    assert row["std_error"] == pytest.approx(0.1)


def test_scores_that_are_missing_are_no_verdict():
    rows = [("t", x, 0, "own", "model", v) for x, v in (("a", np.nan), ("b", 0.6), ("c", 0.6))]
    rows += [("t", x, 0, "mean", "baseline", 0.5) for x in "abc"]
    text = metrics.verdict(_table(rows))
    assert "own 0.600 is ahead of the best baseline, mean (0.500" in text
    few = [row for row in rows if row[1] != "b" or row[4] == "model"]
    assert "no baseline in the table for the same pairs" in metrics.verdict(_table(few))
    models_missing = _table(rows).query("kind == 'baseline'")
    assert metrics.summarize(models_missing).empty
    assert "no baseline" in metrics.verdict(models_missing)


@pytest.mark.parametrize(("effect", "shows"), [(1.0, True), (0.0, False)])
def test_without_effects_there_is_nothing_to_choose_by(effect, shows):
    rng = np.random.default_rng(0)
    n_genes, arms = 60, ["control", "a", "b", "c", "d"]
    base = rng.gamma(2, 2, size=n_genes)
    change = effect * rng.normal(size=(len(arms), n_genes))
    change[0] = 0
    treatment = np.repeat(np.arange(5), 80)
    counts = rng.poisson(base * np.exp(change[treatment])).astype(np.float32)
    adata = AnnData(counts, obs=pd.DataFrame({"treatment": np.array(arms)[treatment]}))
    adata.obs_names = adata.obs_names.astype(str)
    for i, arm in enumerate(arms):
        adata.layers[arm] = np.tile(base * np.exp(change[i]), (400, 1)).astype(np.float32)
    test = np.arange(400) % 2 == 1
    test &= treatment > 0
    table = metrics.evaluate(adata, {arm: arm for arm in arms}, test=test)
    halves = table[table["kind"] == "ceiling"]
    assert set(halves["method"]) == {"half of the real cells"}
    # No baseline is judged to be one: the ceiling has seen the cells it is compared with.
    assert not (table["best_baseline"] == "half of the real cells").any()
    summary = metrics.summarize(table).set_index(["method", "metric"])
    ceiling = halves.loc[halves["metric"] == "r2_delta", "value"].mean()
    assert summary.loc[("prediction", "r2_delta"), "ceiling"] == pytest.approx(ceiling)
    text = metrics.verdict(table)
    assert ("Not enough cells, or no effects" in text) != shows
    assert ("Use it." in text or "is what to use" in text or "does as well" in text) == shows


def test_baselines_predict_distributions_by_cells():
    """Additive effects between strata: shifted controls are right, controls and others are not."""
    rng = np.random.default_rng(0)
    base = rng.gamma(3, 10, size=(2, 40))
    effect = np.exp(rng.normal(size=40))
    stratum, treatment = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    counts = rng.poisson(base[stratum] * np.where(treatment[:, None], effect, 1.0))
    obs = {"treatment": np.array(["control", "a"])[treatment], "x": np.array(["u", "v"])[stratum]}
    adata = AnnData(counts.astype(np.float32), obs=pd.DataFrame(obs))
    adata.obs_names = adata.obs_names.astype(str)
    adata.layers["a"] = counts.astype(np.float32)
    test = (stratum == 1) & (treatment == 1)
    table = metrics.evaluate(adata, {"a": "a"}, covariate_keys=["x"], test=test)
    held = table[(table["stratum"] == "v") & (table["metric"] == "energy_distance")]
    values = held.set_index("method")["value"]
    assert values["additive"] < 0.2 * values["no change"]
    assert values["additive"] < 0.2 * values["treatment mean"]
    assert abs(values["half of the real cells"]) < 0.1 * values["no change"]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "stratum", "shown"),
    [
        ("kang", "cell_type", True),
        ("hagai_lps", "replicate", True),
        ("mcfaline", "cell_type", False),
    ],
)
def test_whether_effects_show_in_real_data(real_data, name, stratum, shown):
    """Strong effects, a strong one in few cells, and a screen without detectable ones."""
    adata = read_h5ad(real_data / f"{name}.h5ad")
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    treated = (adata.obs["treatment"] != "control").to_numpy()
    arms = adata.obs["treatment"].unique()
    mean = np.asarray(adata.X.mean(axis=0), dtype=np.float32)
    adata.layers["mean"] = np.tile(mean, (adata.n_obs, 1))
    table = metrics.evaluate(
        adata, dict.fromkeys(arms, "mean"), covariate_keys=[stratum], test=treated
    )
    assert ("Not enough cells, or no effects" in metrics.verdict(table)) != shown
