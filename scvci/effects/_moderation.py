"""Variances that borrow from those of other genes, for experiments with few clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    from collections.abc import Callable

#: Fewest genes whose variances say how variances differ.
_MIN_GENES = 10
#: Genes behind each point of the trend, and most points; the same for degrees of freedom.
_PER_MEDIAN, _MAX_MEDIANS = 40, 20
_PER_DF, _MAX_DFS = 100, 5
#: Fewest and most degrees of freedom that the other genes' variances are worth: some hundred
#: genes do not tell more than a hundred from infinity.
_MIN_DF, _MAX_DF = 0.1, 100.0
#: Share of the prior degrees of freedom that intervals count on: the prior is an estimate and
#: variances follow it roughly. With all of them a tenth too many of a list's genes are false
#: (``benchmarks/effects_designs.py``).
_CERTAIN = 0.7
#: Degrees of freedom that what genes say of the arms is worth beside a gene's own.
_PATTERN_DF = 20.0
#: Passes in which the pattern and the size of each gene's variance are found.
_N_PASSES = 3
#: False discovery rate at which a gene is found to vary more than others ever do.
_OUTLIER_LEVEL = 0.05


def share_arms(
    variance: np.ndarray,
    df: np.ndarray,
    pulls: np.ndarray,
    alike: np.ndarray,
    kind: np.ndarray,
    average: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Let each gene's error use what all genes say of how the clusters of each arm vary.

    The squared error of an effect is :math:`\sum_c s_c^2` over what each cluster pulls at it.
    Where an arm has two clusters, one square decides, and no degrees of freedom describe how such
    an error varies. Genes expressed alike tell together how many times the clusters of one arm
    vary as those of the other. Up to a gene's size, pulls then have a known covariance P, every
    direction tells the gene's variance, and there are as many degrees of freedom r as directions:

    .. math:: \hat\sigma^2 = \frac{1}{r} s^\top P^+ s, \qquad \operatorname{tr} P = 1.

    A gene may have a ratio of its own, and what is gained are the degrees of freedom that its own
    variance lacks. With d of these, the shared one therefore counts by
    :math:`\min(1, 2 (1 - d / r)) \cdot 20 / (20 + d)`: not at all where arms have equally many
    clusters of equal size, and little where there are many.

    Parameters
    ----------
    variance, df
        Squared standard errors and their degrees of freedom, shape ``(n_genes,)``; NaN where
        there is none.
    pulls
        What each cluster pulls at the effect, shape ``(n_clusters, n_genes)``.
    alike
        Covariance of pulls if all clusters vary alike, shape ``(n_clusters, n_clusters)``.
    kind
        Code of the arms that each cluster has, shape ``(n_clusters,)``; clusters of one kind vary
        alike.
    average
        Mean expression of each gene; ``None`` for one ratio.

    Returns
    -------
    Variances and degrees of freedom: those of two estimates that vary together. Both are unchanged
    with fewer than 10 genes.
    """
    known = _known(variance, df)
    rank = int(np.linalg.matrix_rank(alike, hermitian=True))
    if known.sum() < _MIN_GENES or not rank:
        return variance, df
    measured, own, own_df = pulls[:, known], variance[known], df[known]
    weight = 1 - np.clip(2 * (1 - own_df / rank), 0, 1) * _PATTERN_DF / (_PATTERN_DF + own_df)
    if (weight == 1).all():
        return variance, df
    at = np.zeros(len(own)) if average is None else average[known]
    parts = _parts(at, _PER_DF, _MAX_DFS)
    patterns = [_pattern(measured[:, part], alike, kind, rank) for part in parts]
    by_part = np.stack([_by_pattern(measured, pattern, rank) for pattern in patterns])
    common = _between([np.median(at[part]) for part in parts], by_part, at)
    shared, shared_df = variance.copy(), df.copy()
    shared[known] = weight * own + (1 - weight) * common
    shared_df[known] = (weight / np.sqrt(own_df) + (1 - weight) / np.sqrt(rank)) ** -2
    return shared, shared_df


