"""Passes over the training cells: scales, and the moments of each measured pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scvci.pooling import Pairs

if TYPE_CHECKING:
    from ._cells import Cells

_CHUNK = 4096


@dataclass(frozen=True)
class PairMoments:
    """Means over the cells of each measured pair, and how well they are known.

    Attributes
    ----------
    pairs
        The (stratum, treatment) pairs that have cells.
    mean
        Means, shape ``(n_pairs, n_genes)``.
    variance
        Number of cells times the sampling variance of the mean, same shape: where cells count
        alike, their variance.
    count
        Cells of each pair, shape ``(n_pairs,)``.
    """

    pairs: Pairs
    mean: np.ndarray
    variance: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Statistics:
    """Scales and moments of the training cells.

    Attributes
    ----------
    reference_size
        Median size of a cell.
    mean_rate
        Mean expression of a cell of size one (for log data the mean itself), ``(n_genes,)``.
    feature_mean
        Mean of the encoder's features, ``(n_genes,)``.
    moments
        Moments at the reference size of each pair; cells count alike.
    counting_noise
        Variance at the reference size of a Poisson variable of mean one there: the mean over cells
        of the reference size in units of their own.
    """

    reference_size: float
    mean_rate: np.ndarray
    feature_mean: np.ndarray
    moments: PairMoments
    counting_noise: float

    def overdispersion(self) -> np.ndarray:
        r"""Variance of counts within pairs beyond counting noise, in units of the squared mean.

        The moment estimate of the inverse of a negative binomial's θ, over all pairs of n cells,

        .. math:: \hat\alpha_g = \frac{\sum_p n_p (v_{pg} - c\, m_{pg})}{\sum_p n_p m_{pg}^2},

        shrunk towards the mean over genes by an empirical-Bayes factor. Differences between the
        cells of a pair are part of it, so that it is an upper bound.

        Returns
        -------
        Shape ``(n_genes,)``, from 0.01 to 10.
        """
        n, mean, variance = self.moments.count[:, None], self.moments.mean, self.moments.variance
        scale = np.maximum((n * mean**2).sum(axis=0), 1e-12)
        raw = (n * (variance - self.counting_noise * mean)).sum(axis=0) / scale
        # Sampling variance of the variance of counts whose fourth cumulant is a Poisson's.
        noise = (n * (2 * variance**2 + variance)).sum(axis=0) / scale**2
        # Genes differ by some tenths; those that are measured better than that count alike.
        weight = 1 / (noise + 0.1)
        common = np.average(raw, weights=weight)
        spread = max(float(np.average((raw - common) ** 2 - noise, weights=weight)), 0.0)
        shrunk = common + (raw - common) * spread / (spread + noise + 1e-12)
        return np.clip(shrunk, 0.01, 10.0)


class _PairSums:
    """Sums over the cells of each pair, a block of cells after another.

    Parameters
    ----------
    cells
        The training cells, those in question.
    weighted
        Whether cells have weights; if not, they count alike.
    """

    def __init__(self, cells: Cells, weighted: bool) -> None:
        self.cells, self.weighted = cells, weighted
        self.pairs, self.count = Pairs.count(
            cells.stratum[cells.rows],
            cells.treatment[cells.rows],
            cells.n_strata,
            cells.n_treatments,
        )
        shape = (len(self.pairs), len(cells.genes))
        self.weight, self.first, self.second = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
        # A weight of one is its own square.
        self.weight2 = np.zeros(shape[0]) if weighted else self.weight
        self.cross = np.zeros(shape) if weighted else self.first

    def add(
        self, rows: np.ndarray, values: sparse.csr_matrix, weight: np.ndarray | None = None
    ) -> None:
        """Add cells.

        Parameters
        ----------
        rows, values, weight
            Rows of the cells, their values ``(n_cells, n_genes)`` and, if cells have any, weights
            ``(n_cells,)``.
        """
        pair = self.pairs.rows(self.cells.stratum[rows], self.cells.treatment[rows])
        known = np.flatnonzero(pair >= 0)
        # Only the pairs of the block, which are few among thousands.
        present, position = np.unique(pair[known], return_inverse=True)
        w = np.ones(len(known)) if weight is None else weight[known]
        group, group2 = (
            sparse.csr_matrix((v, (position, known)), shape=(len(present), len(rows)))
            for v in (w, w**2)
        )
        self.weight[present] += np.asarray(group.sum(axis=1)).ravel()
        self.first[present] += (group @ values).toarray()
        self.second[present] += (group2 @ values.multiply(values)).toarray()
        if self.weighted:
            self.weight2[present] += np.asarray(group2.sum(axis=1)).ravel()
            self.cross[present] += (group2 @ values).toarray()

    def moments(self) -> PairMoments:
        """Weighted means, and variances by the squared residuals of a ratio of sums."""
        total = np.maximum(self.weight, np.finfo(float).tiny)[:, None]
        mean = self.first / total
        squares = self.second - 2 * mean * self.cross + mean**2 * self.weight2[:, None]
        variance = self.count[:, None] * squares / total**2
        return PairMoments(self.pairs, mean, np.maximum(variance, 0), self.count)


def _blocks(cells: Cells) -> list[np.ndarray]:
    """Rows in question, in order and in blocks, so that memory does not grow with cells."""
    indices = np.sort(cells.rows)
    return [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]


def _at_size(values: sparse.csr_matrix, size: np.ndarray, target: float) -> sparse.csr_matrix:
    """Scale cells ``(n_cells, n_genes)`` to a common size; those of size zero stay."""
    return sparse.diags(target / np.where(size > 0, size, 1.0)).tocsr() @ values


def compute_statistics(cells: Cells, uses_size: bool) -> Statistics:
    """Compute :class:`Statistics`.

    Parameters
    ----------
    cells
        The training cells, those in question.
    uses_size
        Whether expression is compared at a common size (counts) or as it is (log data).
    """
    blocks = _blocks(cells)
    reference_size, counting_noise = 1.0, 1.0
    if uses_size:
        sizes = np.concatenate([cells.size(rows, cells.counts(rows)) for rows in blocks])
        positive = sizes[sizes > 0]
        reference_size = float(np.median(positive)) if len(positive) else 1.0
        counting_noise = float((reference_size / positive).mean()) if len(positive) else 1.0
    sums, feature_total = _PairSums(cells, weighted=False), np.zeros(len(cells.genes))
    for rows in blocks:
        values = cells.counts(rows)
        if uses_size:
            values = _at_size(values, cells.size(rows, values), reference_size)
        features = values.log1p() if uses_size else values
        feature_total += np.asarray(features.sum(axis=0)).ravel()
        sums.add(rows, values)
    return Statistics(
        reference_size=reference_size,
        mean_rate=sums.first.sum(axis=0) / max(sums.count.sum(), 1) / reference_size,
        feature_mean=feature_total / max(len(cells.rows), 1),
        moments=sums.moments(),
        counting_noise=counting_noise,
    )


def pseudobulk_moments(cells: Cells, size: float | None) -> PairMoments:
    """Take means in which molecules count alike: summed counts over the summed sizes of cells.

    Where cells are shallow they are better known than means in which cells count alike, most of
    whose noise comes from the cells with the fewest counts. Where expression goes with depth they
    are another quantity: the one that summed predictions at each cell's own size compare with.

    Parameters
    ----------
    cells
        The training cells, those in question.
    size
        Size to scale to; ``None`` for log data, which have no size: cells count alike then.
    """
    sums = _PairSums(cells, weighted=size is not None)
    for rows in _blocks(cells):
        values, weight = cells.counts(rows), None
        if size is not None:
            weight = cells.size(rows, values)
            values = _at_size(values, weight, size)
        sums.add(rows, values, weight)
    return sums.moments()
