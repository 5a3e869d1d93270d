"""Split conformal prediction: intervals for single cells, calibrated on held-out cells."""

from __future__ import annotations

import numpy as np

#: Rounding errors of ranks and scores are far below this, their steps far above.
_TOLERANCE = 1e-9


def conformal_rank(n: int, level: float) -> int:
    r"""Rank of the score that bounds a new one, :math:`\lceil (n + 1) \, level \rceil`.

    Parameters
    ----------
    n
        Number of calibration scores.
    level
        Coverage, in (0, 1).

    Raises
    ------
    ValueError
        If the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} must be in (0, 1).")
    return int(np.ceil((n + 1) * level - _TOLERANCE))


def least_calibration_cells(level: float) -> int:
    r"""Fewest calibration scores with which an interval of the level is finite.

    The rank :math:`\lceil (n + 1) \, level \rceil` must not exceed n: 9 for a level of 0.9, 19 for
    0.95.

    Parameters
    ----------
    level
        Coverage, in (0, 1).

    Raises
    ------
    ValueError
        If the level is not in (0, 1).
    """
    n = max(1, int(level / (1 - level)) - 1) if 0 < level < 1 else 1
    while conformal_rank(n, level) > n:
        n += 1
    return n


def conformal_threshold(
    scores: np.ndarray,
    level: float,
    rng: np.random.Generator | None = None,
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    r"""Bound that the score of a new cell stays below with probability ``level``.

    If the new score is exchangeable with the n calibration scores, the bound, their
    :math:`\lceil (n + 1) \, level \rceil`-th smallest, holds with a probability of at least
    ``level``, whatever their distribution, and of at most :math:`level + 1 / (n + 1)` without
    ties. The probability is over draws of the calibration cells and the new cell together: an
    average over cells, not a statement about one of them.

    With few scores that rank covers noticeably too much, 0.929 at n = 13 for a level of 0.9. With
    a generator, each column takes the rank below with the probability that makes the coverage,
    averaged over this choice too, exactly ``level``.

    Where cells come in clusters (donors), it is these that are exchangeable. With K of them, each
    cell of one with :math:`n_k` cells then weighs :math:`1 / ((K + 1) n_k)`, the rest is a new
    cluster's, and the bound is the smallest score whose lower ones weigh ``level`` together (Lee,
    Barber and Willett, 2023).

    Parameters
    ----------
    scores
        Scores of the calibration cells, shape ``(n_cells, ...)``; each column (gene) is
        calibrated by itself.
    level
        Coverage, in (0, 1).
    rng
        Chooses between both ranks; ``None`` takes the upper one. Not with clusters.
    clusters
        Code of each cell's cluster, shape ``(n_cells,)``; ``None`` if cells are exchangeable.

    Returns
    -------
    Shape ``(...)``; infinite if there are fewer than :func:`least_calibration_cells` scores, or
    clusters.

    Raises
    ------
    ValueError
        If the level is not in (0, 1), or a score is NaN.

    References
    ----------
    Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-free predictive inference for
    regression", JASA 2018. Lee, Barber and Willett, "Distribution-free inference with hierarchical
    data", 2023.
    """
    scores = np.asarray(scores, dtype=float)
    rank = conformal_rank(len(scores), level)
    if np.isnan(scores).any():
        raise ValueError("Some calibration scores are NaN; leave out cells without an outcome.")
    if clusters is not None:
        return _by_clusters(scores, level, np.asarray(clusters))
    if rank > len(scores):
        return np.full(scores.shape[1:], np.inf)
    ranks = np.full(scores.shape[1:], rank)
    if rng is not None:
        excess = rank - (len(scores) + 1) * level
        ranks -= (rng.random(ranks.shape) < excess) & (rank > 1)
    return np.take_along_axis(np.sort(scores, axis=0), ranks[None] - 1, axis=0)[0]


def _by_clusters(scores: np.ndarray, level: float, clusters: np.ndarray) -> np.ndarray:
    """Least score that bounds cells of a share ``level`` of the weight, equal over clusters."""
    if clusters.shape != scores.shape[:1]:
        raise ValueError(
            f"clusters has shape {clusters.shape}, but must have one code per score: "
            f"{scores.shape[:1]}."
        )
    if not len(scores):
        return np.full(scores.shape[1:], np.inf)
    _, code, size = np.unique(clusters, return_inverse=True, return_counts=True)
    weight = 1 / ((len(size) + 1) * size[code])
    order = np.argsort(scores, axis=0)
    reached = np.cumsum(weight[order], axis=0) >= level - _TOLERANCE
    found = np.take_along_axis(scores, order, axis=0)
    first = np.argmax(reached, axis=0)
    bound = np.take_along_axis(found, first[None], axis=0)[0]
    return np.where(reached.any(axis=0), bound, np.inf)


def predictive_score(draws: np.ndarray, outcome: np.ndarray, is_count: bool = True) -> np.ndarray:
    r"""How far out an outcome lies in a cell's predictive distribution.

    With M draws and :math:`g(y) = \tfrac12 (\#\{d < y\} + \#\{d \le y\})`, the mid-rank, which
    splits ties of counts evenly, the score is the distance of the probability integral transform
    from its centre:

    .. math::

        s(y) = \left| \frac{g(y) + 1/2}{M + 1} - \frac12 \right|

    Outcomes beyond all draws score in addition their distance from these in units of the range of
    the draws, so that the score tells them apart and its intervals stay finite.

    Parameters
    ----------
    draws
        Draws from each cell's predictive distribution, shape ``(n_draws, n_cells, n_genes)``.
    outcome
        Observed outcomes, shape ``(n_cells, n_genes)``.
    is_count
        Whether outcomes are whole numbers.

    Returns
    -------
    Shape ``(n_cells, n_genes)``, 0 in the centre of the predictive distribution.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    Chernozhukov, Wüthrich and Zhu, "Distributional conformal prediction", PNAS 2021.
    """
    draws, outcome = np.asarray(draws), np.asarray(outcome)
    if draws.ndim < 1 or draws.shape[1:] != outcome.shape or not len(draws):
        raise ValueError(
            f"draws has shape {draws.shape}, but must have (n_draws, *{outcome.shape}) with at "
            "least one draw."
        )
    n_draws = len(draws)
    mid_rank = _mid_rank(draws, outcome)
    score = np.abs((mid_rank + 0.5) / (n_draws + 1) - 0.5)
    lowest, highest = draws.min(axis=0), draws.max(axis=0)
    beyond = np.maximum(np.maximum(lowest - outcome, outcome - highest), 0)
    return score + beyond / _range_unit(lowest, highest, is_count)


def predictive_interval(
    draws: np.ndarray, threshold: np.ndarray | float, is_count: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes whose :func:`predictive_score` stays within a threshold.

    Parameters
    ----------
    draws
        Draws from each cell's predictive distribution, shape ``(n_draws, n_cells, n_genes)``.
    threshold
        Largest score, broadcast to ``(n_cells, n_genes)``: from :func:`conformal_threshold`, or
        ``level / 2`` for the draws' own quantiles. NaN gives NaN.
    is_count
        Whether outcomes are whole numbers; then the ends are, too, and not below zero.

    Returns
    -------
    Lower and upper ends, both inclusive, shape ``(n_cells, n_genes)``. An interval is never
    empty: where no outcome is within the threshold it holds the most central one.

    Raises
    ------
    ValueError
        If there are no draws.
    """
    draws = np.asarray(draws)
    if draws.ndim < 1 or not len(draws):
        raise ValueError("There are no draws; pass at least one.")
    n_draws = len(draws)
    threshold = np.broadcast_to(np.asarray(threshold, dtype=float), draws.shape[1:])
    ordered = np.sort(draws, axis=0)
    # Inside the range, the score bounds the mid-rank: g(y) in [lower, upper].
    lower = (0.5 - np.nan_to_num(np.clip(threshold, 0, 0.5))) * (n_draws + 1) - 0.5
    upper = n_draws - lower
    low, high = _inner_ends(ordered, lower, upper, is_count)
    edge = 0.5 * n_draws / (n_draws + 1)
    excess = threshold - edge
    outside = excess >= -_TOLERANCE
    unit = _range_unit(ordered[0], ordered[-1], is_count)
    low = np.where(outside, ordered[0] - excess * unit, low)
    high = np.where(outside, ordered[-1] + excess * unit, high)
    if is_count:
        slack = 1e-6
        low, high = np.maximum(np.ceil(low - slack), 0), np.floor(high + slack)
    missing = np.isnan(threshold)
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def _mid_rank(draws: np.ndarray, value: np.ndarray) -> np.ndarray:
    below = np.count_nonzero(draws < value, axis=0)
    return 0.5 * (below + np.count_nonzero(draws <= value, axis=0))


