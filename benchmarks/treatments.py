"""Doses, combinations and unseen treatments beside the baselines of each.

Truth is known in the simulated screens; in the real ones a held-out arm's own cells stand for it.
Every regime holds out arms that no method sees, in every stratum.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from cases import DATA
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from scvci.datasets import simulate_screen
from scvci.metrics import ite_corr, log_normalise, pearson_delta, pseudobulk, r2_delta
from scvci.model import VCI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

_RESULTS = Path(__file__).parent / "results" / "treatments.csv"
_CONTROL = "control"


@dataclass(frozen=True)
class Problem:
    """Arms to predict for the controls.

    Attributes
    ----------
    name
        Regime.
    train
        Cells to train on.
    setup
        Arguments of ``VCI.setup_anndata``.
    held_out
        Members and doses of the arms to predict, by name.
    arms
        Members and doses of the measured arms, by name; the control left out.
    label
        Arm of each training cell.
    query
        Controls to predict for.
    truth
        Expected counts of the query under each arm (single cells), or counts of real cells of it,
        by stratum.
    known
        Whether ``truth`` is that of the same cells.
    features
        Features of members, or ``None``.
    """

    name: str
    train: AnnData
    setup: dict
    held_out: dict[str, dict[str, float]]
    arms: dict[str, dict[str, float]]
    label: np.ndarray
    query: AnnData
    truth: Callable[[str, str], np.ndarray]
    known: bool
    features: pd.DataFrame | None = None


# -- problems -----------------------------------------------------------------------------------


def _members(treatment: str, dose: str) -> dict[str, float]:
    if treatment == _CONTROL:
        return {}
    return dict(zip(treatment.split("+"), map(float, dose.split("+")), strict=True))


def _simulated(name: str, held_out: list[str], seed: int, **settings: object) -> Problem:
    adata = simulate_screen(held_out=held_out, seed=seed, **settings)
    table = adata.uns["simulation"]["arms"]
    arms = {
        arm: _members(treatment, dose)
        for arm, treatment, dose in table[["arm", "treatment", "dose"]].itertuples(index=False)
    }
    dosed = len(settings.get("doses", (1.0,))) > 1
    labels = {tuple(sorted(members.items())): arm for arm, members in arms.items()}
    obs = adata.obs[["treatment", "dose"]].astype(str)
    label = np.array(
        [labels[tuple(sorted(_members(t, d).items()))] for t, d in obs.itertuples(index=False)],
        dtype=object,
    )
    held = set(adata.uns["simulation"]["held_out"])
    features = adata.uns["simulation"].get("features")
    setup = {"separator": "+", "layer": "counts"}
    if dosed:
        setup["dose_key"] = "dose"
    if features is not None:
        setup["treatment_embeddings"] = features
    adata.obs["stratum"] = adata.obs["cell_type"].astype(str)
    layers = {arm: adata.layers[f"true_{arm}"] for arm in arms}
    stratum = adata.obs["stratum"].to_numpy()

    def truth(arm: str, x: str) -> np.ndarray:
        return layers[arm][stratum == x]

    cells = anndata.AnnData(
        adata.layers["counts"], obs=adata.obs, var=adata.var, layers={"counts": adata.X}
    )
    return Problem(
        name=name,
        train=cells,
        setup=setup,
        held_out={a: arms[a] for a in arms if a in held},
        arms={a: m for a, m in arms.items() if a not in held and m},
        label=label,
        query=cells,
        truth=truth,
        known=True,
        features=features,
    )


def _names(n: int) -> list[str]:
    return [f"drug_{i + 1}" for i in range(n)]


def doses(seed: int) -> Iterator[Problem]:
    """Four doses of six agents; a middle one of each is held out."""
    held_out = [f"{m}@{(1, 3)[i % 2]}" for i, m in enumerate(_names(6))]
    yield _simulated("doses", held_out, seed, doses=(0.3, 1.0, 3.0, 10.0))


def combinations(seed: int, interaction: float = 0.3, name: str = "combinations") -> Iterator:
    """Eight agents and sixteen of their pairs; a quarter of the pairs is held out."""
    settings = {"n_members": 8, "n_combinations": 16, "interaction": interaction, "seed": seed}
    arms = simulate_screen(n_cells=500, n_genes=20, **settings).uns["simulation"]["arms"]["arm"]
    pairs = [arm for arm in arms if "+" in arm]
    settings.pop("seed")
    yield _simulated(name, pairs[::4], seed, **settings)


def unseen(seed: int, share: float = 0.8, name: str = "unseen treatments") -> Iterator[Problem]:
    """Twenty agents with five features; four agents are held out."""
    held_out = _names(20)[::5]
    yield _simulated(
        name, held_out, seed, n_members=20, n_features=5, feature_share=share, n_cells=8000
    )


def _real(name: str, held: dict[str, dict], setup: dict, features: pd.DataFrame | None) -> Problem:
    adata = anndata.read_h5ad(DATA / f"{name}.h5ad")
    stratum = adata.obs["cell_type"].astype(str) if "cell_type" in adata.obs else "all"
    adata.obs["stratum"] = stratum
    label = np.array(
        ["+".join(sorted(t.split("+"))) for t in adata.obs["treatment"].astype(str)], dtype=object
    )
    keep = ~np.isin(label, list(held))
    train = adata[keep].copy()
    arms = {a: dict.fromkeys(a.split("+"), 1.0) for a in sorted(set(label[keep]) - {_CONTROL})}
    of_stratum = adata.obs["stratum"].to_numpy()

    def truth(arm: str, x: str) -> np.ndarray:
        return adata.X[(label == arm) & (of_stratum == x)]

    query = train[label[keep] == _CONTROL].copy()
    return Problem(name, train, setup, held, arms, label[keep], query, truth, False, features)


def norman(seed: int) -> Iterator[Problem]:
    """Hold out the combinations, a third of them at a time; their members alone are measured."""
    obs = anndata.read_h5ad(DATA / "norman.h5ad", backed="r").obs
    labels = set(obs["treatment"].astype(str))
    # What is expected of a pair is known where both members were measured alone.
    pairs = sorted(
        {"+".join(sorted(t.split("+"))) for t in labels if "+" in t and labels >= {*t.split("+")}}
    )
    for fold in range(3):
        held = {p: dict.fromkeys(p.split("+"), 1.0) for p in pairs[fold::3]}
        yield _real("norman", held, {"separator": "+"}, None)


PROBLEMS: dict[str, Callable[[int], Iterator[Problem]]] = {
    "doses": doses,
    "combinations": combinations,
    "combinations, additive": lambda seed: combinations(seed, 0.0, "combinations, additive"),
    "unseen treatments": unseen,
    "unseen, features say nothing": lambda s: unseen(s, 0.0, "unseen, features say nothing"),
    "norman": norman,
}


# -- methods: one log-normalised mean per (arm, stratum), or single cells ------------------------


def _means(problem: Problem) -> dict[tuple[str, str], np.ndarray]:
    stratum = problem.train.obs["stratum"].to_numpy()
    return {
        (arm, x): pseudobulk(problem.train.X[(problem.label == arm) & (stratum == x)])
        for arm in [_CONTROL, *problem.arms]
        for x in np.unique(stratum)
    }


def _baselines(problem: Problem, arm: str, x: str, means: dict) -> dict[str, np.ndarray]:
    """Every baseline's mean of an arm in a stratum."""
    base = means[_CONTROL, x]
    effect = {a: means[a, x] - base for a in problem.arms}
    members = problem.held_out[arm]
    mean_effect = np.mean(list(effect.values()), axis=0)
    found = {"no change": base, "mean of all treatments": base + mean_effect}
    if len(members) > 1:
        singles = {next(iter(m)): a for a, m in problem.arms.items() if len(m) == 1}
        parts = [effect[singles[m]] for m in members]
        found["additive"] = base + np.sum(parts, axis=0)
        found["mean of the members"] = base + np.mean(parts, axis=0)
    elif problem.features is not None:
        found |= _from_features(problem, next(iter(members)), base, effect)
    else:
        found |= _from_doses(problem, members, base, effect)
    return found


