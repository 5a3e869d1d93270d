"""How far apart two populations of cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist, pdist

from ._population import check_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Ladder of γ in the kernel exp(−γ ‖x − y‖²) of :func:`mmd`. The numbers suit some 50 genes or
#: principal components of log-normalised cells.
MMD_GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Energy distance :math:`2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|`.

    Euclidean distances, not squared; pairs of a cell with itself are left out, so the estimate is
    unbiased and can be slightly negative.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_features)`` and ``(m, n_features)`` with n, m ≥ 2.
    """
    check_cells(x, y)
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def mmd(x: np.ndarray, y: np.ndarray, gammas: Sequence[float] = MMD_GAMMAS) -> float:
    r"""Squared maximum mean discrepancy, averaged over a fixed ladder of bandwidths.

    .. math:: \frac{1}{|\Gamma|} \sum_{\gamma \in \Gamma} E\, k_\gamma(X, X')
        + E\, k_\gamma(Y, Y') - 2 E\, k_\gamma(X, Y),
        \quad k_\gamma(x, y) = e^{-\gamma \|x - y\|^2}

    Pairs of a cell with itself are counted (the V-statistic, never negative and biased upwards by
    O(1/n)). The ladder is fixed, so values compare only within one space of features.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_features)`` and ``(m, n_features)`` with n, m ≥ 2.
    gammas
        γ, in units of one over squared distance.
    """
    check_cells(x, y)
    xx, yy, xy = (cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))
    values = [
        np.exp(-g * xx).mean() + np.exp(-g * yy).mean() - 2 * np.exp(-g * xy).mean()
        for g in gammas
    ]
    return float(np.mean(values))


def covariance_error(true_cells: np.ndarray, pred_cells: np.ndarray) -> float:
    r"""Error of gene-gene covariances, :math:`\|\hat C - C\|_F / \|C\|_F`.

    Variances are part of it. 1 is the error of predicting that nothing varies.

    Parameters
    ----------
    true_cells, pred_cells
        Cells on one scale, shapes ``(n, n_features)`` and ``(m, n_features)`` with n, m ≥ 2.

    Returns
    -------
    The error; NaN where no real gene varies.
    """
    check_cells(true_cells, pred_cells)
    true, pred = (np.atleast_2d(np.cov(cells, rowvar=False)) for cells in (true_cells, pred_cells))
    scale = float(np.linalg.norm(true))
    return float(np.linalg.norm(pred - true)) / scale if scale > 0 else float("nan")
