"""Who predicts: the model, its ablations and the baselines, behind one call.

Every method gets a case and a seed, and returns a :class:`Prediction`.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from scvci.metrics import BASELINES, pair_pseudobulks, pseudobulk
from scvci.model import VCI

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case


@dataclass
class Prediction:
    """What a method says about a case.

    Attributes
    ----------
    cells
        Log-normalised expression of every query cell, by treatment.
    means
        Log-normalised mean of the query cells, by (treatment, stratum); the control included.
    """

    cells: dict[str, np.ndarray] = field(default_factory=dict)
    means: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def log_normalised(counts: np.ndarray) -> np.ndarray:
    """``log1p`` of counts per 10,000."""
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(1e4 * counts / np.where(total > 0, total, 1))


def _arms(case: Case) -> list[str]:
    return [case.control, *sorted({t for t, _ in case.pairs})]


def _tables(case: Case) -> tuple[np.ndarray, list[str], list[str]]:
    """Pseudobulks of training cells, ``(n_strata, n_treatments, n_genes)``, and their names."""
    obs = case.train.obs
    strata = sorted(obs["stratum"].unique())
    arms = [case.control, *sorted(set(obs["treatment"]) - {case.control})]
    codes = [
        pd.Categorical(obs[key], levels).codes
        for key, levels in (("treatment", arms), ("stratum", strata))
    ]
    means = pair_pseudobulks(case.train.X, codes[0], codes[1], (len(strata), len(arms)))
    return means, strata, arms


def baseline(case: Case, seed: int, name: str) -> Prediction:
    """One of the package's baselines on tables of means.

    A stratum that is new enters the table with its controls only.
    """
    means, strata, arms = _tables(case)
    new = sorted(set(case.query.obs["stratum"]) - set(strata))
    if new:
        rows = np.full((len(new), *means.shape[1:]), np.nan)
        for row, x in zip(rows, new, strict=True):
            row[0] = pseudobulk(case.query.X[(case.query.obs["stratum"] == x).to_numpy()])
        means, strata = np.concatenate([means, rows]), [*strata, *new]
    table = BASELINES[name](means)
    position = pd.Categorical(case.query.obs["stratum"], strata).codes
    return Prediction(
        cells={t: table[position, arms.index(t)] for t in _arms(case)},
        means={
            (t, x): table[strata.index(x), arms.index(t)]
            for t in _arms(case)
            for x in {x for _, x in case.pairs}
        },
    )


def ridge(case: Case, seed: int, n_components: int = 4, penalty: float = 1.0) -> Prediction:
    """Ridge on treatment × (1, stratum, residual PCs), of log-normalised cells.

    The principal components are those of what the means of (treatment, stratum) leave over: a
    linear stand-in for the cell's own latent state.
    """
    obs = case.train.obs
    strata, arms = sorted(obs["stratum"].unique()), _arms(case)
    keep = obs["treatment"].isin(arms).to_numpy()
    y = log_normalised(case.train.X[keep].toarray())
    obs = obs[keep]
    group = obs["treatment"].astype(str) + "|" + obs["stratum"].astype(str)
    group_mean = pd.DataFrame(y).groupby(group.to_numpy()).mean()
    pca = PCA(n_components, random_state=seed).fit(y - group_mean.loc[group].to_numpy())
    query = case.query.obs
    query_y = log_normalised(case.query.X.toarray())
    query_group = query["treatment"].astype(str) + "|" + query["stratum"].astype(str)

    def design(scores: np.ndarray, stratum: pd.Series, treatment: np.ndarray) -> np.ndarray:
        one_hot = pd.Categorical(stratum, strata).codes[:, None] == np.arange(len(strata))
        cell = np.hstack([np.ones((len(scores), 1)), one_hot, scores])
        arm = (treatment[:, None] == np.array(arms[1:])).astype(float)
        return np.hstack([cell, (arm[:, :, None] * cell[:, None, :]).reshape(len(cell), -1)])

    model = Ridge(penalty).fit(
        design(
            pca.transform(y - group_mean.loc[group].to_numpy()),
            obs["stratum"],
            obs["treatment"].to_numpy(str),
        ),
        y,
    )
    # The controls of a new stratum are their own group.
    query_mean = pd.DataFrame(query_y).groupby(query_group.to_numpy()).mean()
    query_mean.update(group_mean)
    scores = pca.transform(query_y - query_mean.loc[query_group].to_numpy())
    cells = {
        t: model.predict(design(scores, query["stratum"], np.full(len(query), t))) for t in arms
    }
    # A linear model of logs goes below zero.
    levels = {t: np.expm1(np.maximum(v, 0)) for t, v in cells.items()}
    return Prediction(cells, _means_of_cells(case, levels))


def vci(case: Case, seed: int, calibrated: bool = True, **settings: object) -> Prediction:
    """Train the model; only the settings named here differ from its defaults."""
    cells = case.train.copy()
    log_scale = settings.get("likelihood") == "normal" or settings.get("preset") == "paper"
    if log_scale:
        cells.X = log_normalised(cells.X.toarray()).astype(np.float32)
    query = case.query.copy()
    if log_scale:
        query.X = log_normalised(query.X.toarray()).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        VCI.setup_anndata(cells, control=case.control, categorical_covariate_keys=["stratum"])
        model = VCI(cells, seed=seed, **settings)
        model.train(enable_progress_bar=False)
        arms = _arms(case)
        layers = model.predict_counterfactual(arms, query, calibrated=calibrated)
    values = {t: np.asarray(query.layers[name]) for t, name in zip(arms, layers, strict=True)}
    if log_scale:
        values = {t: np.expm1(np.maximum(v, 0)) for t, v in values.items()}
    return Prediction(
        {t: log_normalised(v) for t, v in values.items()}, _means_of_cells(case, values)
    )


def _means_of_cells(
    case: Case, counts: dict[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Pseudobulks of the query cells of each stratum under each treatment."""
    stratum = case.query.obs["stratum"]
    return {
        (t, x): pseudobulk(values[(stratum == x).to_numpy()])
        for t, values in counts.items()
        for x in {x for _, x in case.pairs}
    }


#: Methods by name.
METHODS: dict[str, Callable[..., Prediction]] = {
    **{name: (lambda c, s, n=name: baseline(c, s, n)) for name in BASELINES},
    "ridge": ridge,
    "VCI": vci,
    "VCI paper": lambda c, s: vci(c, s, preset="paper"),
    "VCI uncalibrated": lambda c, s: vci(c, s, calibrated=False),
    "VCI no divergence": lambda c, s: vci(c, s, weights={"divergence": 0.0}),
    "VCI no covariate term": lambda c, s: vci(c, s, weights={"covariate": 0.0}),
    "VCI no interaction": lambda c, s: vci(c, s, architecture={"interaction": False}),
}
for _kind in ("kernel", "energy", "discriminator", "classifier"):
    METHODS[f"VCI {_kind}"] = lambda c, s, k=_kind: vci(c, s, covariate_term=k)
for _name in ("zinb", "poisson", "normal"):
    METHODS[f"VCI {_name}"] = lambda c, s, n=_name: vci(c, s, likelihood=n)
for _size in (2, 5, 20):
    METHODS[f"VCI {_size} latents"] = lambda c, s, n=_size: vci(c, s, n_latent=n)
