"""Who is ahead, over pairs."""

from __future__ import annotations

import pandas as pd

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
    assert not row["baseline_wins"]
    assert (row["n_pairs"], row["n_pairs_baseline_wins"]) == (2, 1)
