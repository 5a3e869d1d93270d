"""Effects planted into real counts, so that every cell's expected counterfactual can be judged."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import expit
from sklearn.decomposition import TruncatedSVD

#: Molecules kept in the control's world; effects move this share up and down.
_BASE_SHARE = 0.5
#: Molecules of a cell that are set aside to judge by.
_JUDGED_SHARE = 1 / 3


def plant_effects(
    adata: AnnData,
    stratum_key: str | None = None,
    *,
    layer: str | None = None,
    n_treatments: int = 3,
    responding: float = 0.2,
    effect_size: float = 1.5,
    heterogeneity: float = 0.5,
    held_out: int = 0,
    seed: int = 0,
) -> AnnData:
    r"""Make an experiment out of real, untreated cells by binomial thinning.

    A third of the molecules of each cell, drawn at random, is set aside. Each count N of gene g in
    cell i that is left is thinned, :math:`Y(t) \sim \mathrm{Bin}(N, p_{itg})` with

    .. math:: \mathrm{logit}\, p_{itg} = (1 + h\, s_i a_t)\, \delta_{tg}

    and :math:`p = \tfrac12` under the control; :math:`s_i` is the score of the cell on the first
    component of the log-normalised data, standardised within the stratum. Treatment is random. All
    that is real about the cells (correlation of genes, depth, overdispersion) stays.

    What a cell was expected to show under each treatment is judged by the molecules set aside:
    their counts, times the share that the treatment keeps, have that expectation, and a counting
    noise that no molecule of the experiment shares (count splitting; Neufeld et al., 2024). So no
    prediction gains by echoing a cell's own noise, and a perfect one wins.

    Parameters
    ----------
    adata
        Untreated cells with raw counts.
    stratum_key
        Column of ``obs`` for held-out pairs; copied to ``obs["stratum"]``.
    layer
        Layer with the counts.
    n_treatments
        Number of treatments, the control included.
    responding
        Share of the genes that respond to a treatment.
    effect_size
        Standard deviation of δ, on the logit scale.
    heterogeneity
        Scale h of the dependence on the cell's state.
    held_out
        Number of (treatment, stratum) pairs without cells.
    seed
        Seed of everything.

    Returns
    -------
    Thinned counts in ``X``; ``obs["treatment"]``, ``obs["stratum"]``;
    ``layers["true_<treatment>"]``: twice the molecules set aside times :math:`p_{itg}`, unbiased
    for the cell's expected counts under the treatment, with a noise that averages out on the
    scale of counts but not on that of their logarithms; ``uns["simulation"]``: names and held-out
    pairs.

    Raises
    ------
    ValueError
        If there are too few strata for the held-out pairs, or counts are not whole numbers.

    References
    ----------
    Neufeld, Gao, Popp, Battle and Witten, "Inference after latent variable estimation for
    single-cell RNA sequencing data", Biostatistics 25:270-287, 2024.
    """
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer]).toarray()
    if (counts < 0).any() or (counts != np.round(counts)).any():
        raise ValueError("Only raw counts can be thinned; found negative or fractional values.")
    treatments = ["control", *(f"planted_{i}" for i in range(1, n_treatments))]
    stratum = (
        adata.obs[stratum_key].astype(str).to_numpy()
        if stratum_key is not None
        else np.repeat("all", adata.n_obs)
    )
    strata = sorted(set(stratum))
    pairs = [(t, x) for t in range(1, n_treatments) for x in strata]
    if held_out > (n_treatments - 1) * (len(strata) - 1):
        raise ValueError(
            f"held_out={held_out} pairs, but every treatment must keep one of the {len(strata)} "
            "strata."
        )
    kept = {(t, strata[rng.integers(len(strata))]) for t in range(1, n_treatments)}
    free = [pair for pair in pairs if pair not in kept]
    held = [free[i] for i in rng.choice(len(free), held_out, replace=False)] if held_out else []
    treatment = rng.integers(n_treatments, size=adata.n_obs)
    for t, x in held:
        rows = (stratum == x) & (treatment == t)
        treatment[rows] = 0
    judged = rng.binomial(counts.astype(np.int64), _JUDGED_SHARE)
    counts = counts - judged
    state = _state(counts, stratum)
    share = _shares(
        rng, state, counts.shape[1], n_treatments, responding, effect_size, heterogeneity
    )
    own = share[treatment, np.arange(adata.n_obs)]
    observed = rng.binomial(counts.astype(np.int64), own).astype(np.float32)
    obs = pd.DataFrame(
        {"treatment": np.array(treatments)[treatment], "stratum": stratum}, index=adata.obs_names
    )
    planted = AnnData(sparse.csr_matrix(observed), obs=obs, var=adata.var[[]].copy())
    ratio = (1 - _JUDGED_SHARE) / _JUDGED_SHARE
    for t, name in enumerate(treatments):
        planted.layers[f"true_{name}"] = (ratio * judged * share[t]).astype(np.float32)
    planted.uns["simulation"] = {
        "treatments": treatments,
        "strata": strata,
        "control": "control",
        "held_out": [[treatments[t], x] for t, x in held],
        "seed": seed,
    }
    return planted


def _state(counts: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Score on the first component, standardised within each stratum, ``(n_cells,)``."""
    total = counts.sum(axis=1, keepdims=True)
    normalised = np.log1p(1e4 * counts / np.maximum(total, 1))
    for x in set(stratum):
        normalised[stratum == x] -= normalised[stratum == x].mean(axis=0)
    score = pd.Series(TruncatedSVD(2, random_state=0).fit_transform(normalised)[:, 0])
    spread = score.groupby(stratum).transform("std", ddof=0)
    return (score / spread.clip(lower=1e-12)).to_numpy()


def _shares(
    rng: np.random.Generator,
    state: np.ndarray,
    n_genes: int,
    n_treatments: int,
    responding: float,
    effect_size: float,
    heterogeneity: float,
) -> np.ndarray:
    """Share of the counts that is kept, ``(n_treatments, n_cells, n_genes)``."""
    responds = rng.random((n_treatments, n_genes)) < responding
    effect = responds * rng.normal(0, effect_size, size=(n_treatments, n_genes))
    effect[0] = 0
    slope = rng.normal(size=n_treatments)
    gain = 1 + heterogeneity * slope[:, None] * np.clip(state, -2, 2)
    base = np.log(_BASE_SHARE / (1 - _BASE_SHARE))
    return expit(base + gain[:, :, None] * effect[:, None, :]).astype(np.float32)
