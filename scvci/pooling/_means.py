"""Mean expression of measured pairs on the scale on which effects add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._pairs import Pairs

#: Cells of its stratum that a pair's moments are pooled with, when their noise is judged: a gene
#: that a few cells do not show has no variance among them, and is not known without error.
_N_POOLED = 20


@dataclass(frozen=True)
class PairMeans:
    """Mean expression of each measured pair on the scale of effects.

    Attributes
    ----------
    pairs
        The measured pairs.
    value
        Means, shape ``(n_pairs, n_genes)``: log1p per 10,000 of mean counts, or means of
        log-normalised data.
    noise
        Sampling variance of each mean, same shape.
    """

    pairs: Pairs
    value: np.ndarray
    noise: np.ndarray

    def take(self, rows: np.ndarray) -> PairMeans:
        """Choose some of the pairs, by ascending rows or a mask."""
        return PairMeans(self.pairs.take(rows), self.value[rows], self.noise[rows])

    def rows_of(self, treatment: int) -> np.ndarray:
        """Row of the treatment in each stratum, shape ``(n_strata,)``; −1 where not measured."""
        return self.pairs.rows(np.arange(self.pairs.n_strata), treatment)


def pair_means(
    pairs: Pairs,
    mean: np.ndarray,
    variance: np.ndarray,
    count: np.ndarray,
    is_count: bool = True,
) -> PairMeans:
    r"""Means of pairs on the scale of effects and their sampling variances, by the delta method.

    For counts the value is :math:`\log(1 + s m)` with s = 10,000 over the pair's total, and its
    variance :math:`s^2 v / n / (1 + s m)^2`, v at least the mean, as counts vary at least as much
    as a Poisson variable. Moments in the variance are pooled with 20 cells of the stratum.

    Parameters
    ----------
    pairs
        Pairs with cells.
    mean, variance
        Moments of the cells of each pair, shape ``(n_pairs, n_genes)``.
    count
        Cells of each pair, shape ``(n_pairs,)``.
    is_count
        Whether the moments are those of counts, rather than of log-normalised data.

    Returns
    -------
    Pairs whose cells have no counts at all are left out.
    """
    n = np.asarray(count, dtype=float)[:, None]
    total = pairs.sum_by_stratum(n)

    def pooled(moment: np.ndarray) -> np.ndarray:
        of_stratum = pairs.sum_by_stratum(n * moment) / np.maximum(total, 1)
        return (n * moment + _N_POOLED * of_stratum[pairs.stratum]) / (n + _N_POOLED)

    if not is_count:
        return PairMeans(pairs, np.asarray(mean, dtype=float), pooled(variance) / n)
    sums = mean.sum(axis=1, keepdims=True)
    scale = 1e4 / np.where(sums > 0, sums, 1)
    smooth = pooled(mean)
    noise = scale**2 * np.maximum(pooled(variance), smooth) / n / (1 + scale * smooth) ** 2
    return PairMeans(pairs, np.log1p(scale * mean), noise).take(sums[:, 0] > 0)


def merge_means(reference: PairMeans, own: PairMeans, control: int) -> PairMeans:
    """Means of a reference's pairs beside those of new cells, on the scale of the latter.

    Where both have a stratum's control, the reference's means move with it: effects carry over to
    another batch or laboratory, means do not.

    Parameters
    ----------
    reference, own
        Means of the reference and of the new cells, among the same strata and treatments.
    control
        Index of the control.
    """
    pairs = reference.pairs.union(own.pairs)
    known, new = (means.pairs.rows(pairs.stratum, pairs.treatment) for means in (reference, own))
    of_reference = (known >= 0)[:, None]
    value = np.where(of_reference, _padded(reference.value)[known], _padded(own.value)[new])
    noise = np.where(of_reference, _padded(reference.noise)[known], _padded(own.noise)[new])
    before, after = reference.rows_of(control), own.rows_of(control)
    both = ((before >= 0) & (after >= 0))[:, None]
    moved = np.where(both, _padded(own.value)[after] - _padded(reference.value)[before], 0)
    value = value + np.where(of_reference, moved[pairs.stratum], 0)
    is_moved = both[pairs.stratum] & (pairs.treatment == control)[:, None]
    return PairMeans(pairs, value, np.where(is_moved, _padded(own.noise)[new], noise))


def _padded(values: np.ndarray) -> np.ndarray:
    """Rows with one of zeros behind them, where row −1 points."""
    return np.concatenate([values, np.zeros_like(values, shape=(1, values.shape[1]))])
