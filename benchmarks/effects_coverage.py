"""Do 95 % intervals of effects cover? Simulated experiments with known effects, by regime.

    uv run python benchmarks/effects_coverage.py                       # all regimes
    uv run python benchmarks/effects_coverage.py --experiments 5 --regimes confounded "no effect"

Experiments and their truth are in ``effects_experiments.py``. Results are printed, and written to
``benchmarks/results/effects_coverage*.csv``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from effects_experiments import REGIMES, ROBUST, Experiment, expected_outcome, run_experiment
from scipy import stats
from tqdm import tqdm

from scvci.effects import estimate_effects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = Path(__file__).parent / "results"
MIN_CELLS = 30
_OTHER_SCALES = ("confounded", "30 treated cells", "shallow", "no effect", "donors across arms")


def score(experiment: Experiment, scale: str = "log1p", **options: Any) -> pd.DataFrame:
    """Effects of an experiment with their truth, by stratum and over all cells."""
    names, means = experiment.names, experiment.truth.means(scale)
    tables = []
    for groups in (experiment.stratum, None):
        table = estimate_effects(
            experiment.outcomes,
            experiment.treatment,
            experiment.stratum,
            reference=names["treatments"][0],
            groups=groups,
            group_names=names["strata"],
            scale=scale,
            min_cells=MIN_CELLS,
            **names,
            **options,
        )
        averaged = _average(means, experiment, groups)
        effect = averaged[:, :, 0] - averaged[:, :, 1]
        if scale == "lfc":
            effect = np.log2(averaged[:, :, 0] / averaged[:, :, 1])
        table["truth"] = effect.ravel()
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table["covered"] = (table["ci_low"] <= table["truth"]) & (table["truth"] <= table["ci_high"])
    return table


def _average(means: np.ndarray, experiment: Experiment, groups: np.ndarray | None) -> np.ndarray:
    """Means under both treatments of every contrast, ``(n_targets, n_groups, 2, n_genes)``.

    Over all cells the average is, as the estimator's, over the strata with enough cells.
    """
    n_strata, n_treatments, _ = means.shape
    counts = np.zeros((n_strata, n_treatments))
    np.add.at(counts, (experiment.stratum, experiment.treatment), 1)
    averaged = []
    for t in range(1, n_treatments):
        both = means[:, [t, 0]]
        if groups is None:
            enough = counts[:, [t, 0]].min(axis=1) >= MIN_CELLS
            weights = counts.sum(axis=1) * (enough if enough.any() else 1)
            both = np.einsum("x,xag->ag", weights / weights.sum(), both)[None]
        averaged.append(both)
    return np.array(averaged)


def predictions_of(experiment: Experiment, leak: float) -> Callable[[int, slice], np.ndarray]:
    """Means given the true latent state; plus a share of the effect of the cell's treatment."""
    truth = experiment.truth
    means = truth.means("log1p")
    own = (means - means[:, :1])[experiment.stratum, experiment.treatment]
    predicted = [
        expected_outcome(log_rate, truth.parameters, "log1p") + leak * own
        for log_rate in experiment.log_rates
    ]
    return lambda code, genes: predicted[code][:, genes]


# -- tables -------------------------------------------------------------------------------------


def coverage(n_experiments: int, regimes: list[str], scale: str = "log1p") -> pd.DataFrame:
    """Rows of all experiments with the default estimator, with and without clusters."""
    tables = []
    for name in regimes:
        regime = REGIMES[name]
        for seed in tqdm(_seeds(name, n_experiments), desc=f"{name}, {scale}"):
            experiment = run_experiment(regime, seed)
            options: dict[str, dict[str, Any]] = {"cells": {}}
            if experiment.donor is not None:
                options = {"clusters": {"clusters": experiment.donor}, "cells": {}}
            for unit, arguments in options.items():
                table = score(experiment, scale, **arguments)
                tables.append(table.assign(regime=name, seed=seed, unit=unit))
    columns = ["regime", "unit", "seed", "treatment", "stratum", "gene", "estimate", "std_error"]
    columns += ["ci_low", "ci_high", "p_value", "q_value", "truth", "covered", "note"]
    return pd.concat(tables, ignore_index=True)[columns]


