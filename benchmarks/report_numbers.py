"""Numbers of the accuracy report: means with their spread, and comparisons with baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvci.metrics._verdict import standard_error, two_standard_errors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BASELINES = [
    "no change",
    "treatment mean",
    "additive",
    "low-rank linear",
    "mean of the pair",
    "mixed model of means",
    "ridge",
    "nearest neighbours",
    "own counts, fold change",
]
METRICS = ["ite_corr", "mse", "pehe", "r2_delta", "r2_change", "pearson_delta", "rmse", "ceiling"]
LOWER_IS_BETTER = {"mse", "pehe", "rmse"}
NOT_MEASURED = "not measured"
#: With two values, two standard errors are worth nothing.
_LEAST_UNITS = 3
_ROW = ["seed", "case", "treatment", "stratum"]


def load(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows with scores, and rows that say what failed."""
    table = pd.read_csv(path)
    if "error" not in table:
        table["error"] = None
    for name in METRICS:
        if name not in table:
            table[name] = np.nan
    table[METRICS] = table[METRICS].astype(float).replace([np.inf, -np.inf], np.nan)
    failed = table["error"].notna()
    scores = table[~failed].copy()
    # The seed draws new data where the truth is known; elsewhere it only draws a new fit, and
    # what varies independently is the (treatment, stratum) pair. So it is within a single seed.
    several = scores.groupby("dataset")["seed"].transform(
        lambda seeds: seeds[scores.loc[seeds.index, "method"] == "VCI"].nunique() > 1
    )
    of_cells = scores["mse"].notna() | scores["ite_corr"].notna()
    known = of_cells.groupby(scores["dataset"]).transform("any")
    drawn = several & known
    pair = scores["treatment"].astype(str) + " in " + scores["stratum"].astype(str)
    scores["unit"] = pair.where(~drawn, scores["seed"].astype(str))
    order = sorted(scores["dataset"].unique(), key=_dataset_order)
    scores["dataset"] = pd.Categorical(scores["dataset"], order)
    scores["pair"] = pd.Categorical(scores["pair"], ["seen", "held out"])
    return scores, table[failed]


def _dataset_order(name: str) -> tuple:
    kind = name.split()[0]
    return (
        0 if kind == "simulated" else 1 if kind == "planted" else 2,
        "default" not in name,
        name,
    )


def kind_of(dataset: str) -> str:
    """Whether a data set is simulated, real with planted effects, or real."""
    return {"simulated": "simulated", "planted": "planted"}.get(dataset.split()[0], "real")


def way_to_ceiling(scores: pd.DataFrame) -> pd.DataFrame:
    """ΔR² of the additive baseline, the model and the ceiling, over pairs that have all three."""
    rows = []
    for (dataset, pair), group in scores.groupby(["dataset", "pair"], observed=True):
        wide = group.pivot_table(index=_ROW, columns="method", values="r2_delta")
        if kind_of(dataset) != "real" or not {"VCI", "additive"} <= set(wide):
            continue
        ceiling = group[group["method"] == "VCI"].set_index(_ROW)["ceiling"]
        beside = wide[["additive", "VCI"]].assign(ceiling=ceiling).dropna()
        if len(beside):
            rows.append({"dataset": dataset, "pair": str(pair), **beside.mean()})
    return pd.DataFrame(rows, columns=["dataset", "pair", "additive", "VCI", "ceiling"])


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Per data set, kind of pair, method and metric: mean, spread and standard error."""
    rows = []
    for keys, group in scores.groupby(["dataset", "pair", "method"], observed=True, sort=True):
        for metric in METRICS:
            known = group[group[metric].notna()]
            if known.empty:
                continue
            by_unit = known.groupby("unit")[metric].mean()
            row = dict(zip(["dataset", "pair", "method"], map(str, keys), strict=True))
            row |= {
                "metric": metric,
                "mean": by_unit.mean(),
                "sd_between_seeds": known.groupby("seed")[metric].mean().std(ddof=1),
                "standard_error": standard_error(by_unit),
                "n_seeds": known["seed"].nunique(),
                "n_units": len(by_unit),
                "seconds_per_case": known.groupby(["seed", "case"])["seconds"].first().mean(),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def on_shared_seeds(scores: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Rows of the data sets where some of the methods were run, on the seeds of all of these.

    A seed draws new data, some of it harder; means over different seeds do not compare.
    """
    kept = []
    for _, group in scores.groupby("dataset", observed=True, sort=True):
        run = group[group["method"].isin(methods)]
        if not run.empty:
            shared = set.intersection(*run.groupby("method")["seed"].agg(set))
            kept.append(group[group["seed"].isin(shared)])
    return pd.concat(kept) if kept else scores[:0]


@dataclass(frozen=True)
class Comparison:
    """A method beside another on the same rows; a positive advantage is better."""

    value: float
    other: str
    other_value: float
    advantage: float
    error: float
    n_units: int

    @property
    def verdict(self) -> str:
        """Whether the advantage exceeds two standard errors, and on which side of zero."""
        if not np.isfinite(self.error) or self.n_units < _LEAST_UNITS:
            return "not judged"
        if abs(self.advantage) <= two_standard_errors(self.error, self.n_units):
            return "level"
        return "ahead" if self.advantage > 0 else "behind"


def compare(
    scores: pd.DataFrame, metric: str, method: str = "VCI", others: Iterable[str] = BASELINES
) -> Comparison | None:
    """Compare a method with the best of others on one data set and kind of pair.

    The best is chosen on the rows that are compared, which favours it.
    """
    wide = scores.pivot_table(index=[*_ROW, "unit"], columns="method", values=metric)
    present = [m for m in others if m in wide and m != method]
    if method not in wide or not present:
        return None
    wide = wide[[method, *present]].dropna().groupby("unit").mean()
    if wide.empty:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    mean = wide.mean()
    best = (sign * mean[present]).idxmax()
    gap = sign * (wide[method] - wide[best])
    return Comparison(mean[method], best, mean[best], gap.mean(), standard_error(gap), len(gap))


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare the model with the best baseline, for every data set, kind of pair and metric."""
    rows = []
    for (dataset, pair), group in scores.groupby(["dataset", "pair"], observed=True):
        found = {m: compare(group, m) for m in ("rmse", "r2_delta", "ite_corr", "mse")}
        truth = found["ite_corr"] or found["mse"]
        rows.append(
            {"dataset": dataset, "pair": str(pair), **found}
            | {
                "kind": kind_of(dataset),
                "means": found["rmse"].verdict if found["rmse"] else NOT_MEASURED,
                "individuals": truth.verdict if truth else "no truth",
            }
        )
    columns = ["dataset", "pair", "kind", "rmse", "r2_delta", "ite_corr", "mse"]
    columns += ["means", "individuals"]
    # As objects: pandas would turn a missing comparison into a number.
    return pd.DataFrame({c: pd.Series([row[c] for row in rows], dtype=object) for c in columns})


def failing(compared: pd.DataFrame) -> pd.DataFrame:
    """Comparisons that fail: behind on means, or not ahead on individuals with known truth."""
    return compared[
        (compared["means"] == "behind") | compared["individuals"].isin(["level", "behind"])
    ]
