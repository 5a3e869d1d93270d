"""Size factors that do not follow a few genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ._moments import dense

if TYPE_CHECKING:
    from ._design import Design

#: Counts' worth of a set of cells from which on its ratio to the reference is used.
_LEAST_COUNTS = 5.0
#: Fewest genes that a factor is found from.
_MIN_GENES = 20
#: Variance of log-ratios between sets of cells that no number of counts reduces.
_SPREAD = 0.05
#: Relative difference of totals that is rounding.
_SAME = 1e-3


def composition_factors(outcomes: Any, design: Design) -> np.ndarray:
    r"""Find by how much normalised counts have to be divided so that most genes do not change.

    Shares of a library add up to one: where a treatment raises a few large genes, all others
    seem to fall. For a set s of cells the factor is the median over genes of
    :math:`\bar y_{sg} / \bar y_g`, the mean in the set over that in all cells of its unit (as the
    ratios of Anders and Huber, 2010, on pseudobulks). Genes are weighted by the precision of
    their ratio, and those with few counts are left out. Sets are clusters in an arm and unit, if
    there are clusters, and then arms of units: the median over genes of which some truly rise is
    off by the less, the less ratios vary by chance.

    Parameters
    ----------
    outcomes
        Normalised counts, shape ``(n_cells, n_genes)``, sparse or dense.
    design
        Cells by unit, arm and cluster.

    Returns
    -------
    Factor of each cell, shape ``(n_cells,)``; 1 in sets with fewer than 20 genes to go by.

    References
    ----------
    Anders and Huber, "Differential expression analysis for sequence count data", 2010.
    """
    n_arms = design.counts.shape[1]
    arms = design.cells, design.counts.ravel(), np.repeat(np.arange(len(design.counts)), n_arms)
    factors = np.ones(outcomes.shape[0])
    clusters = design.clusters
    if clusters is not None:
        of_clusters = _factors(outcomes, design, clusters.cells, clusters.size, clusters.unit)
        factors = clusters.cells.T @ of_clusters
        outcomes = rescaled(outcomes, factors)
    return factors * (arms[0].T @ _factors(outcomes, design, *arms))


def _factors(
    outcomes: Any, design: Design, members: sparse.csr_matrix, size: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """Factor of each set of cells in a unit, shape ``(n_sets,)``."""
    n_units, n_arms = design.counts.shape
    means = dense(members @ outcomes) / np.maximum(size, 1)[:, None]
    squares = outcomes.multiply(outcomes) if sparse.issparse(outcomes) else outcomes**2
    total, square = (
        dense(design.cells @ part).reshape(n_units, n_arms, -1).sum(axis=1)
        for part in (outcomes, squares)
    )
    of_unit = total / design.counts.sum(axis=1)[:, None]
    # What a count is worth: the ratio of mean square and mean.
    worth = np.divide(square, total, out=np.ones_like(square), where=total > 0)
    factors = np.ones(len(size))
    for i, own in enumerate(means):
        expected = size[i] * of_unit[unit[i]] / worth[unit[i]]
        used = (expected >= _LEAST_COUNTS) & (own > 0)
        if used.sum() >= _MIN_GENES:
            weight = 1 / np.sqrt(1 / expected[used] + _SPREAD)
            ratio = own[used] / of_unit[unit[i], used]
            factors[i] = np.quantile(ratio, 0.5, weights=weight, method="inverted_cdf")
    return factors


def are_shares(outcomes: Any) -> bool:
    """Whether the outcomes of all cells that have any add up to the same total.

    Parameters
    ----------
    outcomes
        Shape ``(n_cells, n_genes)``, sparse or dense.
    """
    total = np.asarray(outcomes.sum(axis=1), dtype=float).ravel()
    total = total[total != 0]
    return len(total) > 0 and bool(np.ptp(total) <= _SAME * np.abs(total).mean())


def rescaled(outcomes: Any, factors: np.ndarray) -> Any:
    """Divide the outcomes of each cell by its factor.

    Parameters
    ----------
    outcomes
        Shape ``(n_cells, n_genes)``, sparse or dense.
    factors
        Shape ``(n_cells,)``.
    """
    if sparse.issparse(outcomes):
        return sparse.csr_matrix(sparse.diags(1 / factors) @ outcomes)
    return np.asarray(outcomes) / factors[:, None]
