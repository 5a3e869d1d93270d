"""Who is ahead, over pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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