def _from_doses(problem: Problem, members: dict, base: np.ndarray, effect: dict) -> dict:
    (member, dose), *_ = members.items()
    measured = {m[member]: effect[a] for a, m in problem.arms.items() if set(m) == {member}}
    x = np.array([0.0, *sorted(measured)])
    y = np.stack([np.zeros_like(base), *(measured[d] for d in x[1:])])
    position = np.log1p(x / x[1])
    here = np.log1p(dose / x[1])
    i = next(i for i, (a, b) in enumerate(pairwise(x)) if a <= dose <= b)
    share = (here - position[i]) / (position[i + 1] - position[i])
    # A gene rises or falls with dose, whichever its largest dose shows.
    isotonic = [
        IsotonicRegression(increasing=bool(column[-1] > 0))
        .fit(position, column)
        .predict([here])[0]
        for column in y.T
    ]
    return {
        "interpolated means": base + (1 - share) * y[i] + share * y[i + 1],
        "isotonic regression": base + np.array(isotonic),
        "nearest dose": base + y[1 + np.argmin(np.abs(np.log(x[1:] / dose)))],
    }


def _from_features(problem: Problem, member: str, base: np.ndarray, effect: dict) -> dict:
    names = [next(iter(m)) for m in problem.arms.values()]
    scale = StandardScaler().fit(problem.features.loc[names])
    known, new = (scale.transform(problem.features.loc[n]) for n in (names, [member]))
    y = np.stack([effect[a] for a in problem.arms])
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(known, y)
    nearest = ((known - new) ** 2).sum(axis=1).argmin()
    return {
        "ridge on features": base + ridge.predict(new)[0],
        "nearest neighbour": base + y[nearest],
    }


