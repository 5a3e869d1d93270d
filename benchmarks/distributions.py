"""Predicted single cells against real ones: distances, covariances, and what two halves differ by.

    uv run python benchmarks/distributions.py
    uv run python benchmarks/distributions.py --datasets kang --splits cells

For each real data set cells are held out, a model with the defaults is trained without them, and
counts are drawn for the controls of each stratum under the treatment (`scvci.tl.evaluate`). Beside
them are baselines as cells (controls shifted by a mean change, real cells of other strata, the
pair's own other cells) and one random half of the real cells. Lower is better; *±* is the standard
error over pairs. Rows go to ``benchmarks/results/distributions.csv``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import pandas as pd
from cases import DATA, STRATA, read_cells

from scvci.metrics._verdict import standard_error
from scvci.model import VCI
from scvci.tl import evaluate

_DATASETS = ("kang", "kang_donors", "papalexi", "hagai_lps")
_METRICS = ["energy_distance", "mmd", "covariance_error"]
#: Most trainings for a data set and split.
_MAX_FOLDS = 4
RESULTS = Path(__file__).parent / "results" / "distributions.csv"


def measure(name: str, split: str, seed: int, max_epochs: int | None = None) -> pd.DataFrame:
    """Rows of :func:`scvci.metrics.evaluate` on the distributions of a data set's cells."""
    adata = read_cells(name).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, categorical_covariate_keys=[STRATA[name]])
        table = evaluate(
            VCI(adata, seed=seed),
            split,
            max_folds=_MAX_FOLDS,
            n_samples=1,
            max_epochs=max_epochs,
            show_progress=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    table = table[table["metric"].isin(_METRICS) & ~table["method"].str.contains("change\\)")]
    return table.assign(dataset=name, split=split, seed=seed)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs with their standard errors, a column for each metric."""
    keys = ["dataset", "split", "method"]
    cells = table.groupby([*keys, "metric", "treatment", "stratum"], sort=False)["value"].mean()
    by = cells.groupby([*keys, "metric"], sort=False)
    text = by.mean().map("{:.3f}".format)
    text += " ± " + by.agg(lambda values: standard_error(values.to_numpy())).map("{:.3f}".format)
    wide = text.unstack("metric").reindex(columns=_METRICS)
    return wide.assign(pairs=by.size().unstack("metric").max(axis=1))


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=_DATASETS, default=_DATASETS)
    parser.add_argument(
        "--splits", nargs="+", choices=["pairs", "cells"], default=["pairs", "cells"]
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="default: the model's own")
    chosen = parser.parse_args()
    if not DATA.exists():
        parser.error("the real data are not beside the project")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tables = []
    for name in chosen.datasets:
        for split in chosen.splits:
            for seed in range(chosen.seeds):
                tables.append(measure(name, split, seed, chosen.epochs))
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                pd.concat(tables).to_csv(RESULTS, index=False)
                print(summary(tables[-1]).to_string(), flush=True)


if __name__ == "__main__":
    main()
