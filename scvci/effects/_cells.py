r"""Means of the arms of a contrast, and how they vary where cells are independent.

In a unit x with n cells, of which :math:`n_t` received t, the mean under t is

.. math::

    \hat\Psi_t = \underbrace{\bar Y_t}_{\text{measured}}
        + \underbrace{\bar m_{\text{all}}(t) - \bar m_{T=t}(t)}_{\hat b_t}

(the one-step estimator with saturated propensities). Both terms are weighted sums of means over
the cells of each arm, so that their covariance is the sum over arms and units of the products of
weights and the covariance of a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._intervals import Means

if TYPE_CHECKING:
    from ._contrasts import Contrast
    from ._design import Design
    from ._moments import BothPredictions, OutcomeSums, PredictionSums
    from ._validation import Estimand

#: Cells' worth of all arms' variance that a silent arm borrows.
_N_BORROWED = 5.0
#: Sums of products about the means that are rounding errors, relative to those about zero.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class _ArmMoments:
    """Cells, means and sums of products about the means, by arm, unit and variable.

    Shapes ``(n_arms, n_units)``, ``(n_arms, n_units, n_variables, n_genes)`` and
    ``(n_arms, n_units, n_variables, n_variables, n_genes)``.
    """

    n: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, n: np.ndarray, total: np.ndarray, product: np.ndarray) -> _ArmMoments:
        """From numbers of cells, sums of variables and sums of their products."""
        some = np.maximum(n, 1)[:, :, None, None]
        mean = total / some
        scatter = product - some[..., None] * mean[:, :, :, None] * mean[:, :, None]
        size = np.sqrt(np.abs(np.einsum("axvvg->axvg", product)))
        scale = size[:, :, :, None] * size[:, :, None]
        return cls(n, mean, np.where(np.abs(scatter) > _ROUNDING * scale, scatter, 0.0))


def means_by_cells(
    contrast: Contrast,
    design: Design,
    outcomes: OutcomeSums,
    predictions: BothPredictions | None,
    estimand: Estimand,
) -> Means:
    """Means and corrections of a contrast whose cells are independent.

    Parameters
    ----------
    contrast
        Arms, units and weights of units.
    design
        Cells by unit and arm.
    outcomes, predictions
        Sums of a chunk of genes; without predictions there are no corrections.
    estimand
        ``"ate"`` or ``"att"``.
    """
    n_arms = len(contrast.arms)
    if predictions is None:
        moments = _of_outcomes(contrast, design, outcomes)
        weights = np.broadcast_to(np.eye(n_arms)[:, None], (*moments.n.shape, n_arms))
        variable = np.zeros(n_arms, dtype=int)
    else:
        moments = _with_predictions(contrast, design, outcomes, predictions)
        weights = _robust_weights(moments.n, estimand)
        variable = np.array([0, 0, 1, 2])
    corrections = slice(n_arms, None if estimand == "ate" else n_arms)
    borrowed = _borrowed(
        moments.n[:n_arms],
        moments.scatter[:n_arms, :, 0, 0],
        _of_arms(outcomes.expressing, contrast),
        contrast.unit_weights,
    )
    return _weighted(moments, contrast.unit_weights, weights, variable, corrections, borrowed)


def correction_by_cells(contrast: Contrast, design: Design, predictions: PredictionSums) -> Means:
    """Correction of the first arm's mean alone, where cells are independent.

    Parameters
    ----------
    contrast
        Arms, units and weights of units.
    design
        Cells by unit and arm.
    predictions
        Predictions under the first arm's treatment.
    """
    n, total, square = (
        _of_all(v, contrast) for v in (design.counts, predictions.total, predictions.square)
    )
    moments = _ArmMoments.of(n, total[:, :, None], square[:, :, None, None])
    weights = n / n.sum(axis=0) - np.eye(len(n))[:, [0]]
    variable = np.zeros(1, dtype=int)
    return _weighted(moments, contrast.unit_weights, weights[:, :, None], variable, slice(None))


def _of_arms(sums: np.ndarray, contrast: Contrast) -> np.ndarray:
    """Take the sums of the contrast's arms and units, ``(n_arms, n_units, ...)``."""
    return sums[contrast.units, contrast.arms[:, None]]


def _of_all(sums: np.ndarray, contrast: Contrast) -> np.ndarray:
    """Take the same and the sums of all other arms together, ``(n_arms + 1, n_units, ...)``."""
    arms = _of_arms(sums, contrast)
    return np.concatenate([arms, (sums[contrast.units].sum(axis=1) - arms.sum(axis=0))[None]])


def _of_outcomes(contrast: Contrast, design: Design, outcomes: OutcomeSums) -> _ArmMoments:
    n, total, square = (
        _of_arms(v, contrast) for v in (design.counts, outcomes.total, outcomes.square)
    )
    return _ArmMoments.of(n, total[:, :, None], square[:, :, None, None])


