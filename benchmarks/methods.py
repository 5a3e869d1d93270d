"""Who predicts: the model, its ablations and the baselines, behind one call.

Every method gets a case and a seed, and returns a :class:`Prediction`.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from peers import PEERS, predict
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from scvci.data import Cells
from scvci.data._statistics import pseudobulk_moments
from scvci.metrics import (
    BASELINES,
    log_normalise,
    pair_pseudobulks,
    pseudobulk,
)
from scvci.model import VCI
from scvci.pooling import effect_variances, forecast, pair_means, pool_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
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


def _arms(case: Case) -> list[str]:
    return [case.control, *sorted({t for t, _ in case.pairs})]


def _design(case: Case) -> tuple[AnnData, np.ndarray, np.ndarray, list[str], list[str]]:
    """Cells to take means of, their treatment and stratum codes, and the names of both.

    A stratum that is new to the model enters with the controls that are predicted for.
    """
    cells = case.train
    new = ~case.query.obs["stratum"].isin(cells.obs["stratum"].unique()).to_numpy()
    if new.any():
        cells = anndata.concat([cells, case.query[new]])
    strata = sorted(cells.obs["stratum"].unique())
    arms = [case.control, *sorted(set(cells.obs["treatment"]) - {case.control})]
    treatment = pd.Categorical(cells.obs["treatment"], arms).codes.astype(np.int64)
    stratum = pd.Categorical(cells.obs["stratum"], strata).codes.astype(np.int64)
    return cells, treatment, stratum, arms, strata


def _from_table(case: Case, table: np.ndarray, arms: list[str], strata: list[str]) -> Prediction:
    """Every cell gets the mean of its stratum, from ``(n_strata, n_treatments, n_genes)``."""
    position = pd.Categorical(case.query.obs["stratum"], strata).codes
    return Prediction(
        cells={t: table[position, arms.index(t)] for t in _arms(case)},
        means={
            (t, x): table[strata.index(x), arms.index(t)]
            for t in _arms(case)
            for x in {x for _, x in case.pairs}
        },
    )


def baseline(case: Case, seed: int, name: str) -> Prediction:
    """One of the package's baselines on tables of means."""
    cells, treatment, stratum, arms, strata = _design(case)
    means = pair_pseudobulks(cells.X, treatment, stratum, (len(strata), len(arms)))
    return _from_table(case, BASELINES[name](means), arms, strata)


def pair_mean(case: Case, seed: int) -> Prediction:
    """Mean of the pair's own cells: what there is to beat where the pair was measured."""
    if "held out" in set(case.pairs.values()) and len(set(case.pairs.values())) == 1:
        raise NotImplementedError("A held-out pair has no cells of its own.")
    cells, treatment, stratum, arms, strata = _design(case)
    means = pair_pseudobulks(cells.X, treatment, stratum, (len(strata), len(arms)))
    return _from_table(case, means, arms, strata)


def own_fold_change(case: Case, seed: int) -> Prediction:
    """Each cell's own counts times the fold change between the means of its pair and the other.

    Means that were not measured are the additive baseline's.
    """
    cells, treatment, stratum, arms, strata = _design(case)
    means = pair_pseudobulks(cells.X, treatment, stratum, (len(strata), len(arms)))
    means = np.expm1(np.where(np.isfinite(means), means, BASELINES["additive"](means)))
    means = np.maximum(means, 0.1)
    obs, counts = case.query.obs, case.query.X.toarray()
    x = pd.Categorical(obs["stratum"], strata).codes
    own = pd.Categorical(obs["treatment"], arms).codes
    values = {t: counts * means[x, arms.index(t)] / means[x, own] for t in _arms(case)}
    return Prediction(
        {t: log_normalise(v) for t, v in values.items()}, _means_of_cells(case, values)
    )