def _known(variance: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Genes that have a variance."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(variance) & np.isfinite(df) & (variance > 0)


def _pattern(pulls: np.ndarray, alike: np.ndarray, kind: np.ndarray, rank: int) -> np.ndarray:
    """Covariance of pulls with a variance of each kind of cluster; its trace is 1.

    Clusters that vary alike count as one gene more.
    """
    kinds = [kind == k for k in np.unique(kind)]
    ranks = [np.linalg.matrix_rank(alike[np.ix_(k, k)], hermitian=True) for k in kinds]
    largest = int(np.argmax(ranks))
    n = _independent(pulls[kinds[largest]], ranks[largest])
    pattern = alike / np.trace(alike)
    for _ in range(_N_PASSES):
        square = (pulls**2 / _by_pattern(pulls, pattern, rank)).mean(axis=1)
        scale = np.ones(len(kind))
        for inside, directions in zip(kinds, ranks, strict=True):
            found = square[inside].sum() / (np.diag(alike)[inside].sum() / np.trace(alike))
            scale[inside] = (n * directions * found + rank) / (n * directions + rank)
        pattern = np.sqrt(np.outer(scale, scale)) * alike
        pattern /= np.trace(pattern)
    return pattern


def _independent(pulls: np.ndarray, rank: int) -> float:
    """How many independent genes tell as much: those of one programme vary together."""
    norms = np.sqrt((pulls**2).sum(axis=0))
    unit = pulls[:, norms > 0] / norms[norms > 0]
    n = unit.shape[1]
    if n < 2 or rank < 2:
        return float(n)
    squared_correlation = (((unit @ unit.T) ** 2).sum() - n) / (n * (n - 1))
    return n / (1 + (n - 1) * max(squared_correlation - 1 / rank, 0.0))


def _by_pattern(pulls: np.ndarray, pattern: np.ndarray, rank: int) -> np.ndarray:
    inverse = np.linalg.pinv(pattern, rcond=1e-9, hermitian=True)
    return np.maximum(np.einsum("cg,cg->g", pulls, inverse @ pulls) / rank, np.finfo(float).tiny)


def _between(points: list[float], values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of each gene at its expression, on lines between those at the points."""
    if len(points) == 1:
        return values[0]
    right = np.clip(np.searchsorted(points, at), 1, len(points) - 1)
    left, genes = right - 1, np.arange(len(at))
    gap = np.take(points, right) - np.take(points, left)
    share = np.clip((at - np.take(points, left)) / np.where(gap > 0, gap, 1), 0, 1)
    return (1 - share) * values[left, genes] + share * values[right, genes]


def moderate(
    variance: np.ndarray, df: np.ndarray, average: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""Shrink the variance of each gene's estimate towards that of genes expressed alike.

    True variances are assumed to follow a scaled inverse :math:`\chi^2` over genes with
    :math:`d_0` degrees of freedom and a location :math:`s_0^2`, both of which depend on mean
    expression (Smyth, 2004; Law et al., 2014): counting varies alike in all rare genes, biology
    differs between those that are well expressed. The posterior variance of a gene and its
    degrees of freedom are

    .. math:: \tilde s_g^2 = \frac{d_0 s_0^2 + d_g s_g^2}{d_0 + d_g}, \qquad d_0 + d_g .

    The trend is a line through medians of genes in order of their mean, and :math:`d_0` makes the
    quartiles of measured variances about it those of an F distribution: a few genes of unusual
    variance move neither (as Phipson et al., 2016, by other means). Genes that vary more than
    that distribution allows keep their own variance.

    Parameters
    ----------
    variance, df
        Squared standard errors and their degrees of freedom, shape ``(n_genes,)``; NaN where
        there is none.
    average
        Mean expression of each gene; ``None`` for no trend.

    Returns
    -------
    Variances and degrees of freedom, of which 0.7 :math:`d_0` are counted, as the prior is itself
    estimated. Both are unchanged with fewer than 10 genes.

    References
    ----------
    Smyth, "Linear models and empirical Bayes methods for assessing differential expression in
    microarray experiments", 2004. Law et al., "voom", 2014. Phipson et al., "Robust
    hyperparameter estimation protects against hypervariable genes", 2016.
    """
    known = _known(variance, df)
    if known.sum() < _MIN_GENES:
        return variance, df
    measured, own_df = variance[known], df[known]
    logs = np.log(measured)
    at = np.zeros(len(logs)) if average is None else average[known]
    trend = _by_expression(logs, at, np.median, _PER_MEDIAN, _MAX_MEDIANS)
    own = float(np.median(own_df))
    prior_df = _by_expression(
        logs - trend, at, lambda part: _prior_df(part, own), _PER_DF, _MAX_DFS
    )
    prior = np.exp(trend) / stats.f.ppf(0.5, own_df, prior_df)
    tail = stats.f.sf(measured / prior, own_df, prior_df)
    usual = stats.false_discovery_control(tail) > _OUTLIER_LEVEL
    total = own_df + np.where(usual, prior_df, 0.0)
    shrunk = np.where(usual, (prior_df * prior + own_df * measured) / total, measured)
    moderated, moderated_df = variance.copy(), df.copy()
    moderated[known] = shrunk
    moderated_df[known] = own_df + np.where(usual, _CERTAIN * prior_df, 0.0)
    return moderated, moderated_df


def _by_expression(
    values: np.ndarray,
    average: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    per_point: int,
    max_points: int,
) -> np.ndarray:
    """Statistic of genes of like mean expression, and lines between these."""
    parts = _parts(average, per_point, max_points)
    at = [np.median(average[part]) for part in parts]
    return np.interp(average, at, [statistic(values[part]) for part in parts])


def _parts(average: np.ndarray, per_part: int, max_parts: int) -> list[np.ndarray]:
    """Genes of like mean expression, in its order."""
    n_parts = int(np.clip(len(average) // per_part, 1, max_parts))
    if np.ptp(average) == 0:
        n_parts = 1
    return np.array_split(np.argsort(average, kind="stable"), n_parts)


def _prior_df(logs: np.ndarray, df: float) -> float:
    """Degrees of freedom with which log-variances have the distance of quartiles of these."""
    width = float(np.subtract(*np.percentile(logs, [75, 25])))

    def excess(log_prior: float) -> float:
        quartiles = stats.f.ppf([0.25, 0.75], df, np.exp(log_prior))
        return float(np.diff(np.log(quartiles))[0]) - width

    low, high = np.log(_MIN_DF), np.log(_MAX_DF)
    if excess(high) >= 0:
        return _MAX_DF
    return _MIN_DF if excess(low) <= 0 else float(np.exp(optimize.brentq(excess, low, high)))
