"""Tables of means of each (stratum, treatment), and the baselines' predictions from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._baselines import BASELINES
from ._population import pseudobulk

if TYPE_CHECKING:
    from scipy import sparse


def pair_pseudobulks(
    counts: np.ndarray | sparse.spmatrix,
    treatment: np.ndarray,
    stratum: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """Pseudobulk of each (stratum, treatment), ``(n_strata, n_treatments, n_genes)``.

    Parameters
    ----------
    counts
        Counts, dense or sparse, shape ``(n_cells, n_genes)``.
    treatment, stratum
        Codes, shape ``(n_cells,)``.
    shape
        Numbers of strata and of treatments.

    Returns
    -------
    NaN for pairs without counts.
    """
    table = np.full((*shape, counts.shape[1]), np.nan)
    for x, t in np.ndindex(*shape):
        cells = (stratum == x) & (treatment == t)
        if cells.any() and counts[cells].sum() > 0:
            table[x, t] = pseudobulk(counts[cells])
    return table


def baseline_tables(means: np.ndarray, control: int = 0) -> dict[str, np.ndarray]:
    """Predictions of all baselines from a table of means, by name.

    Parameters
    ----------
    means, control
        See :func:`no_change`.
    """
    return {name: baseline(means, control) for name, baseline in BASELINES.items()}


def log_normalise(counts: np.ndarray, target_sum: float = 1e4) -> np.ndarray:
    """Cells as ``log1p(target_sum * proportion)``; a cell without counts is all zeros.

    Parameters
    ----------
    counts
        Counts or expected counts, shape ``(n_cells, n_genes)``.
    target_sum
        Counts per cell after normalisation.
    """
    counts = np.asarray(counts, dtype=float)
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(target_sum * counts / np.where(total > 0, total, 1))
