"""Accuracy of methods on data sets: one tidy table, one job per (data set, method, seed).

    uv run python benchmarks/accuracy.py --datasets "simulated default" "kang pairs" --seeds 3

Every job's rows are a file in ``benchmarks/results/jobs``; a job that is there is not run again.
All rows are gathered in ``benchmarks/results/accuracy.csv``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from cases import DATASETS, Case
from methods import METHODS, Prediction, log_normalised
from tqdm import tqdm

from scvci.metrics import ite_corr, pearson_delta, per_cell_mse, pseudobulk, r2_delta

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("scvci", "scvi-tools", "torch", "numpy")


def score(case: Case, prediction: Prediction) -> list[dict]:
    """One row per pair: means always, single cells where their truth is known.

    ``r2_delta`` and ``pearson_delta`` take the predicted level less the control's mean;
    ``r2_change`` takes the predicted change, each method's control subtracted from it.
    """
    rows = []
    for (treatment, stratum), kind in case.pairs.items():
        base, guess = case.base[stratum], prediction.means[treatment, stratum]
        row = {"treatment": treatment, "stratum": stratum, "pair": kind}
        cells = (case.query.obs["stratum"] == stratum).to_numpy()
        if case.truth:
            true = pseudobulk(case.truth[treatment][cells])
            row |= score_cells(case, prediction, treatment, cells)
        else:
            true = pseudobulk(case.real[treatment, stratum])
        change = guess - prediction.means[case.control, stratum]
        row["r2_delta"] = r2_delta(true, guess, base)
        row["r2_change"] = r2_delta(true, base + change, base)
        row["pearson_delta"] = pearson_delta(true, guess, base)
        row["rmse"] = float(np.sqrt(np.mean((true - guess) ** 2)))
        rows.append(row)
    return rows


def score_cells(
    case: Case, prediction: Prediction, treatment: str, cells: np.ndarray
) -> dict[str, float]:
    """Score individual effects and levels within one stratum."""
    true, control = (log_normalised(case.truth[t][cells]) for t in (treatment, case.control))
    guess = prediction.cells[treatment][cells]
    effect = guess - prediction.cells[case.control][cells]
    return {
        "ite_corr": ite_corr(true - control, effect),
        "mse": per_cell_mse(true, guess),
        "pehe": float(np.sqrt(per_cell_mse(true - control, effect))),
    }


def run_job(dataset: str, method: str, seed: int) -> pd.DataFrame:
    """All cases of one data set with one method; a failure is a row that says why."""
    frames = []
    for case in DATASETS[dataset](seed):
        start = time.perf_counter()
        try:
            rows = score(case, METHODS[method](case, seed))
        except Exception as error:  # noqa: BLE001 - a method's failure is a result
            rows = [{"error": f"{type(error).__name__}: {error}"[:300]}]
        frame = pd.DataFrame(rows)
        frame.insert(0, "case", case.name)
        frame["seconds"] = time.perf_counter() - start
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "dataset", dataset)
    table.insert(1, "method", method)
    table.insert(2, "seed", seed)
    table["command"] = (
        f'python benchmarks/accuracy.py --datasets "{dataset}" --methods "{method}" '
        f"--seed-list {seed}"
    )
    table["versions"] = json.dumps({name: version(name) for name in _PACKAGES})
    return table


def job_file(dataset: str, method: str, seed: int) -> Path:
    """Where a job's rows are kept."""
    label = f"{dataset}-{method}-{seed}"
    digest = hashlib.sha1(label.encode()).hexdigest()[:6]
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in label)
    return RESULTS / "jobs" / f"{safe}-{digest}.csv"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over pairs and seeds, and the standard deviation between seeds."""
    metrics = ["ite_corr", "r2_delta", "r2_change", "pearson_delta", "mse", "rmse"]
    metrics = [m for m in metrics if m in table]
    keys = ["dataset", "pair", "method"]
    by_seed = table.groupby([*keys, "seed"], sort=False)[metrics].mean()
    mean = by_seed.groupby(keys, sort=False).mean()
    spread = by_seed.groupby(keys, sort=False).std().fillna(0)
    text = mean.map("{:.3f}".format) + " ± " + spread.map("{:.3f}".format)
    return text.mask(mean.isna(), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, …")
    parser.add_argument("--seed-list", type=int, nargs="+")
    arguments = parser.parse_args()
    seeds = arguments.seed_list or range(arguments.seeds)
    jobs = [(d, m, s) for s in seeds for d in arguments.datasets for m in arguments.methods]
    files = [job_file(*job) for job in jobs]
    for job, file in tqdm(list(zip(jobs, files, strict=True)), unit="job", file=sys.stderr):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            run_job(*job).to_csv(file, index=False)
    everything = [pd.read_csv(f) for f in sorted((RESULTS / "jobs").glob("*.csv"))]
    pd.concat(everything, ignore_index=True).to_csv(RESULTS / "accuracy.csv", index=False)
    table = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(summary(table).to_string())
        if "error" in table:
            print(table.loc[table["error"].notna(), ["dataset", "method", "seed", "error"]])


if __name__ == "__main__":
    main()
