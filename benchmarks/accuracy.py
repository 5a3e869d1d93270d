"""Accuracy of methods on data sets: one tidy table, one job per (data set, method, seed).

    uv run python benchmarks/accuracy.py                                # everything
    uv run python benchmarks/accuracy.py --part simulated --workers 4   # one part of it
    uv run python benchmarks/accuracy.py --datasets "kang pairs" --methods VCI ridge --seeds 3

Every job's rows are a file in ``benchmarks/results/jobs``; a job that is there is not run again
unless ``--rerun`` says so. All rows are gathered in ``benchmarks/results/accuracy.csv``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from cases import DATASETS, Case
from joblib import cpu_count
from methods import METHODS, Prediction
from peers import PEERS
from tqdm import tqdm

from scvci.metrics import (
    BASELINES,
    ite_corr,
    log_normalise,
    pearson_delta,
    per_cell_mse,
    pseudobulk,
    r2_delta,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RESULTS = Path(__file__).parent / "results"
METRICS = ["ite_corr", "mse", "pehe", "r2_delta", "r2_change", "pearson_delta", "rmse", "ceiling"]
_PACKAGES = ("scvci", "scvi-tools", "torch", "numpy")
#: What the numbers depend on, for git; the report and texts do not change them.
_CODE = ("scvci", "benchmarks", ":!benchmarks/report*", ":!benchmarks/*.md")

Job = tuple[str, str, int]

# -- what there is to do ------------------------------------------------------------------------

_SIMPLE = [*BASELINES, "ridge", "mixed model of means", "own counts, fold change"]
#: Only where pairs to score have cells to train on.
_MEASURED = [*_SIMPLE, "nearest neighbours", "mean of the pair"]
_ABLATIONS = [m for m in METHODS if m.startswith(("VCI ", "conditional"))]
_ABLATED = ["simulated default", "planted in kang", "kang pairs"]
_KNOWN = ("simulated", "planted")
_CELLS = [d for d in DATASETS if d.endswith(" cells") and d.split()[0] not in _KNOWN]
_UNSEEN = [d for d in DATASETS if d not in _CELLS and d.split()[0] not in _KNOWN]

#: Parts of the benchmark: data sets and methods, by name.
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "simulated": ([d for d in DATASETS if d.startswith("simulated")], [*_MEASURED, "VCI"]),
    "planted": (
        [d for d in DATASETS if d.startswith("planted")],
        [*_MEASURED, "VCI", "VCI keeps state only", "VCI keeps molecules"],
    ),
    "cells": (_CELLS, [*_MEASURED, "VCI"]),
    "unseen": (_UNSEEN, [*_SIMPLE, "VCI"]),
    "ablations": (_ABLATED, ["VCI", *_ABLATIONS]),
    "peers": (_ABLATED, [*_SIMPLE, "VCI", *PEERS]),
}


def choose_jobs(
    parts: list[str] | None,
    datasets: list[str] | None,
    methods: list[str] | None,
    seeds: Iterable[int],
) -> list[Job]:
    """Jobs of the parts, narrowed to data sets and methods; without parts, their product."""
    if parts is None and (datasets or methods):
        pairs = [(d, m) for d in datasets or DATASETS for m in methods or METHODS]
    else:
        pairs = [(d, m) for p in parts or PARTS for d in PARTS[p][0] for m in PARTS[p][1]]
    pairs = [
        (d, m) for d, m in dict.fromkeys(pairs) if d in (datasets or [d]) and m in (methods or [m])
    ]
    return [(d, m, s) for s in seeds for d, m in pairs]


# -- one job ------------------------------------------------------------------------------------


def score(case: Case, prediction: Prediction) -> list[dict]:
    """One row per pair: means always, single cells where their truth is known.

    ``r2_delta`` and ``pearson_delta`` take the predicted level less the control's mean;
    ``r2_change`` takes the predicted change, each method's control subtracted from it.
    ``ceiling`` is the ``r2_delta`` of one random half of the real cells for the other half.
    """
    rows = []
    for (treatment, stratum), kind in case.pairs.items():
        base, guess = case.base[stratum], prediction.means[treatment, stratum]
        if not np.isfinite(guess).all():
            # The mean of a pair that has no cells to train on.
            continue
        scores: dict[str, float] = {}
        cells = (case.query.obs["stratum"] == stratum).to_numpy()
        if case.truth:
            true = pseudobulk(case.truth[treatment][cells])
            scores |= score_cells(case, prediction, treatment, cells)
        else:
            true = pseudobulk(case.real[treatment, stratum])
            scores["ceiling"] = reproducibility(case.real[treatment, stratum], base)
        change = guess - prediction.means[case.control, stratum]
        scores["r2_delta"] = r2_delta(true, guess, base)
        scores["r2_change"] = r2_delta(true, base + change, base)
        scores["pearson_delta"] = pearson_delta(true, guess, base)
        scores["rmse"] = float(np.sqrt(np.mean((true - guess) ** 2)))
        rows.append(
            {"treatment": treatment, "stratum": stratum, "pair": kind, "scores": " ".join(scores)}
            | scores
        )
    return rows


def reproducibility(counts: np.ndarray, base: np.ndarray) -> float:
    """ΔR² of one random half of the cells as a prediction of the other half."""
    order = np.random.default_rng(0).permutation(counts.shape[0])
    first, second = (counts[part] for part in np.array_split(order, 2))
    if min(first.sum(), second.sum()) == 0:
        return float("nan")
    return r2_delta(pseudobulk(second), pseudobulk(first), base)


def score_cells(
    case: Case, prediction: Prediction, treatment: str, cells: np.ndarray
) -> dict[str, float]:
    """Score individual effects and levels within one stratum.

    Where the truth has noise, effects are compared per 10,000 counts and not their logarithms,
    and errors, which its noise would be most of, are left out.
    """
    true, control = (log_normalise(case.truth[t][cells]) for t in (treatment, case.control))
    guess, base = (prediction.cells[t][cells] for t in (treatment, case.control))
    if case.noisy:
        true, control, guess, base = (np.expm1(v) for v in (true, control, guess, base))
        effect = np.maximum(guess, 0) - np.maximum(base, 0)
        return {"ite_corr": ite_corr(true - control, effect)}
    effect = guess - base
    return {
        "ite_corr": ite_corr(true - control, effect),
        "mse": per_cell_mse(true, guess),
        "pehe": float(np.sqrt(per_cell_mse(true - control, effect))),
    }


def _cases(dataset: str, seed: int) -> Iterator[Case | Exception]:
    """Cases of a data set; what stops their making is the last of them."""
    try:
        yield from DATASETS[dataset](seed)
    except Exception as error:  # noqa: BLE001 - an absent data set is a row, not a crash
        yield error


def _reason(error: Exception) -> list[dict]:
    return [{"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}]


def run_job(dataset: str, method: str, seed: int, commit: str = "") -> pd.DataFrame:
    """All cases of one data set with one method; a failure is a row that says why."""
    frames = []
    for case in _cases(dataset, seed):
        name = f"{dataset}/unknown/0" if isinstance(case, Exception) else case.name
        start = time.perf_counter()
        if isinstance(case, Exception):
            rows = _reason(case)
        else:
            try:
                rows = score(case, METHODS[method](case, seed))
            except Exception as error:  # noqa: BLE001 - a method's failure is a result
                rows = _reason(error)
        frame = pd.DataFrame(rows)
        frame.insert(0, "case", name)
        frame.insert(1, "split", name.split("/")[1])
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
    table["versions"] = versions()
    table["commit"] = commit
    return table


def versions() -> str:
    """Versions of what the numbers depend on, as JSON."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return json.dumps(found)


