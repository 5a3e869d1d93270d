"""Whether a model is worth its training: said in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Standard errors beyond which a method is ahead or behind.
_N_ERRORS = 2.0
_STANDINGS = ["ahead of", "level with", "BEHIND"]


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
    ``best_baseline_value``, ``advantage`` (the mean over pairs of the method's lead on it) with
    its ``std_error`` (NaN for a single pair), ``baseline_wins`` (whether the baseline leads by
    more than two of these, or at all for a single pair), ``n_pairs`` and
    ``n_pairs_baseline_wins`` (pairs in which some baseline is better).

    Notes
    -----
    The error is over pairs, as if they were drawn independently; pairs of one stratum share cells.
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
        best, best_value, lead = None, float("nan"), np.array([np.nan])
        if len(baselines):
            best = baselines.idxmax() if higher else baselines.idxmin()
            best_value = float(baselines[best])
            lead = _lead(table, scores, best) * (1 if higher else -1)
        error = float(lead.std(ddof=1) / np.sqrt(len(lead))) if len(lead) > 1 else float("nan")
        advantage = float(lead.mean())
        rows.append(
            {
                "method": method,
                "metric": metric,
                "pair": pair,
                "value": float(scores["value"].mean()),
                "best_baseline": best,
                "best_baseline_value": best_value,
                "advantage": advantage,
                "std_error": error,
                "baseline_wins": advantage < -_N_ERRORS * np.nan_to_num(error),
                "n_pairs": len(scores),
                "n_pairs_baseline_wins": int(scores["baseline_wins"].sum()),
            }
        )
    return pd.DataFrame(rows)


def _lead(table: pd.DataFrame, scores: pd.DataFrame, baseline: str) -> np.ndarray:
    """How much higher the scores of each pair are than the baseline's."""
    [metric], [pair] = scores["metric"].unique(), scores["pair"].unique()
    chosen = table["kind"].eq("baseline") & table["method"].eq(baseline)
    chosen &= table["metric"].eq(metric) & table["pair"].eq(pair)
    keys = ["treatment", "stratum"]
    others = table.loc[chosen, [*keys, "value"]]
    both = scores[[*keys, "value"]].merge(others, on=keys, suffixes=("", "_baseline"))
    return (both["value"] - both["value_baseline"]).to_numpy(dtype=float)


def verdict(table: pd.DataFrame) -> str:
    """Say where a model is ahead of every baseline and where it is not.

    Parameters
    ----------
    table
        Result of :func:`evaluate` or of :func:`scvci.tl.evaluate`.

    Returns
    -------
    One line per method, metric and kind of pair that some baseline can be compared on, then for
    each method how often it is ahead of the best baseline, level with it (within two standard
    errors over pairs) or behind it, and what to use.
    """
    summary = summarize(table)
    summary = summary[summary["best_baseline"].notna()]
    if summary.empty:
        return "There is no baseline in the table, so nothing to judge the model by."
    standing = [_standing(a, e) for a, e in summary[["advantage", "std_error"]].to_numpy(float)]
    summary = summary.assign(standing=standing)
    lines = [
        f"{row.metric} ({row.pair}): {row.method} {row.value:.3f} is {row.standing} the best "
        f"baseline, {row.best_baseline} ({row.best_baseline_value:.3f}"
        + ("" if np.isnan(row.std_error) else f"; standard error {row.std_error:.3f}")
        + f"); a baseline wins in {row.n_pairs_baseline_wins} of {row.n_pairs} pairs"
        for row in summary.itertuples()
    ]
    for method, rows in summary.groupby("method", sort=False):
        n = rows["standing"].value_counts().reindex(_STANDINGS, fill_value=0)
        ahead, level, behind = n
        lines.append(
            f"{method} is ahead of the best baseline in {ahead}, level with it in {level} and "
            f"behind it in {behind} of {len(rows)} comparisons. {_advice(ahead, behind)}"
        )
    return "\n".join(lines)


def _standing(advantage: float, error: float) -> str:
    margin = _N_ERRORS * np.nan_to_num(error)
    if abs(advantage) <= margin:
        return _STANDINGS[1]
    return _STANDINGS[0] if advantage > 0 else _STANDINGS[2]


def _advice(ahead: int, behind: int) -> str:
    if behind and ahead:
        return "Use it for what it is ahead in, and that baseline where it is behind."
    if behind:
        return "Use the baseline."
    if ahead:
        return "Use it."
    return "The baseline says as much: use the model for what a mean cannot say, single cells."
