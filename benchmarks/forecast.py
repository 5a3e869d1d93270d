"""What the mixed model of means makes of pairs that were not measured.

    uv run python benchmarks/forecast.py

No model is trained. Every pair is left out in turn, or with ``strata`` all treated pairs of a
stratum, and its change from the control is predicted from the others: the mean over strata, the
mixed model with normal effects (its best linear prediction), with a mixture of scales for what
each treatment does, and from controls whose levels are pooled over strata. Screens are simulated
in which treatments change few genes strongly up to all weakly; real data lie beside the project.
Printed are shares of the variance of changes over genes and correlations, both of summed counts.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from cases import DATA, STRATA

from scvci.pooling import PairMeans, Pairs, effect_variances, forecast, pair_means, pool_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

_REAL = ("papalexi", "kang", "kang_donors", "mcfaline", "hagai_lps")
#: Share of genes that a treatment changes and the standard deviation of log-fold changes.
SCREENS = {
    "few strong genes": (0.02, 1.5),
    "some genes": (0.05, 1.0),
    "half of the genes": (0.5, 0.3),
    "all genes": (1.0, 0.1),
}
#: Pairs with fewer cells are not judged.
_MIN_CELLS = 20


def screen(name: str, seed: int, n_arms: int = 21, n_strata: int = 3) -> tuple:
    """Simulate shares of counts, arms and strata; two in five treatments do nothing."""
    rng, n_genes = np.random.default_rng(seed), 300
    share, size = SCREENS[name]
    level = rng.normal(0, 1.2, n_genes) + rng.normal(0, 0.3, (n_strata, 1, n_genes))
    changed = (rng.random((n_arms, n_genes)) < share) & (rng.random((n_arms, 1)) < 0.6)
    effect = np.where(changed, rng.normal(0, size, changed.shape), 0.0)
    effect[0] = 0
    rate = np.exp(level + effect * (1 + 0.3 * rng.normal(size=(n_strata, n_arms, n_genes))))
    rate /= rate.sum(axis=-1, keepdims=True)
    cells = np.where(np.arange(n_arms) == 0, 240, 60)
    stratum, arm = (v.ravel() for v in np.indices((n_strata, n_arms)))
    stratum, arm = np.repeat(stratum, cells[arm]), np.repeat(arm, cells[arm])
    library = 2000 * np.exp(0.4 * rng.normal(size=(len(arm), 1)))
    noise = rng.gamma(4, 1 / 4, (len(arm), n_genes))
    return rng.poisson(library * rate[stratum, arm] * noise), arm, stratum


def real(name: str) -> tuple:
    """Read counts, arms (0 is the control) and strata of a data set beside the project."""
    adata = anndata.read_h5ad(DATA / f"{name}.h5ad")
    arms = ["control", *sorted(set(adata.obs["treatment"]) - {"control"})]
    arm = pd.Categorical(adata.obs["treatment"], categories=arms).codes.astype(int)
    return adata.X.toarray(), arm, pd.factorize(adata.obs[STRATA[name]], sort=True)[0]


def means_of(counts: np.ndarray, arm: np.ndarray, stratum: np.ndarray) -> tuple:
    """Means of all pairs on the scale of effects, and their cells."""
    pairs, n = Pairs.count(stratum, arm, stratum.max() + 1, arm.max() + 1)
    moments = []
    for x, t in zip(pairs.stratum, pairs.treatment, strict=True):
        own = counts[(stratum == x) & (arm == t)].astype(float)
        moments.append((own.mean(axis=0), own.var(axis=0)))
    mean, variance = (np.stack(v) for v in zip(*moments, strict=True))
    return pair_means(pairs, mean, variance, n), n


def judge(means: PairMeans, n_cells: np.ndarray, how: str) -> Iterator[dict]:
    """Scores of each method for each pair that is left out."""
    pairs = means.pairs
    base = means.rows_of(0)[pairs.stratum]
    judged = (pairs.treatment > 0) & (n_cells >= _MIN_CELLS) & (base >= 0)
    groups = [[i] for i in np.flatnonzero(judged)]
    if how == "strata":
        groups = [np.flatnonzero(judged & (pairs.stratum == x)) for x in np.unique(pairs.stratum)]
    for rows in groups:
        left = np.ones(len(pairs), dtype=bool)
        left[rows] = False
        if how == "strata":
            left &= (pairs.treatment == 0) | (pairs.stratum != pairs.stratum[rows[0]])
        known = means.take(left)
        variances = effect_variances(known)
        fitted = {
            "normal": forecast(known, variances, adaptive=False),
            "mixture": forecast(known, variances),
        }
        pooled = pool_levels(known, control=0)
        fitted["mixture, levels pooled"] = forecast(pooled, effect_variances(pooled))
        for i in rows:
            x, t = pairs.stratum[i], pairs.treatment[i]
            others = left & (pairs.treatment == t) & (base >= 0)
            if not others.any():
                continue
            control, true = means.value[base[i]], means.value[i] - means.value[base[i]]
            changes = {"mean over strata": (means.value - means.value[base])[others].mean(axis=0)}
            for name, found in fitted.items():
                changes[name] = found.at(np.array([x]), np.array([t]))[0] - control
            for name, change in changes.items():
                explained = 1 - ((true - change) ** 2).sum() / ((true - true.mean()) ** 2).sum()
                correlation = np.corrcoef(true, change)[0, 1]
                yield {"method": name, "ΔR²": explained, "Δ-Pearson": correlation}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of simulated screens")
    arguments = parser.parse_args()
    rows = []
    for name in SCREENS:
        for seed in range(arguments.seeds):
            scores = judge(*means_of(*screen(name, seed)), "pairs")
            rows += [{"data": name, "held out": "pairs", "seed": seed, **row} for row in scores]
    for name in _REAL if DATA.exists() else ():
        measured = means_of(*real(name))
        for how in ("pairs", "strata"):
            rows += [
                {"data": name, "held out": how, "seed": 0, **row} for row in judge(*measured, how)
            ]
    by = pd.DataFrame(rows).groupby(["data", "held out", "method"], sort=False)
    table = by[["ΔR²", "Δ-Pearson"]].agg(["mean", "median"]).assign(pairs=by.size())
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
