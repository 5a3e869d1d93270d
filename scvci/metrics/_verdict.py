"""Whether a model is worth its training: said in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

#: Standard errors beyond which a method is ahead or behind.
_N_ERRORS = 2.0
_ROUNDING = 1e-9
#: Correlation of effects in halves that the pairs of a stratum may have by their common controls.
_LEAST_AGREEMENT = 0.05
_AHEAD, _LEVEL, _BEHIND = _STANDINGS = ("ahead of", "level with", "BEHIND")
_PAIR = ["treatment", "stratum"]
_COLUMNS = [
    "method",
    "metric",
    "pair",
    "value",
    "best_baseline",
    "best_baseline_value",
    "advantage",
    "std_error",
    "standing",
    "ceiling",
    "baseline_wins",
    "n_pairs",
    "n_pairs_baseline_wins",
]


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
    ``value`` (mean over its scores), ``best_baseline`` (of those that have them all, the one with
    the best mean) and ``best_baseline_value``, ``advantage`` (the mean over pairs of the method's
    lead on it) with its ``std_error`` (NaN for a single pair), ``standing`` (ahead or behind by
    two of these, by Student's quantile of like probability; with one pair by the number alone),
    ``ceiling`` (mean score of one half of the real cells for the other, NaN without),
    ``baseline_wins`` (behind), ``n_pairs`` (scores) and ``n_pairs_baseline_wins`` (scores for
    which some baseline is better).

    Notes
    -----
    The error is over pairs, as if they were drawn independently; pairs of one stratum share cells.
    The baseline is the best of several on the same pairs, which favours it.
    """
    rows = []
    models = table[(table["kind"] == "model") & table["value"].notna()]
    for (method, metric, pair), scores in models.groupby(["method", "metric", "pair"], sort=False):
        higher = bool(scores["higher_is_better"].iloc[0])
        beside = _beside(table, scores, "baseline")
        ceiling = _beside(table, scores, "ceiling")
        best, best_value, lead = None, float("nan"), np.array([np.nan])
        if len(beside.columns):
            means = beside.mean()
            best = means.idxmax() if higher else means.idxmin()
            best_value = float(means[best])
            difference = pd.Series(scores["value"].to_numpy(), index=beside.index) - beside[best]
            # Folds of one pair are no independent pairs.
            lead = difference.groupby(level=_PAIR).mean().to_numpy() * (1 if higher else -1)
        error = standard_error(lead)
        standing = _standing(float(lead.mean()), error, len(lead))
        rows.append(
            (
                method,
                metric,
                pair,
                float(scores["value"].mean()),
                best,
                best_value,
                float(lead.mean()),
                error,
                standing,
                float(ceiling.to_numpy().mean()) if ceiling.size else float("nan"),
                standing == _BEHIND,
                len(scores),
                int(scores["baseline_wins"].sum()),
            )
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _beside(table: pd.DataFrame, scores: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Scores of the methods of a kind that have one for every row, a column for each."""
    keys = [*_PAIR, *(["fold"] if "fold" in table else [])]
    [metric], [pair] = scores["metric"].unique(), scores["pair"].unique()
    chosen = table["kind"].eq(kind) & table["metric"].eq(metric) & table["pair"].eq(pair)
    wide = table[chosen].pivot_table("value", keys, "method", sort=False)
    return wide.reindex(pd.MultiIndex.from_frame(scores[keys])).dropna(axis=1)


def standard_error(values: np.ndarray) -> float:
    """Give the standard error of a mean of independent values; NaN of fewer than two.

    Parameters
    ----------
    values
        The values, shape ``(n,)``.
    """
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def two_standard_errors(error: float, n: int) -> float:
    """Return what is as sure as two standard errors of many values, by Student's quantile.

    Parameters
    ----------
    error
        Standard error of the mean.
    n
        Number of values, at least two.
    """
    return float(stats.t.ppf(stats.norm.cdf(_N_ERRORS), n - 1)) * error


def _standing(advantage: float, error: float, n: int) -> str:
    """Ahead of, level with or behind a baseline; with a single pair by the number alone."""
    if np.isnan(advantage):
        return ""
    margin = two_standard_errors(error, n) if n > 1 else 0.0
    if abs(advantage) <= max(margin, _ROUNDING):
        return _LEVEL
    return _AHEAD if advantage > 0 else _BEHIND


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
    errors over pairs) or behind it, and what to use. Where effects in disjoint halves of the real
    cells do not agree (``agreement``), there is nothing to choose by, and the last line says so
    instead.
    """
    summary = summarize(table)
    summary = summary[summary["best_baseline"].notna()]
    if summary.empty:
        return (
            "There is no baseline in the table for the same pairs, so nothing to judge a model by."
        )
    lines = [
        f"{row.metric} ({row.pair}): {row.method} {row.value:.3f} is {row.standing} the best "
        f"baseline, {row.best_baseline} ({row.best_baseline_value:.3f}"
        + ("" if np.isnan(row.std_error) else f"; standard error {row.std_error:.3f}")
        + f"); a baseline wins in {row.n_pairs_baseline_wins} of {row.n_pairs} pairs"
        for row in summary.itertuples()
    ]
    shown = _agreement_shown(table)
    for method, rows in summary.groupby("method", sort=False):
        ahead, level, behind = (int((rows["standing"] == s).sum()) for s in _STANDINGS)
        lines.append(
            f"{method} is ahead of the best baseline in {ahead}, level with it in {level} and "
            f"behind it in {behind} of {len(rows)} comparisons."
            + (f" {_advice(ahead, behind)}" if shown else "")
        )
    if not shown:
        lines.append(
            "Not enough cells, or no effects: effects measured in one half of the real cells do "
            "not agree with those in the other half. No method can be told from no change here; "
            "measure more cells of these pairs before relying on any."
        )
    return "\n".join(lines)


def _agreement_shown(table: pd.DataFrame) -> bool:
    """Whether effects in halves of the real cells agree, where there is something to tell by."""
    scores = table[table["metric"] == "agreement"]
    if scores.empty:
        return True
    values = scores.groupby(_PAIR, sort=False)["value"].mean().to_numpy()
    mean = float(values.mean())
    standing = _standing(mean, standard_error(values), len(values))
    return mean >= _LEAST_AGREEMENT and standing == _AHEAD


def _advice(ahead: int, behind: int) -> str:
    if behind:
        return "Where it is behind, the baseline that is named is what to use."
    if ahead:
        return "Use it."
    return "For these questions the baseline that is named does as well."