def _with_predictions(
    contrast: Contrast, design: Design, outcomes: OutcomeSums, both: BothPredictions
) -> _ArmMoments:
    """Moments of outcome, prediction under t and prediction under the reference."""

    def padded(sums: np.ndarray) -> np.ndarray:
        # Outcomes of other arms are of no use; zeros keep the arrays in one piece.
        arms = _of_arms(sums, contrast)
        return np.concatenate([arms, np.zeros_like(arms[:1])])

    treated, reference = both.treated, both.reference
    total = np.stack(
        [padded(outcomes.total), *(_of_all(p.total, contrast) for p in (treated, reference))],
        axis=2,
    )
    yy, yt, y0 = (
        padded(v) for v in (outcomes.square, both.outcome_treated, both.outcome_reference)
    )
    tt, t0, oo = (
        _of_all(v, contrast) for v in (treated.square, treated.product, reference.square)
    )
    rows = [np.stack(row, axis=2) for row in ([yy, yt, y0], [yt, tt, t0], [y0, t0, oo])]
    return _ArmMoments.of(_of_all(design.counts, contrast), total, np.stack(rows, axis=2))


def _robust_weights(n: np.ndarray, estimand: Estimand) -> np.ndarray:
    """Weights of the arms' means in both measured means and their corrections.

    Shape ``(n_arms, n_units, 4)``. For the ATE a correction leads from the cells of an arm to all
    cells; for the ATT from the reference's to the treated ones.
    """
    weights = np.zeros((*n.shape, 4))
    weights[0, :, 0] = weights[1, :, 1] = 1
    if estimand == "ate":
        weights[:, :, 2:] = (n / n.sum(axis=0))[:, :, None]
        weights[0, :, 2] -= 1
        weights[1, :, 3] -= 1
    else:
        weights[0, :, 3], weights[1, :, 3] = 1, -1
    return weights


def _weighted(
    moments: _ArmMoments,
    unit_weights: np.ndarray,
    weights: np.ndarray,
    variable: np.ndarray,
    shares: slice,
    borrowed: np.ndarray | None = None,
) -> Means:
    """Weighted sums of the arms' means, averaged over units, and how they vary.

    Parameters
    ----------
    moments
        Cells, means and products by arm and unit.
    unit_weights
        Shape ``(n_units,)``.
    weights
        Weights of the arms' means in each sum, shape ``(n_arms, n_units, n_sums)``.
    variable
        The variable that each sum is of, shape ``(n_sums,)``.
    shares
        Sums whose weights are shares of cells; these vary with the numbers of cells.
    borrowed
        What to add to the variances of the first sums, which are the arms' means, shape
        ``(n_arms, n_units, n_genes)``.
    """
    n, mean = moments.n, moments.mean[:, :, variable]
    value = np.einsum("axs,axsg->sg", unit_weights[:, None] * weights, mean)
    scale = unit_weights**2 / (np.maximum(n, 1) * np.maximum(n - 1, 1))
    products = scale[:, :, None, None] * weights[:, :, :, None] * weights[:, :, None]
    covariance = products[..., None] * moments.scatter[:, :, variable][:, :, :, variable]
    mean = mean[:, :, shares]
    if mean.shape[2]:
        # Arms whose means differ: which cells received what moves the mean over all.
        share = n / n.sum(axis=0)
        offset = mean - np.einsum("ax,axsg->xsg", share, mean)
        per_cell = (unit_weights**2 * share / n.sum(axis=0))[:, :, None, None, None]
        covariance[:, :, shares, shares] += per_cell * offset[:, :, :, None] * offset[:, :, None]
    for arm, extra in enumerate([] if borrowed is None else borrowed):
        covariance[arm, :, arm, arm] += extra
    shape = (n.size, *covariance.shape[2:])
    return Means(value, covariance.reshape(shape), df=np.maximum(n - 1.0, 1).ravel())


def _borrowed(
    n: np.ndarray, scatter: np.ndarray, expressing: np.ndarray, unit_weights: np.ndarray
) -> np.ndarray:
    """Variance that the mean of a nearly silent arm borrows from all arms together.

    In a gene that few cells express, an arm that happens to show none seems to have no variance,
    just when its mean is furthest off. Its variance is therefore at least the average of its own,
    counted by its expressing cells, and the one of all arms, counted as five cells times the
    share of silent ones. An arm whose cells all express the gene borrows nothing.

    Parameters
    ----------
    n
        Cells, shape ``(n_arms, n_units)``.
    scatter, expressing
        Sums of squares about the means and cells with an outcome other than 0, shape
        ``(n_arms, n_units, n_genes)``.
    unit_weights
        Shape ``(n_units,)``.

    Returns
    -------
    What to add to the variance of each mean, ``(n_arms, n_units, n_genes)``.
    """
    pooled = scatter.sum(axis=0) / np.maximum((n - 1).sum(axis=0), 1)[:, None]
    per_cell = (unit_weights**2 / n)[:, :, None]
    own = (per_cell * scatter / (n - 1)[:, :, None]).sum(axis=1)
    of_all = per_cell * pooled
    total = of_all.sum(axis=1)
    shown = expressing.sum(axis=1)
    silent = _N_BORROWED * (1 - shown / n.sum(axis=1)[:, None])
    mixed = (shown * own + silent * total) / (shown + silent)
    extra = np.maximum(mixed - own, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return extra[:, None] * np.nan_to_num(of_all / total[:, None])