def _range_unit(lowest: np.ndarray, highest: np.ndarray, is_count: bool) -> np.ndarray:
    # Draws of a silent gene are all zero; one more count is then one unit.
    spread = highest.astype(float) - lowest
    return spread + 1 if is_count else np.maximum(spread, 1e-6)


def _inner_ends(
    ordered: np.ndarray, lower: np.ndarray, upper: np.ndarray, is_count: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest outcome with a mid-rank in [lower, upper]."""
    n_draws, step = len(ordered), float(is_count)
    # Below the draw of this rank, mid-ranks are too small; at it, ties decide; above, enough.
    rank = np.clip(np.ceil(lower - _TOLERANCE), 1, n_draws).astype(int)
    low = np.take_along_axis(ordered, rank[None] - 1, axis=0)[0].astype(float)
    low = low + step * (_mid_rank(ordered, low) < lower - _TOLERANCE)
    rank = np.clip(np.floor(upper + _TOLERANCE) + 1, 1, n_draws).astype(int)
    high = np.take_along_axis(ordered, rank[None] - 1, axis=0)[0].astype(float)
    high = high - step * (_mid_rank(ordered, high) > upper + _TOLERANCE)
    empty = low > high
    # Then the ends are neighbours, and the more central one is kept.
    keep_high = _mid_rank(ordered, high) + _mid_rank(ordered, low) >= n_draws
    return np.where(empty & keep_high, high, low), np.where(empty & ~keep_high, low, high)
