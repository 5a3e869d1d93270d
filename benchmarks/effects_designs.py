"""Effects in the designs that laboratories have: do intervals hold, and how much is found.

    uv run python benchmarks/effects_designs.py                        # all designs, 200 each
    uv run python benchmarks/effects_designs.py --designs "cells, depth 5" --experiments 20
    uv run python benchmarks/effects_designs.py --power 30             # beside DESeq2 and Wilcoxon

Counts are negative binomial around log-rates of donors, treatments and batches; the truth is the
log2 fold change of rates. Nothing is fitted, and every default is left as it is. Printed are
coverage of 95 % intervals and false rejections at 5 %, over all and by mean count, with
Monte-Carlo errors over experiments, and false discoveries and power of lists at q < 0.1.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from scvci import tl
from scvci.model import VCI

RESULTS = Path(__file__).parent / "results"
#: Edges of bins of mean counts per 10,000.
_BINS = [0.3, 1.5, 6.0]


@dataclass(frozen=True)
class Design:
    """An experiment with one treatment; rates are per 10,000 counts.

    ``donors`` an arm (0: cells are independent), of which a share is ``paired`` and the rest is
    nested in arms, ``fewer`` of them treated; ``cells`` of a donor and arm, varied by ``size_sd``
    on the logarithmic scale. ``told`` says what is registered beside donors.
    """

    donors: int = 4
    paired: float = 1.0
    fewer: int = 0
    cells: int = 80
    size_sd: float = 0.3
    types: int = 1
    genes: int = 400
    changed: float = 0.1
    effect: float = 0.7
    donor_sd: float = 0.3
    response_sd: float = 0.15
    dispersion: float = 0.5
    heavy: bool = False
    depth: float = 3000.0
    depth_ratio: float = 1.0
    share_of_one_gene: float = 0.0
    rates: tuple[float, float] = (0.1, 30.0)
    batches: int = 1
    in_second_batch: float = 0.5
    told: str = ""


_NESTED = Design(paired=0.0)
_CELLS = Design(donors=0, cells=150)
DESIGNS: dict[str, Design] = {
    "cells": _CELLS,
    "cells, depth 1.2": replace(_CELLS, depth_ratio=1.2),
    "cells, depth 2": replace(_CELLS, depth_ratio=2),
    "cells, depth 5": replace(_CELLS, depth_ratio=5),
    "cells, composition": replace(_CELLS, share_of_one_gene=0.3),
    "cells, heavy tails": replace(_CELLS, heavy=True),
    "cells, dispersion × 4": replace(_CELLS, dispersion=2.0),
    "cells, rare genes": replace(_CELLS, rates=(0.02, 1.0)),
    "cells, batches 80/20": replace(_CELLS, batches=2, in_second_batch=0.8, told="batch"),
    "paired 3": Design(donors=3),
    "paired 4": Design(),
    "paired 8": Design(donors=8),
    "paired 30": Design(donors=30, cells=20),
    "nested 3": replace(_NESTED, donors=3),
    "nested 4": _NESTED,
    "nested 6": replace(_NESTED, donors=6),
    "nested 2 against 8": replace(_NESTED, donors=8, fewer=6),
    "nested 3 against 12": replace(_NESTED, donors=12, fewer=9),
    "nested 30": replace(_NESTED, donors=30, cells=20),
    "partly paired 6": Design(donors=6, paired=0.5),
    "nested 6, sizes sd 1": replace(_NESTED, donors=6, size_sd=1.0),
    "nested 12, sizes sd 1.5": replace(_NESTED, donors=12, size_sd=1.5),
    "paired 8, sizes sd 1.5": Design(donors=8, size_sd=1.5),
    "nested 6, depth 2": replace(_NESTED, donors=6, depth_ratio=2),
    "nested 6, depth 5": replace(_NESTED, donors=6, depth_ratio=5),
    "paired 6, depth 5": Design(donors=6, depth_ratio=5),
    "nested 6, composition": replace(_NESTED, donors=6, share_of_one_gene=0.3),
    "nested 6, heavy tails": replace(_NESTED, donors=6, heavy=True),
    "nested 6, dispersion × 4": replace(_NESTED, donors=6, dispersion=2.0),
    "nested 6, rare genes": replace(_NESTED, donors=6, rates=(0.02, 1.0)),
    "donors × cell types": Design(donors=6, types=3, cells=60, told="types"),
    "donor as covariate": Design(donors=6, cells=120, size_sd=0.0, told="donor"),
    "wells in batches": replace(_NESTED, donors=6, batches=3, told="batch"),
    "nested 12, batches 80/20": replace(
        _NESTED, donors=12, batches=2, in_second_batch=0.8, told="batch"
    ),
}
POWER = ["paired 4", "nested 4", "nested 6", "paired 8"]


def simulate(design: Design, seed: int) -> tuple[AnnData, np.ndarray]:
    """Simulate counts, and the log2 fold changes of all genes."""
    rng = np.random.default_rng(seed)
    n_donors, n_genes = max(design.donors, 1), design.genes
    n_paired = round(design.paired * n_donors) if design.donors else 1
    # Donors with both arms first, then those of the reference, then the treated.
    of_arms = [(d, t) for d in range(n_paired) for t in (0, 1)]
    n_nested = n_donors - n_paired
    of_arms += [
        (n_paired + i, i % 2)
        for i in range(2 * n_nested)
        if i < 2 * (n_nested - design.fewer * (i % 2))
    ]
    size = design.cells * np.exp(design.size_sd * rng.normal(size=len(of_arms)))
    if not design.donors:
        size[:] = design.cells
    size = np.maximum(size.round().astype(int), 3) * design.types
    donor, treated = (np.repeat(v, size) for v in zip(*of_arms, strict=True))
    batch_of = np.arange(donor.max() + 1) // 2 % design.batches
    if design.batches == 2 and design.donors:
        arms = dict(of_arms)
        rank = {d: sum(arms[e] == arms[d] for e in arms if e < d) for d in arms}
        first = {0: design.in_second_batch, 1: 1 - design.in_second_batch}
        batch_of = np.array([rank[d] >= round(first[arms[d]] * n_donors) for d in sorted(arms)])
        batch_of = batch_of.astype(int)
    batch = batch_of[donor]
    if design.batches == 2 and not design.donors:
        batch = (rng.random(len(donor)) < np.where(treated, 0.8, 0.2)).astype(int)
    cell_type = rng.integers(design.types, size=len(donor))
    base = rng.uniform(*np.log(design.rates), n_genes)
    effect = np.where(
        rng.random(n_genes) < design.changed, rng.normal(0, design.effect, n_genes), 0.0
    )
    spread = np.exp(rng.normal(0, 0.3, n_genes)) * (design.donor_sd if design.donors else 0.0)
    level = spread * rng.normal(size=(donor.max() + 1, n_genes))
    response = rng.normal(size=level.shape) * (design.response_sd if design.donors else 0.0)
    shift = rng.normal(0, 0.5, (design.batches, n_genes)) * (design.batches > 1)
    of_type = rng.normal(0, 0.5, (design.types, n_genes)) * (design.types > 1)
    log_rate = base + level[donor] + shift[batch] + of_type[cell_type]
    rate = np.exp(log_rate + treated[:, None] * (effect + response[donor]))
    library = design.depth * np.exp(rng.normal(0, 0.4, len(donor)))
    library = library / np.where(treated, design.depth_ratio, 1.0)
    noise = rng.gamma(1 / design.dispersion, design.dispersion, rate.shape)
    if design.heavy:
        noise = np.exp(rng.standard_t(3, rate.shape).clip(-6, 6) * 0.5)
        noise /= noise.mean()
    counts = rng.poisson(library[:, None] / 1e4 * rate * noise)
    # All other counts of the cell, so that rates per 10,000 mean what they say.
    rest = rng.poisson(np.maximum(library * (1 - rate.sum(axis=1) / 1e4), 0))
    if design.share_of_one_gene:
        share = design.share_of_one_gene
        kept = np.where(treated, 1 - share, 1.0)
        counts, rest = (rng.binomial(v, k) for v, k in ((counts, kept[:, None]), (rest, kept)))
        large = rng.poisson(np.where(treated, share, 0.001) * library)
        rest = np.stack([rest, large], axis=1)
    counts = np.column_stack([counts, rest])
    obs = pd.DataFrame(
        {
            "treatment": np.where(treated, "drug", "control"),
            "donor": [f"d{d}" for d in donor],
            "cell_type": [f"type{c}" for c in cell_type],
            "batch": [f"b{b}" for b in batch],
        },
        index=[f"c{i}" for i in range(len(donor))],
    )
    adata = AnnData(counts.astype(np.float32), obs=obs)
    return adata, effect / np.log(2)


def table_of(adata: AnnData, design: Design, **arguments: object) -> pd.DataFrame:
    """Effects by the package's defaults."""
    setup: dict[str, object] = {}
    if design.told == "batch":
        setup["batch_key"] = "batch"
    elif design.told == "donor":
        setup["categorical_covariate_keys"] = ["donor"]
    elif design.told == "types":
        setup["categorical_covariate_keys"] = ["cell_type"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, **setup)
        cluster = "donor" if design.donors else None
        return tl.estimate_effects(adata, "drug", cluster_key=cluster, **arguments)