def mixed_model(case: Case, seed: int) -> Prediction:
    """Predict by the mixed model that calibration uses for pairs without cells, alone."""
    source, *_ = _design(case)
    adata = anndata.AnnData(source.X, obs=source.obs[["treatment", "stratum"]], var=source.var)
    with warnings.catch_warnings():
        # Held-out pairs have no cells.
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, control=case.control, categorical_covariate_keys=["stratum"])
    cells = Cells.from_registry(adata, VCI.registry_of(adata))
    moments = pseudobulk_moments(cells, 1e4)
    means = pair_means(moments.pairs, moments.mean, moments.variance, moments.count)
    means = pool_levels(means, control=0)
    fitted = forecast(means, effect_variances(means))
    shape = (cells.n_strata, cells.n_treatments)
    table = fitted.at(*(codes.ravel() for codes in np.indices(shape))).reshape(*shape, -1)
    return _from_table(case, table, list(cells.treatments.names), cells.strata)


def ridge(case: Case, seed: int, n_components: int = 4, penalty: float = 1.0) -> Prediction:
    """Ridge on treatment × (1, stratum, residual PCs), of log-normalised cells.

    The principal components are those of what the means of (treatment, stratum) leave over: a
    linear stand-in for the cell's own latent state.
    """
    obs = case.train.obs
    strata, arms = sorted(obs["stratum"].unique()), _arms(case)
    keep = obs["treatment"].isin(arms).to_numpy()
    y = log_normalise(case.train.X[keep].toarray())
    obs = obs[keep]
    group = obs["treatment"].astype(str) + "|" + obs["stratum"].astype(str)
    group_mean = pd.DataFrame(y).groupby(group.to_numpy()).mean()
    pca = PCA(n_components, random_state=seed).fit(y - group_mean.loc[group].to_numpy())
    query = case.query.obs
    query_y = log_normalise(case.query.X.toarray())
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


def neighbours(case: Case, seed: int, n_components: int = 10, n_neighbors: int = 20) -> Prediction:
    """Mean of the most similar cells that received the treatment in the stratum.

    Similar are cells in principal components of what the means of (treatment, stratum) leave
    over. Where the stratum has no such cells, the mean change over the other strata is added.
    """
    obs, arms = case.train.obs, _arms(case)
    y = log_normalise(case.train.X.toarray())
    group = (obs["treatment"].astype(str) + "|" + obs["stratum"].astype(str)).to_numpy()
    residual = y - pd.DataFrame(y).groupby(group).transform("mean").to_numpy()
    scores = PCA(n_components, random_state=seed).fit_transform(residual)
    shares = np.expm1(y)
    cell_of = pd.Series(np.arange(len(obs)), index=obs.index)
    own = cell_of.loc[case.query.obs_names].to_numpy()
    stratum = case.query.obs["stratum"].to_numpy(str)
    found: dict[tuple[str, str], np.ndarray] = {}
    for (t, x), rows in (
        obs.reset_index(drop=True).groupby(["treatment", "stratum"]).groups.items()
    ):
        rows = np.asarray(rows)
        index = NearestNeighbors(n_neighbors=min(n_neighbors + 1, len(rows))).fit(scores[rows])
        near = rows[index.kneighbors(scores[own], return_distance=False)]
        # A cell is no neighbour of its own; of other cells' the farthest is one too many.
        weight = (near != own[:, None]).astype(float)
        weight[weight.all(axis=1), -1] = 0
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1)
        found[t, x] = np.einsum("ik,ikg->ig", weight, shares[near])
    cells = {}
    for t in arms:
        levels = np.zeros((len(own), y.shape[1]))
        for x in np.unique(stratum):
            rows = stratum == x
            if (t, x) in found:
                levels[rows] = found[t, x][rows]
                continue
            changes = [
                found[t, s][rows] - found[case.control, s][rows]
                for s in obs["stratum"].unique()
                if (t, s) in found and (case.control, s) in found
            ]
            levels[rows] = np.maximum(found[case.control, x][rows] + np.mean(changes, axis=0), 0)
        cells[t] = levels
    return Prediction({t: np.log1p(v) for t, v in cells.items()}, _means_of_cells(case, cells))


