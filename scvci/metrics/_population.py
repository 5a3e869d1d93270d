"""How well means and variances of populations are predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
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


def systema_reference(treatment_means: np.ndarray) -> np.ndarray:
    r"""Mean of the centroids of all treatments but the control, :math:`a` (Systema, 2025).

    As the reference of :func:`pearson_delta` it takes away what all treatments have in common.

    Parameters
    ----------
    treatment_means
        Means of the real cells of each treatment, without the control, shape
        ``(n_treatments, n_genes)``.

    Returns
    -------
    Shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If there are fewer than two treatments: the only one would be its own reference.
    """
    if np.ndim(treatment_means) != 2 or len(treatment_means) < 2:
        raise ValueError(
            "The Systema reference needs the means of at least two treatments, shape "
            f"(n_treatments, n_genes); got {np.shape(treatment_means)}."
        )
    return np.mean(treatment_means, axis=0)


def r2_variances(true_cells: np.ndarray, pred_cells: np.ndarray) -> float:
    r"""R² of variances over genes, :math:`R^2(v_t, \hat v_t)`; never clamped.

    Expected counts lack the noise of real cells: compare sampled with real cells, or expectations
    with expectations.

    Parameters
    ----------
    true_cells, pred_cells
        Cells on one scale, shapes ``(n, n_genes)`` and ``(m, n_genes)`` with n, m ≥ 2.
    """
    check_cells(true_cells, pred_cells)
    return float(r2_score(true_cells.var(axis=0, ddof=1), pred_cells.var(axis=0, ddof=1)))


def cosine_logfc(
    true_mean: np.ndarray,
    pred_mean: np.ndarray,
    control_mean: np.ndarray,
    pseudocount: float = 0.1,
) -> float:
    r"""Cosine of log-fold changes, :math:`\cos(\hat f, f)` (PerturBench).

    .. math:: f_g = \log \frac{m_{tg} + \epsilon}{c_g + \epsilon}

    Parameters
    ----------
    true_mean, pred_mean, control_mean
        Means of real, predicted and control cells on a *linear* scale, such as counts per 10,000,
        shape ``(n_genes,)``.
    pseudocount
        ε, in the units of the means.

    Returns
    -------
    The cosine; NaN where nothing changes.
    """
    _check_shapes(true_mean=true_mean, pred_mean=pred_mean, control_mean=control_mean)
    base = np.log(control_mean + pseudocount)
    true, pred = np.log(true_mean + pseudocount) - base, np.log(pred_mean + pseudocount) - base
    norm = float(np.linalg.norm(true) * np.linalg.norm(pred))
    return float(true @ pred) / norm if norm > 0 else float("nan")


def l2_top_expressed(
    true_mean: np.ndarray, pred_mean: np.ndarray, control_mean: np.ndarray, n_top: int = 1000
) -> float:
    r"""Euclidean error :math:`\|\hat m_t - m_t\|_2` over the most expressed genes.

    The error of Ahlmann-Eltze, Huber and Anders (2025).

    Parameters
    ----------
    true_mean, pred_mean, control_mean
        Means of real, predicted and control cells, shape ``(n_genes,)``.
    n_top
        Number of genes, those that the control expresses most; all where there are fewer.
    """
    _check_shapes(true_mean=true_mean, pred_mean=pred_mean, control_mean=control_mean)
    genes = np.argsort(-control_mean, kind="stable")[:n_top]
    return float(np.linalg.norm(pred_mean[genes] - true_mean[genes]))


def check_cells(x: np.ndarray, y: np.ndarray) -> None:
    """Refuse anything but two sets of at least two cells with the same features."""
    if np.ndim(x) != 2 or np.ndim(y) != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Need two sets of at least two cells; got {np.shape(x)} and {np.shape(y)}."
        )


def _check_shapes(**arrays: np.ndarray) -> None:
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Shapes differ: {shapes}.")
