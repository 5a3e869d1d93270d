"""How well means and distributions of populations are predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import r2_score

if TYPE_CHECKING:
    from scipy import sparse


def pseudobulk(counts: np.ndarray | sparse.spmatrix, target_sum: float = 1e4) -> np.ndarray:
    """Log-normalised expression of a population: counts are summed first, logs taken last.

    Means of log1p of cells and log1p of summed counts are different functionals; this is the
    one to use when populations of different noise are compared, as real and predicted cells are.

    Parameters
    ----------
    counts
        Counts or expected counts, shape ``(n_cells, n_genes)``.
    target_sum
        Total of the population after normalisation.

    Returns
    -------
    ``log1p(target_sum * summed counts / their total)``, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If there are no counts.
    """
    total = np.asarray(counts.sum(axis=0), dtype=float).ravel()
    if not total.sum() > 0:
        raise ValueError("A pseudobulk of no counts is not defined.")
    return np.log1p(target_sum * total / total.sum())


def r2_means(true_mean: np.ndarray, pred_mean: np.ndarray) -> float:
    r"""R² of means over genes, :math:`R^2(m_t, \hat m_t)` (VCI, CPA, chemCPA); never clamped.

    Differences between genes dominate it: predicting the control already scores high.

    Parameters
    ----------
    true_mean, pred_mean
        Means of real and predicted cells, shape ``(n_genes,)``.
    """
    _check_shapes(true_mean=true_mean, pred_mean=pred_mean)
    return float(r2_score(true_mean, pred_mean))


def r2_delta(true_mean: np.ndarray, pred_mean: np.ndarray, control_mean: np.ndarray) -> float:
    r"""R² of effects over genes, :math:`R^2(m_t - c, \hat m_t - c)`; never clamped.

    Parameters
    ----------
    true_mean, pred_mean, control_mean
        Means of real, predicted and control cells of one stratum, shape ``(n_genes,)``.
    """
    _check_shapes(true_mean=true_mean, pred_mean=pred_mean, control_mean=control_mean)
    return float(r2_score(true_mean - control_mean, pred_mean - control_mean))


def pearson_delta(
    true_mean: np.ndarray, pred_mean: np.ndarray, reference_mean: np.ndarray
) -> float:
    r"""Correlation of effects over genes, :math:`\mathrm{corr}(m_t - r, \hat m_t - r)`.

    Parameters
    ----------
    true_mean, pred_mean
        Means of real and predicted cells, shape ``(n_genes,)``.
    reference_mean
        The control's mean, or the mean of all treatments' centroids (Systema, 2025), which
        takes away what all treatments have in common.

    Returns
    -------
    The correlation; NaN where real or predicted effects do not vary.
    """
    _check_shapes(true_mean=true_mean, pred_mean=pred_mean, reference_mean=reference_mean)
    true, pred = true_mean - reference_mean, pred_mean - reference_mean
    if np.ptp(true) == 0 or np.ptp(pred) == 0:
        return float("nan")
    return float(np.corrcoef(true, pred)[0, 1])


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Energy distance :math:`2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|`.

    Euclidean distances, not squared; pairs of a cell with itself are left out, so the estimate is
    unbiased and can be slightly negative.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_features)`` and ``(m, n_features)`` with n, m ≥ 2.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"Need two sets of at least two cells; got {x.shape} and {y.shape}.")
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def _check_shapes(**arrays: np.ndarray) -> None:
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Shapes differ: {shapes}.")