def measures(table: pd.DataFrame, truth: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Coverage, false rejections and the list of one experiment."""
    table = table.iloc[: len(truth)]
    p_value, found = table["p_value"].to_numpy(), (table["q_value"] < 0.1).to_numpy()
    tested, null = np.isfinite(p_value), truth == 0
    covered = ((table["ci_low"] <= truth) & (truth <= table["ci_high"])).to_numpy()
    result = {
        "coverage": covered[tested].mean(),
        "p < .05 | null": (p_value < 0.05)[tested & null].mean(),
        "FDR": (found & null).sum() / max(found.sum(), 1),
        "power": found[~null].mean() if (~null).any() else np.nan,
    }
    for i, name in enumerate(["rare", "low", "middle", "high"]):
        inside = tested & (np.digitize(mean, _BINS) == i)
        result[f"coverage, {name}"] = covered[inside].mean() if inside.sum() > 9 else np.nan
        inside &= null
        result[f"null, {name}"] = (p_value < 0.05)[inside].mean() if inside.sum() > 9 else np.nan
    return result


def run(names: list[str], n_experiments: int) -> pd.DataFrame:
    """All designs: means over experiments and their Monte-Carlo errors."""
    rows = []
    for name in names:
        found = []
        for seed in range(n_experiments):
            adata, truth = simulate(DESIGNS[name], 1000 * list(DESIGNS).index(name) + seed)
            total = adata.X.sum(axis=1, keepdims=True)
            mean = (adata.X / np.maximum(total, 1) * 1e4).mean(axis=0)[: len(truth)]
            found.append(measures(table_of(adata, DESIGNS[name]), truth, mean))
        table = pd.DataFrame(found)
        error = table[["coverage", "p < .05 | null"]].std() / np.sqrt(len(table))
        row = {"design": name, **table.mean()}
        row |= {f"± {column}": value for column, value in error.items()}
        rows.append(row)
        print(pd.DataFrame(rows[-1:]).round(3).to_csv(index=False, header=len(rows) == 1).strip())
    return pd.DataFrame(rows)


def power(n_experiments: int) -> pd.DataFrame:
    """List genes by the default, DESeq2 on the same pseudobulks, and Wilcoxon's test of cells."""
    rows = []
    for name in POWER:
        design = DESIGNS[name]
        for seed in range(n_experiments):
            adata, truth = simulate(design, 500_000 + 1000 * POWER.index(name) + seed)
            tables = {
                "scvci": table_of(adata, design),
                "DESeq2": table_of(adata, design, estimator="deseq2"),
                "Wilcoxon, cells": _wilcoxon(adata),
            }
            for method, table in tables.items():
                table = table.iloc[: len(truth)]
                rows.append(
                    pd.DataFrame(
                        {
                            "design": name,
                            "method": method,
                            "seed": seed,
                            "true": truth != 0,
                            "found": (table["q_value"] < 0.1).to_numpy(),
                            "p": table["p_value"].to_numpy(),
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def _wilcoxon(adata: AnnData) -> pd.DataFrame:
    values = np.log1p(adata.X / adata.X.sum(axis=1, keepdims=True) * 1e4)
    treated = (adata.obs["treatment"] == "drug").to_numpy()
    p_value = stats.mannwhitneyu(values[treated], values[~treated]).pvalue
    q_value = stats.false_discovery_control(np.nan_to_num(p_value, nan=1.0))
    return pd.DataFrame({"p_value": p_value, "q_value": q_value})


def summarize_power(rows: pd.DataFrame) -> pd.DataFrame:
    """Power and false discoveries at q < 0.1, and the power where a tenth of a list is false."""
    summary = []
    for (design, method), part in rows.groupby(["design", "method"], sort=False):
        lists = part.groupby("seed")
        false = lists.apply(lambda x: (x["found"] & ~x["true"]).sum() / max(x["found"].sum(), 1))
        ordered = part.sort_values("p")
        rate = (~ordered["true"]).cumsum() / np.arange(1, len(ordered) + 1)
        last = np.flatnonzero(rate <= 0.1).max(initial=-1) + 1
        summary.append(
            {
                "design": design,
                "method": method,
                "power": part.loc[part["true"], "found"].mean(),
                "FDR": false.mean(),
                "± FDR": false.std() / np.sqrt(len(false)),
                "power at FDR .1": ordered["true"].iloc[:last].sum() / part["true"].sum(),
            }
        )
    return pd.DataFrame(summary)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=200, help="per design")
    parser.add_argument("--designs", nargs="*", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--power", type=int, help="experiments of the comparison, nothing else")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    pd.set_option("display.width", 220, "display.max_columns", 30, "display.precision", 3)
    if arguments.power:
        summary = summarize_power(power(arguments.power))
        summary.to_csv(RESULTS / "effects_power.csv", index=False)
    else:
        summary = run(arguments.designs, arguments.experiments)
        summary.to_csv(RESULTS / "effects_designs.csv", index=False)
    print(summary.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