def summarize_coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage, false discoveries and uniformity of p-values of every regime."""
    summary = []
    for (regime, unit), part in rows.groupby(["regime", "unit"], sort=False):
        tested = part[part["p_value"].notna()]
        null = tested["truth"].abs() < 1e-9
        lists = tested.groupby(["seed", "treatment", "stratum"])
        discovered = tested["q_value"] < 0.1
        false = (discovered & null).groupby([tested[c] for c in lists.keys]).sum()
        found = discovered.groupby([tested[c] for c in lists.keys]).sum()
        p_null = tested.loc[null, "p_value"]
        by_seed = [stats.kstest(p, "uniform").pvalue for _, p in _null_lists(tested[null])]
        summary.append(
            {
                "regime": regime,
                "errors of": unit,
                "experiments": part["seed"].nunique(),
                "cases": len(tested),
                "without interval": part["p_value"].isna().mean(),
                "coverage": tested["covered"].mean(),
                "coverage, average": tested.loc[tested["stratum"] == "all", "covered"].mean(),
                "false discovery rate": (false / found.clip(lower=1)).mean(),
                "found": found.mean(),
                "p < 0.05 | null": (p_null < 0.05).mean(),
                "KS distance": stats.kstest(p_null, "uniform").statistic,
                "lists with KS p < 0.05": np.mean(np.array(by_seed) < 0.05),
            }
        )
    return pd.DataFrame(summary)


def _null_lists(rows: pd.DataFrame) -> Iterator[tuple[Any, np.ndarray]]:
    """P-values of one list each: those of a list are nearly independent."""
    for key, part in rows.groupby(["seed", "treatment", "stratum"]):
        yield key, part["p_value"].to_numpy()


def robust(n_experiments: int) -> pd.DataFrame:
    """Robust against observed: length and coverage, and how the guard catches leaks."""
    rows = []
    for name, regime in ROBUST.items():
        for seed in tqdm(_seeds(name, n_experiments), desc=f"robust, {name}"):
            experiment = run_experiment(regime, seed)
            observed = score(experiment)
            for leak, weight in ((0.0, None), (0.0, 1.0), (0.5, None), (0.5, 1.0)):
                table = score(
                    experiment,
                    estimator="robust",
                    prediction_weight=weight,
                    predictions=predictions_of(experiment, leak),
                )
                rows.append(_compare(table, observed, name, seed, leak, weight))
    keys = ["noise", "leak", "prediction_weight"]
    return pd.DataFrame(rows).groupby(keys, sort=False).mean().drop(columns="seed").reset_index()


def _compare(
    table: pd.DataFrame,
    observed: pd.DataFrame,
    name: str,
    seed: int,
    leak: float,
    weight: float | None,
) -> dict[str, Any]:
    fine = table["std_error"].notna() & observed["std_error"].notna()
    ratio = table["std_error"] / observed["std_error"]
    # What half of the effect does to an interval: more than its half-width is a leak that matters.
    matters = fine & (leak * table["truth"].abs() > 1.96 * observed["std_error"])
    kept = fine & ~table["leakage"]
    return {
        "noise": name,
        "leak": leak,
        "prediction_weight": "least variance" if weight is None else f"{weight:g}",
        "seed": seed,
        "length, robust / observed": float(np.exp(np.log(ratio[kept]).mean())),
        "coverage, robust": table.loc[fine, "covered"].mean(),
        "coverage, observed": observed.loc[fine, "covered"].mean(),
        "refused": table.loc[fine, "leakage"].mean(),
        "refused where it matters": table.loc[matters, "leakage"].mean(),
        "runs with a refusal": float(table["leakage"].any()),
    }


def _seeds(name: str, n: int) -> range:
    """Seeds of the experiments of a regime, 1000 apart from those of another."""
    first = 1000 * (1 + [*REGIMES, *ROBUST].index(name))
    return range(first, first + n)


def _has_donors(regime: pd.Series) -> pd.Series:
    return regime.map(lambda name: bool(REGIMES[name].donors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=25, help="per regime")
    parser.add_argument("--scales", type=int, default=10, help="experiments of other scales")
    parser.add_argument("--regimes", nargs="*", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--robust", type=int, default=20, help="experiments per kind of noise")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    pd.set_option("display.width", 200, "display.max_columns", 30, "display.precision", 3)
    if arguments.experiments:
        rows = coverage(arguments.experiments, arguments.regimes)
        rows.to_csv(RESULTS / "effects_coverage_rows.csv.gz", index=False)
        summary = summarize_coverage(rows)
        summary.to_csv(RESULTS / "effects_coverage.csv", index=False)
        print(summary.to_string(index=False))
        right = summary[(summary["errors of"] == "clusters") | ~_has_donors(summary["regime"])]
        share = np.average(right["coverage"], weights=right["cases"])
        rate = right["false discovery rate"].mean()
        print(f"overall, clusters where there are: coverage {share:.4f}, FDR {rate:.4f}")
    for scale in ("counts", "lfc") if arguments.scales else ():
        regimes = [name for name in arguments.regimes if name in _OTHER_SCALES]
        summary = summarize_coverage(coverage(arguments.scales, regimes, scale))
        summary.to_csv(RESULTS / f"effects_coverage_{scale}.csv", index=False)
        print(f"scale={scale!r}\n{summary.to_string(index=False)}")
    if arguments.robust:
        table = robust(arguments.robust)
        table.to_csv(RESULTS / "effects_coverage_robust.csv", index=False)
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