def code_commit() -> str:
    """Last commit that changed the code, and a digest of changes since; "" without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments, "--", *_CODE],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    try:
        commit = git("log", "-1", "--format=%h").strip()
        changes = git("diff", "HEAD") + git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + (f"+{hashlib.sha1(changes.encode()).hexdigest()[:6]}" if changes else "")


# -- all jobs -----------------------------------------------------------------------------------


def job_file(results: Path, dataset: str, method: str, seed: int) -> Path:
    """Where a job's rows are kept."""
    label = f"{dataset}-{method}-{seed}"
    digest = hashlib.sha1(label.encode()).hexdigest()[:6]
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in label)
    return results / "jobs" / f"{safe}-{digest}.csv"


def write(table: pd.DataFrame, file: Path) -> None:
    """Write a table whole or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    table.to_csv(part, index=False)
    part.replace(file)


def is_done(file: Path, commit: str, rerun: str | None) -> bool:
    """Whether a job's rows are there and may stay."""
    if not file.exists() or rerun == "all":
        return False
    rows = pd.read_csv(file)
    if rerun == "errors":
        return "error" not in rows
    return rerun is None or set(rows.get("commit", [])) == {commit}


def _run_and_write(job: Job, file: Path, commit: str) -> None:
    write(run_job(*job, commit=commit), file)


