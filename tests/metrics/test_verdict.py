"""Who is ahead, over pairs."""

from __future__ import annotations

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
        ([-0.1, -0.2, -0.15, -0.12], "BEHIND", "Use the baseline."),
        ([0.1, -0.2, 0.15, -0.12], "level with", "single cells"),
        ([-0.009, 0.004, 0.003, -0.001], "level with", "single cells"),
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