def _vci(problem: Problem, seed: int, **settings: object) -> dict[str, np.ndarray]:
    """Predict counts of the query cells under each held-out arm, and under the control."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        train = problem.train.copy()
        VCI.setup_anndata(train, categorical_covariate_keys=["stratum"], **problem.setup)
        model = VCI(train, seed=seed, **settings)
        model.train(enable_progress_bar=False)
        query = problem.query.copy()
        arms = [_CONTROL, *problem.held_out]
        layers = model.predict_counterfactual(arms, query)
    return {arm: np.asarray(query.layers[name]) for arm, name in zip(arms, layers, strict=True)}


# -- scores -------------------------------------------------------------------------------------


def score(problem: Problem, seed: int, responses: list[str]) -> Iterator[dict]:
    """One row per method, held-out arm and stratum."""
    means = _means(problem)
    stratum = problem.query.obs["stratum"].to_numpy()
    models = {
        "VCI" if len(responses) == 1 else f"VCI, {r}": _vci(
            problem, seed, architecture={"dose_response": r}
        )
        for r in responses
    }
    for arm in problem.held_out:
        for x in np.unique(stratum):
            real = problem.truth(arm, x)
            if real.shape[0] < 5:
                continue
            base = pseudobulk(problem.truth(_CONTROL, x)) if problem.known else means[_CONTROL, x]
            predictions = dict(_baselines(problem, arm, x, means))
            rows = stratum == x
            predictions |= {n: pseudobulk(values[arm][rows]) for n, values in models.items()}
            for method, predicted in predictions.items():
                row = {"problem": problem.name, "arm": arm, "stratum": x, "method": method}
                row["r2_delta"] = r2_delta(pseudobulk(real), predicted, base)
                row["pearson_delta"] = pearson_delta(pseudobulk(real), predicted, base)
                row["rmse"] = float(np.sqrt(np.mean((pseudobulk(real) - predicted) ** 2)))
                if problem.known and method in models:
                    true = log_normalise(real) - log_normalise(problem.truth(_CONTROL, x))
                    cells = {a: log_normalise(v[rows]) for a, v in models[method].items()}
                    row["ite_corr"] = ite_corr(true, cells[arm] - cells[_CONTROL])
                yield {**row, "seed": seed}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--responses", nargs="+", default=["monotone"])
    options = parser.parse_args()
    rows = []
    for name in options.problems:
        for seed in range(1 if name == "norman" else options.seeds):
            for problem in PROBLEMS[name](seed):
                rows += score(problem, seed, options.responses)
        table = pd.DataFrame([row for row in rows if row["problem"] == name])
        scores = [c for c in ("r2_delta", "pearson_delta", "rmse", "ite_corr") if c in table]
        by_seed = table.groupby(["method", "seed"])[scores].mean()
        summary = by_seed.groupby("method").agg(["mean", "std"]).round(3)
        print(f"\n{name}: {table[['arm', 'stratum', 'seed']].drop_duplicates().shape[0]} held out")
        print(summary.sort_values(("rmse", "mean")).to_string(), flush=True)
        _RESULTS.parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(_RESULTS, index=False)


if __name__ == "__main__":
    main()