def vci(
    case: Case,
    seed: int,
    calibrated: bool = True,
    keep: str = "rates",
    **settings: object,
) -> Prediction:
    """Train the model; only the settings named here differ from its defaults."""
    cells = case.train.copy()
    log_scale = settings.get("likelihood") == "normal" or settings.get("preset") == "paper"
    if log_scale:
        cells.X = log_normalise(cells.X.toarray()).astype(np.float32)
    query = case.query.copy()
    if log_scale:
        query.X = log_normalise(query.X.toarray()).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        VCI.setup_anndata(cells, control=case.control, categorical_covariate_keys=["stratum"])
        model = VCI(cells, seed=seed, **settings)
        model.train(enable_progress_bar=False)
        arms = _arms(case)
        if not query.obs["stratum"].isin(cells.obs["stratum"].unique()).all():
            model = VCI.load_query_data(query, model)
        layers = model.predict_counterfactual(arms, query, calibrated=calibrated, keep=keep)
    values = {t: np.asarray(query.layers[name]) for t, name in zip(arms, layers, strict=True)}
    if log_scale:
        values = {t: np.expm1(np.maximum(v, 0)) for t, v in values.items()}
    return Prediction(
        {t: log_normalise(v) for t, v in values.items()}, _means_of_cells(case, values)
    )


def peer(case: Case, seed: int, name: str) -> Prediction:
    """Another group's method, in an environment of its own."""
    values, scale = predict(case, _arms(case), seed, name)
    if scale == "log1p":
        # A model of logs goes below zero.
        values = {t: np.expm1(np.maximum(v, 0)) for t, v in values.items()}
    return Prediction(
        {t: log_normalise(v) for t, v in values.items()}, _means_of_cells(case, values)
    )


def _means_of_cells(
    case: Case, counts: dict[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Pseudobulks of the query cells of each stratum under each treatment; NaN where theirs is."""
    stratum = case.query.obs["stratum"]
    means = {}
    for t, values in counts.items():
        for x in {x for _, x in case.pairs}:
            cells = values[(stratum == x).to_numpy()]
            missing = np.isnan(cells).any()
            means[t, x] = np.full(cells.shape[1], np.nan) if missing else pseudobulk(cells)
    return means


#: Methods by name.
METHODS: dict[str, Callable[..., Prediction]] = {
    **{name: (lambda c, s, n=name: baseline(c, s, n)) for name in BASELINES},
    "mean of the pair": pair_mean,
    "ridge": ridge,
    "nearest neighbours": neighbours,
    "own counts, fold change": own_fold_change,
    "mixed model of means": mixed_model,
    "VCI": vci,
    "VCI paper": lambda c, s: vci(c, s, preset="paper"),
    "VCI uncalibrated": lambda c, s: vci(c, s, calibrated=False),
    "VCI keeps state only": lambda c, s: vci(c, s, keep="state"),
    "VCI keeps molecules": lambda c, s: vci(c, s, keep="molecules"),
    "VCI no divergence": lambda c, s: vci(c, s, weights={"divergence": 0.0}),
    "VCI no covariate term": lambda c, s: vci(c, s, weights={"covariate": 0.0}),
    "VCI no interaction": lambda c, s: vci(c, s, architecture={"interaction": False}),
}
#: The same networks on factual cells alone: no counterfactual is constructed in training.
_CVAE = {"objective": {"prior": "standard"}, "weights": {"covariate": 0.0, "divergence": 1.0}}
METHODS["conditional VAE"] = lambda c, s: vci(c, s, calibrated=False, **_CVAE)
METHODS["conditional VAE calibrated"] = lambda c, s: vci(c, s, **_CVAE)
for _kind in ("kernel", "energy", "discriminator", "classifier"):
    METHODS[f"VCI {_kind}"] = lambda c, s, k=_kind: vci(c, s, covariate_term=k)
for _name in ("zinb", "poisson", "normal"):
    METHODS[f"VCI {_name}"] = lambda c, s, n=_name: vci(c, s, likelihood=n)
for _size in (2, 5, 20):
    METHODS[f"VCI {_size} latents"] = lambda c, s, n=_size: vci(c, s, n_latent=n)
for _peer in PEERS:
    METHODS[_peer] = lambda c, s, n=_peer: peer(c, s, n)
