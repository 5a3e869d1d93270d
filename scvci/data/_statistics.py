"""One pass over the training cells: scales, and the moments of each (stratum, treatment)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ._validation import get_matrix

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK = 4096


@dataclass(frozen=True)
class Cohort:
    """Cells to compute statistics over, and how they are grouped.

    Attributes
    ----------
    adata, layer
        Where expression lies.
    indices
        Rows to use.
    treatment, stratum
        Codes of *all* rows, shape ``(n_obs,)``.
    n_treatments, n_strata
        Numbers of codes.
    size_factor
        Given size factors of all rows, or ``None`` for library sizes.
    batch
        Codes of the technical batches of all rows, or ``None``.
    """

    adata: AnnData
    layer: str | None
    indices: np.ndarray
    treatment: np.ndarray
    stratum: np.ndarray
    n_treatments: int
    n_strata: int
    size_factor: np.ndarray | None = None
    batch: np.ndarray | None = None

    @property
    def pair(self) -> np.ndarray:
        """Index of (stratum, treatment) of all rows; −1 for an unknown stratum."""
        return np.where(self.stratum >= 0, self.stratum * self.n_treatments + self.treatment, -1)

    def expression(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Expression of the given rows in ascending order, as float64 CSR."""
        block = get_matrix(self.adata, self.layer)[rows]
        return sparse.csr_matrix(block, dtype=np.float64)

    def size(self, rows: np.ndarray, block: sparse.csr_matrix) -> np.ndarray:
        """Library size or given size factor of rows whose expression is ``block``."""
        if self.size_factor is not None:
            return self.size_factor[rows]
        return np.asarray(block.sum(axis=1)).ravel()


@dataclass(frozen=True)
class Statistics:
    """Scales and moments of the training cells.

    Attributes
    ----------
    reference_size
        Median size of a cell.
    mean_rate
        Mean expression of a cell of size one (for log data the mean itself), ``(n_genes,)``.
    feature_mean, feature_std
        Moments of the encoder's features, ``(n_genes,)``.
    pair_mean, pair_var
        Moments at the reference size of each pair, ``(n_strata * n_treatments, n_genes)``; zero
        where a pair has no cells.
    pair_count
        Cells per pair, ``(n_strata * n_treatments,)``.
    counting_noise
        Variance at the reference size of a Poisson variable of mean one there: the mean over cells
        of the reference size in units of their own.
    """

    reference_size: float
    mean_rate: np.ndarray
    feature_mean: np.ndarray
    feature_std: np.ndarray
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


def compute_statistics(cohort: Cohort, uses_size: bool) -> Statistics:
    """Compute :class:`Statistics` in blocks of rows, so that memory does not grow with cells.

    Parameters
    ----------
    cohort
        The training cells.
    uses_size
        Whether expression is compared at a common size (counts) or as it is (log data).
    """
    indices = np.sort(cohort.indices)
    blocks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    reference_size, counting_noise = 1.0, 1.0
    if uses_size:
        sizes = np.concatenate([cohort.size(rows, cohort.expression(rows)) for rows in blocks])
        positive = sizes[sizes > 0]
        reference_size = float(np.median(positive)) if len(positive) else 1.0
        counting_noise = float((reference_size / positive).mean()) if len(positive) else 1.0
    n_pairs = cohort.n_strata * cohort.n_treatments
    n_genes = cohort.adata.n_vars
    count = np.zeros(n_pairs)
    first, second = np.zeros((n_pairs, n_genes)), np.zeros((n_pairs, n_genes))
    feature_first, feature_second = np.zeros(n_genes), np.zeros(n_genes)
    for rows in blocks:
        scaled = cohort.expression(rows)
        if uses_size:
            size = cohort.size(rows, scaled)
            factor = reference_size / np.where(size > 0, size, 1.0)
            scaled = sparse.diags(factor).tocsr() @ scaled
        features = scaled.log1p() if uses_size else scaled
        feature_first += np.asarray(features.sum(axis=0)).ravel()
        feature_second += np.asarray(features.multiply(features).sum(axis=0)).ravel()
        pair = cohort.pair[rows]
        known = pair >= 0
        group = sparse.csr_matrix(
            (np.ones(known.sum()), (pair[known], np.flatnonzero(known))),
            shape=(n_pairs, len(rows)),
        )
        count += np.asarray(group.sum(axis=1)).ravel()
        first += (group @ scaled).toarray()
        second += (group @ scaled.multiply(scaled)).toarray()
    n = max(len(indices), 1)
    feature_mean = feature_first / n
    divisor = np.maximum(count, 1)[:, None]
    mean = first / divisor
    return Statistics(
        reference_size=reference_size,
        mean_rate=first.sum(axis=0) / max(count.sum(), 1) / reference_size,
        feature_mean=feature_mean,
        feature_std=np.sqrt(np.maximum(feature_second / n - feature_mean**2, 0)),
        pair_mean=mean,
        pair_var=np.maximum(second / divisor - mean**2, 0),
        pair_count=count.astype(np.int64),
        counting_noise=counting_noise,
    )
