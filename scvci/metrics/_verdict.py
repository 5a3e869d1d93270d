"""Whether a model is worth its training: said in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd


def add_best_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """Put beside each score the best baseline's for the same pair and metric.

    ``baseline_wins`` says whether that baseline is strictly better than the row's method.
    """
    table = table.reset_index(drop=True)
    baselines = table[table["kind"] == "baseline"]
    sign = np.where(baselines["higher_is_better"], 1.0, -1.0)
    keys = ["treatment", "stratum", "metric"]
    order = (baselines["value"] * sign).sort_values(ascending=False, kind="stable").index
    best = baselines.loc[order].drop_duplicates(keys)[[*keys, "method", "value"]]
    best = best.rename(columns={"method": "best_baseline", "value": "best_baseline_value"})
    table = table.merge(best, on=keys, how="left")
    sign = np.where(table["higher_is_better"], 1.0, -1.0)
    table["baseline_wins"] = sign * (table["best_baseline_value"] - table["value"]) > 0
    return table


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Average scores over (treatment, stratum) pairs, and count where a baseline wins.

    Parameters
    ----------
    table
        Result of :func:`evaluate` or of :func:`scvci.tl.evaluate`.

    Returns
    -------
    One row per model method, metric and kind of pair: ``method``, ``metric``, ``pair``,
    ``value`` (mean over pairs), ``best_baseline`` (the one with the best mean) and
    ``best_baseline_value``, ``baseline_wins`` (whether that mean is better than the method's),
    ``n_pairs`` and ``n_pairs_baseline_wins`` (pairs in which some baseline is better).
    """
    keys = ["metric", "pair"]
    means = table.groupby(["kind", "method", *keys], sort=False)["value"].agg(["mean", "size"])
    means = means.reset_index()
    rows = []
    models = table[table["kind"] == "model"]
    for (method, metric, pair), scores in models.groupby(["method", *keys], sort=False):
        higher = bool(scores["higher_is_better"].iloc[0])
        same = means[(means["metric"] == metric) & (means["pair"] == pair)]
        # Means compare over the same pairs only: a baseline that skips some is left out.
        complete = (same["kind"] == "baseline") & (same["size"] == len(scores))
        baselines = same[complete].set_index("method")["mean"]
        best = None
        if len(baselines):
            best = baselines.idxmax() if higher else baselines.idxmin()
        value = float(scores["value"].mean())
        best_value = float(baselines[best]) if best is not None else float("nan")
        rows.append(
            {
                "method": method,
                "metric": metric,
                "pair": pair,
                "value": value,
                "best_baseline": best,
                "best_baseline_value": best_value,
                "baseline_wins": bool(best_value > value if higher else best_value < value),
                "n_pairs": len(scores),
                "n_pairs_baseline_wins": int(scores["baseline_wins"].sum()),
            }
        )
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """Say where a model is ahead of every baseline and where it is not.

    Parameters
    ----------
    table
        Result of :func:`evaluate` or of :func:`scvci.tl.evaluate`.

    Returns
    -------
    One line per method, metric and kind of pair that some baseline can be compared on, and a last
    one that counts them.
    """
    summary = summarize(table)
    summary = summary[summary["best_baseline"].notna()]
    if summary.empty:
        return "There is no baseline in the table, so nothing to judge the model by."
    lines = []
    for row in summary.itertuples():
        if row.baseline_wins:
            word = "BEHIND"
        else:
            word = "ahead of" if row.value != row.best_baseline_value else "level with"
        lines.append(
            f"{row.metric} ({row.pair}): {row.method} {row.value:.3f} is {word} the best "
            f"baseline, {row.best_baseline} ({row.best_baseline_value:.3f}); a baseline wins in "
            f"{row.n_pairs_baseline_wins} of {row.n_pairs} pairs"
        )
    for method, rows in summary.groupby("method", sort=False):
        n_wins = int(rows["baseline_wins"].sum())
        if n_wins:
            lines.append(f"A baseline beats {method} in {n_wins} of {len(rows)} comparisons.")
        else:
            lines.append(f"No baseline beats {method} in any of {len(rows)} comparisons.")
    return "\n".join(lines)