def run_jobs(todo: list[tuple[Job, Path]], commit: str, workers: int = 1) -> None:
    """Run jobs here, or in processes that share the cores."""
    bar = tqdm(total=len(todo), unit="job", file=sys.stderr)
    with bar:
        if workers == 1:
            for job, file in todo:
                bar.set_postfix_str(" · ".join(map(str, job)))
                _run_and_write(job, file, commit)
                bar.update()
            return
        threads = max(1, cpu_count() // workers)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)  # torch and numpy of the workers read it
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_run_and_write, *job, commit) for job in todo]
            for future in as_completed(futures):
                future.result()
                bar.update()


def gather(results: Path) -> pd.DataFrame:
    """All jobs' rows in one table, written beside them."""
    files = sorted((results / "jobs").glob("*.csv"))
    table = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    write(table, results / "accuracy.csv")
    commits = table["commit"].fillna("none").value_counts() if "commit" in table else {}
    if len(commits) > 1:
        counts = ", ".join(f"{commit}: {n}" for commit, n in commits.items())
        print(
            f"Warning: the table mixes rows of different code ({counts}); "
            "--rerun stale runs the chosen jobs of other code again.",
            file=sys.stderr,
        )
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over pairs and seeds, and the standard deviation between seeds."""
    metrics = [m for m in METRICS if m in table]
    keys = ["dataset", "pair", "method"]
    by_seed = table.groupby([*keys, "seed"], sort=False)[metrics].mean()
    mean = by_seed.groupby(keys, sort=False).mean()
    spread = by_seed.groupby(keys, sort=False).std().fillna(0)
    text = mean.map("{:.3f}".format) + " ± " + spread.map("{:.3f}".format)
    return text.mask(mean.isna(), "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="default: every part")
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, …")
    parser.add_argument("--seed-list", type=int, nargs="+", help="these seeds instead")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cores")
    parser.add_argument(
        "--rerun", choices=["errors", "stale", "all"], help="of the chosen jobs, run again …"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args(arguments)
    seeds = chosen.seed_list or range(chosen.seeds)
    jobs = choose_jobs(chosen.part, chosen.datasets, chosen.methods, seeds)
    if not jobs:
        parser.error("no part has these data sets with these methods")
    files = [job_file(chosen.results, *job) for job in jobs]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    commit = code_commit()
    todo = [
        (job, file)
        for job, file in zip(jobs, files, strict=True)
        if not is_done(file, commit, chosen.rerun)
    ]
    print(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them done before", file=sys.stderr)
    try:
        run_jobs(todo, commit, chosen.workers)
    finally:
        if any(file.exists() for file in files):
            gather(chosen.results)
    table = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    with pd.option_context("display.width", 200, "display.max_columns", None):
        if "pair" in table:
            print(summary(table).to_string())
        if "error" in table:
            errors = table.loc[table["error"].notna(), ["dataset", "method", "seed", "error"]]
            print(errors.to_string(max_colwidth=120))


if __name__ == "__main__":
    main()
