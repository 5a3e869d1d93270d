"""Batches, continuous confounders and data that a reference has not seen, with known truth.

Effects are means over all cells of a stratum, treated or not, and single cells' where a method has
them. Unbalanced designs keep cells of a screen in which everything is random, so that the truth of
every kept cell stays known.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvci.datasets import simulate_screen
from scvci.metrics import ite_corr, log_normalise, pseudobulk, r2_delta
from scvci.model import VCI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

_RESULTS = Path(__file__).parent / "results" / "covariates.csv"
_CONTROL = "control"
_N_BINS = 5

#: Effect of an arm in a stratum on the mean, and on single cells if the method has them.
type Effects = dict[tuple[str, str], tuple[np.ndarray, np.ndarray | None]]


# -- methods ------------------------------------------------------------------------------------


def _train(adata: AnnData, seed: int, **setup: object) -> VCI:
    VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"], **setup)
    model = VCI(adata, seed=seed)
    model.train(enable_progress_bar=False)
    return model


def _predicted(model: VCI, query: AnnData, arms: list[str]) -> Effects:
    """Effects by the model, on the cells of the query."""
    layers = model.predict_counterfactual([_CONTROL, *arms], query)
    values = [np.asarray(query.layers[layer]) for layer in layers]
    return _effects(query, arms, values)


def _effects(cells: AnnData, arms: list[str], values: list[np.ndarray]) -> Effects:
    """Effects by counts of every cell, under the control first."""
    found = {}
    for x, rows in cells.obs.groupby("cell_type", observed=True).indices.items():
        control = values[0][rows]
        for arm, value in zip(arms, values[1:], strict=True):
            single = log_normalise(value[rows]) - log_normalise(control)
            found[arm, str(x)] = (pseudobulk(value[rows]) - pseudobulk(control), single)
    return found


def _differences(adata: AnnData, arms: list[str], within: np.ndarray) -> Effects:
    """Differences of means to the control, averaged over the levels of ``within``."""
    found: Effects = {}
    treatment = adata.obs["treatment"].astype(str).to_numpy()
    stratum = adata.obs["cell_type"].astype(str).to_numpy()
    for x in np.unique(stratum):
        for arm in arms:
            parts, weights = [], []
            for level in np.unique(within):
                here = (stratum == x) & (within == level)
                groups = [here & (treatment == t) for t in (arm, _CONTROL)]
                if all(group.any() for group in groups):
                    level_means = [pseudobulk(adata.X[group]) for group in groups]
                    parts.append(level_means[0] - level_means[1])
                    weights.append(here.sum())
            if parts:
                found[arm, x] = (np.average(parts, axis=0, weights=weights), None)
    return found


# -- regimes: cells whose truth is known, and every method's effects ------------------------------

type Regime = tuple[AnnData, list[str], dict[str, Effects]]


def _keep(adata: AnnData, chance: np.ndarray, seed: int) -> AnnData:
    return adata[np.random.default_rng(seed).random(adata.n_obs) < chance].copy()


def batches(seed: int) -> Regime:
    """Three batches; each arm is four times as frequent in one of them as in the others."""
    adata = simulate_screen(n_members=3, n_batches=3, batch_effect=0.5, n_cells=9000, seed=seed)
    arms = ["drug_1", "drug_2", "drug_3"]
    arm = pd.Categorical(adata.obs["treatment"].astype(str), [_CONTROL, *arms]).codes
    own = adata.obs["batch"].astype(int).to_numpy() == arm % 3
    adata = _keep(adata, np.where(own, 1.0, 0.25), seed)
    whole, batch = np.zeros(adata.n_obs), adata.obs["batch"].astype(str).to_numpy()
    told_apart = _train(adata.copy(), seed, batch_key="batch")
    ignored = _train(adata.copy(), seed)
    return (
        adata,
        arms,
        {
            "VCI, batch_key": _predicted(told_apart, adata.copy(), arms),
            "VCI, batch ignored": _predicted(ignored, adata.copy(), arms),
            "means": _differences(adata, arms, whole),
            "means within batches": _differences(adata, arms, batch),
        },
    )


def confounder(seed: int) -> Regime:
    """Let a covariate raise the chance of treatment and move expression."""
    adata = simulate_screen(n_members=3, n_strata=1, n_cells=9000, seed=seed)
    arms = ["drug_1", "drug_2", "drug_3"]
    rng = np.random.default_rng(seed)
    adata.obs["age"] = adata.obsm["latent"][:, 0] + 0.3 * rng.normal(size=adata.n_obs)
    sign = np.where(adata.obs["treatment"].astype(str) == _CONTROL, -1.0, 1.0)
    adata = _keep(adata, 1 / (1 + np.exp(-2 * sign * adata.obs["age"].to_numpy())), seed)
    age = adata.obs["age"].to_numpy()
    bins = np.digitize(age, np.quantile(age, np.linspace(0, 1, _N_BINS + 1)[1:-1]))
    key = {"continuous_covariate_keys": ["age"]}
    models = {
        f"VCI, {_N_BINS} strata": _train(adata.copy(), seed, **key, continuous_strata=_N_BINS),
        "VCI, networks only": _train(adata.copy(), seed, **key),
        "VCI, ignored": _train(adata.copy(), seed),
    }
    found = {name: _predicted(model, adata.copy(), arms) for name, model in models.items()}
    found["means"] = _differences(adata, arms, np.zeros(adata.n_obs))
    found[f"means within {_N_BINS} bins"] = _differences(adata, arms, bins)
    return adata, arms, found


def new_stratum(seed: int) -> Regime:
    """Serve the controls of a fourth cell type with a reference of three."""
    adata = simulate_screen(n_strata=4, seed=seed)
    arms = [f"drug_{i + 1}" for i in range(6)]
    new = (adata.obs["cell_type"] == adata.uns["simulation"]["strata"][-1]).to_numpy()
    control = (adata.obs["treatment"].astype(str) == _CONTROL).to_numpy()
    reference, query = adata[~new].copy(), adata[new & control].copy()
    model = VCI.load_query_data(query.copy(), _train(reference, seed))
    (x,) = query.obs["cell_type"].astype(str).unique()
    known = _differences(reference, arms, np.zeros(reference.n_obs))
    mean = {
        arm: np.mean([effect for (a, _), (effect, _) in known.items() if a == arm], axis=0)
        for arm in arms
    }
    return (
        query,
        arms,
        {
            "VCI, controls only": _predicted(model, query.copy(), arms),
            "mean of other strata": {(arm, x): (mean[arm], None) for arm in arms},
            "mean of arms and strata": {
                (arm, x): (np.mean([*mean.values()], axis=0), None) for arm in arms
            },
            "no change": {(arm, x): (np.zeros(query.n_vars), None) for arm in arms},
        },
    )


def new_treatment(seed: int) -> Regime:
    """Carry a reference of five agents over to forty cells a cell type of a sixth."""
    adata = simulate_screen(n_strata=3, seed=seed)
    arm = adata.obs["treatment"].astype(str).to_numpy()
    reference = adata[arm != "drug_6"].copy()
    model = _train(reference, seed)
    own = adata.obs[arm == "drug_6"].groupby("cell_type", observed=True).head(40).index
    query = adata[adata.obs_names.isin(own) | (arm == _CONTROL)].copy()
    fresh = VCI.load_query_data(query.copy(), model)
    found = {"VCI, carried over": _predicted(fresh, query.copy(), ["drug_6"])}
    fresh.train(enable_progress_bar=False)
    found["VCI, and fine-tuned"] = _predicted(fresh, query.copy(), ["drug_6"])
    alone = _train(query.copy(), seed)
    found["VCI, without reference"] = _predicted(alone, query.copy(), ["drug_6"])
    together = _train(adata[adata.obs_names.isin(own) | (arm != "drug_6")].copy(), seed)
    found["VCI, trained on all"] = _predicted(together, query.copy(), ["drug_6"])
    found["means"] = _differences(query, ["drug_6"], np.zeros(query.n_obs))
    return query, ["drug_6"], found


REGIMES: dict[str, Callable[[int], Regime]] = {
    "batches": batches,
    "continuous confounder": confounder,
    "new stratum": new_stratum,
    "new treatment": new_treatment,
}


# -- scores -------------------------------------------------------------------------------------


def score(name: str, seed: int) -> Iterator[dict]:
    """One row per method, arm and stratum."""
    cells, arms, methods = REGIMES[name](seed)
    truth = _effects(cells, arms, [cells.layers[f"true_{t}"] for t in (_CONTROL, *arms)])
    for method, effects in methods.items():
        for (arm, x), (effect, single) in effects.items():
            true, true_single = truth[arm, x]
            yield {
                "regime": name,
                "method": method,
                "arm": arm,
                "stratum": x,
                "seed": seed,
                "r2_delta": r2_delta(true, effect, np.zeros_like(true)),
                "rmse": float(np.sqrt(np.mean((true - effect) ** 2))),
                "ite_corr": np.nan if single is None else ite_corr(true_single, single),
            }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows: list[dict] = []
    for name in options.regimes:
        for seed in range(options.seeds):
            rows += score(name, seed)
        table = pd.DataFrame([row for row in rows if row["regime"] == name])
        by_seed = table.groupby(["method", "seed"])[["r2_delta", "rmse", "ite_corr"]].mean()
        summary = by_seed.groupby("method").agg(["mean", "std"]).round(3)
        print(f"\n{name}\n{summary.sort_values(('rmse', 'mean')).to_string()}", flush=True)
        _RESULTS.parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(_RESULTS, index=False)


if __name__ == "__main__":
    main()
