"""One pass over the training cells: scales, and the moments of each measured pair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scvci.pooling import Pairs

if TYPE_CHECKING:
    from ._cells import Cells

_CHUNK = 4096


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
    pairs
        The (stratum, treatment) pairs that have cells.
    pair_mean, pair_var
        Moments at the reference size of each pair, ``(n_pairs, n_genes)``.
    pair_count
        Cells of each pair, ``(n_pairs,)``.
    counting_noise
        Variance at the reference size of a Poisson variable of mean one there: the mean over cells
        of the reference size in units of their own.
    """

    reference_size: float
    mean_rate: np.ndarray
    feature_mean: np.ndarray
    pairs: Pairs
    pair_mean: np.ndarray
    pair_var: np.ndarray
    pair_count: np.ndarray
    counting_noise: float

    def at_size(self, size: float) -> Statistics:
        """Moments of pairs at another reference size, as another model's.

        Parameters
        ----------
        size
            The reference size.
        """
        factor = size / self.reference_size
        return replace(
            self,
            reference_size=size,
            pair_mean=self.pair_mean * factor,
            pair_var=self.pair_var * factor**2,
            counting_noise=self.counting_noise * factor,
        )

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
        n, mean, variance = self.pair_count[:, None], self.pair_mean, self.pair_var
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


def compute_statistics(cells: Cells, uses_size: bool) -> Statistics:
    """Compute :class:`Statistics` in blocks of rows, so that memory does not grow with cells.

    Parameters
    ----------
    cells
        The training cells, those in question.
    uses_size
        Whether expression is compared at a common size (counts) or as it is (log data).
    """
    indices = np.sort(cells.rows)
    blocks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    reference_size, counting_noise = 1.0, 1.0
    if uses_size:
        sizes = np.concatenate([cells.size(rows, cells.counts(rows)) for rows in blocks])
        positive = sizes[sizes > 0]
        reference_size = float(np.median(positive)) if len(positive) else 1.0
        counting_noise = float((reference_size / positive).mean()) if len(positive) else 1.0
    pairs, count = Pairs.count(
        cells.stratum[indices], cells.treatment[indices], cells.n_strata, cells.n_treatments
    )
    n_genes = len(cells.genes)
    first, second = np.zeros((len(pairs), n_genes)), np.zeros((len(pairs), n_genes))
    feature_total = np.zeros(n_genes)
    for rows in blocks:
        scaled = cells.counts(rows)
        if uses_size:
            size = cells.size(rows, scaled)
            factor = reference_size / np.where(size > 0, size, 1.0)
            scaled = sparse.diags(factor).tocsr() @ scaled
        features = scaled.log1p() if uses_size else scaled
        feature_total += np.asarray(features.sum(axis=0)).ravel()
        pair = pairs.rows(cells.stratum[rows], cells.treatment[rows])
        known = np.flatnonzero(pair >= 0)
        # Only the pairs of the block, which are few among thousands.
        present, position = np.unique(pair[known], return_inverse=True)
        group = sparse.csr_matrix(
            (np.ones(len(known)), (position, known)), shape=(len(present), len(rows))
        )
        first[present] += (group @ scaled).toarray()
        second[present] += (group @ scaled.multiply(scaled)).toarray()
    n = max(len(indices), 1)
    mean = first / count[:, None]
    return Statistics(
        reference_size=reference_size,
        mean_rate=first.sum(axis=0) / max(count.sum(), 1) / reference_size,
        feature_mean=feature_total / n,
        pairs=pairs,
        pair_mean=mean,
        pair_var=np.maximum(second / count[:, None] - mean**2, 0),
        pair_count=count,
        counting_noise=counting_noise,
    )
