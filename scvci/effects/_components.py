r"""Means of both arms, the corrections by predictions, and their covariances.

In a unit x with n cells, of which :math:`n_t` received t, the mean under t is

.. math::

    \hat\Psi_t = \underbrace{\bar Y_t}_{\text{measured}}
        + \underbrace{\bar m_{\text{all}}(t) - \bar m_{T=t}(t)}_{\hat b_t}

(the one-step estimator with saturated propensities). Each part is linear in the cells, with
influences centred within its unit; covariances are sums of their products over cells, or over
clusters within which they are summed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._design import REFERENCE
from ._intervals import Components

if TYPE_CHECKING:
    from ._design import Contrast, Design
    from ._moments import Outcomes, Predictions

#: Which variable (outcome, prediction under t, under the reference) a part is made of.
_VARIABLE = np.array([0, 0, 1, 2])
#: Cells' worth of the other arm's variance that a silent arm borrows.
_N_BORROWED = 5.0


@dataclass(frozen=True)
class Products:
    """Predictions under both treatments and sums of products, ``(n_units, n_arms, n_genes)``.

    Attributes
    ----------
    treated, reference
        Predictions under the target, with products of the two, and under the reference.
    outcome_treated, outcome_reference
        Products of outcomes and predictions, in the two arms of the contrast.
    """

    treated: Predictions
    reference: Predictions
    outcome_treated: np.ndarray
    outcome_reference: np.ndarray


def cell_components(
    contrast: Contrast,
    design: Design,
    outcomes: Outcomes,
    products: Products | None,
    estimand: str,
) -> Components:
    """Parts of a contrast whose cells are independent.

    Parameters
    ----------
    contrast
        Arms, units and weights.
    design
        Cells by unit and arm.
    outcomes, products
        Sums of a chunk of genes; without predictions there are no corrections.
    estimand
        ``"ate"`` or ``"att"``.
    """
    n, mean, scatter = _moments(contrast, design, outcomes, products)
    everyone = n.sum(axis=0)
    coefficient = _coefficients(n, everyone, estimand, with_predictions=products is not None)
    n_parts = coefficient.shape[-1]
    variable = _VARIABLE[:n_parts]
    covariance = (
        coefficient[:, :, :, None, None]
        * coefficient[:, :, None, :, None]
        * scatter[:, :, variable][:, :, :, variable]
    )
    value = np.zeros((n_parts, mean.shape[-1]))
    value[:2] = np.einsum("x,axg->ag", contrast.weights, mean[:2, :, 0])
    if products is not None:
        shift = _corrections(n, mean[:, :, 1:], estimand)
        value[2:] = np.einsum("x,xmg->mg", contrast.weights, shift)
        if estimand == "ate":
            covariance[:, :, 2:, 2:] += _between_arms(n, mean[:, :, 1:], everyone)
    factor = contrast.weights**2 * n / np.maximum(n - 1, 1)
    covariance *= factor[:, :, None, None, None]
    extra = _borrowed(contrast, scatter[:2, :, 0, 0], n[:2], outcomes.expressing)
    for arm in (0, 1):
        covariance[arm, :, arm, arm] += extra[arm]
    return Components(
        value=value,
        covariance=covariance.reshape(-1, *covariance.shape[2:]),
        df=np.maximum(n - 1, 1).ravel(),
    )


def _borrowed(
    contrast: Contrast, scatter: np.ndarray, n: np.ndarray, expressing: np.ndarray
) -> np.ndarray:
    """Variance that the mean of a nearly silent arm borrows from both arms together.

    In a gene that few cells express, an arm that happens to show none seems to have no variance,
    just when its mean is furthest off. Its variance is therefore at least the average of its own,
    counted by its expressing cells, and the one of both arms, counted as five cells times the
    share of silent ones. An arm whose cells all express the gene borrows nothing.

    Parameters
    ----------
    contrast
        Arms, units and weights.
    scatter
        Sums of squares about the means of both arms, shape ``(2, n_units, n_genes)``.
    n
        Cells, shape ``(2, n_units)``.
    expressing
        Cells with an outcome other than 0, shape ``(n_all_units, n_arms, n_genes)``.

    Returns
    -------
    What to add to the variance of each mean, ``(2, n_units, n_genes)``.
    """
    pooled = scatter.sum(axis=0) / np.maximum(n.sum(axis=0) - 2, 1)[:, None]
    per_cell = (contrast.weights**2 / n)[:, :, None]
    both = per_cell * pooled
    own = (per_cell * scatter / (n - 1)[:, :, None]).sum(axis=1)
    shown = _of_arms(expressing, contrast).sum(axis=1)
    share = _N_BORROWED * (1 - shown / n.sum(axis=1)[:, None])
    total = both.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mixed = (shown * own + share * total) / (shown + share)
        part = both / total[:, None]
    extra = np.maximum(np.nan_to_num(mixed) - own, 0)
    return extra[:, None] * np.nan_to_num(part)


def _of_arms(sums: np.ndarray, contrast: Contrast) -> np.ndarray:
    """Take the sums of the treated and of the reference cells, ``(2, n_used_units, n_genes)``."""
    return np.stack([sums[contrast.units, contrast.arm], sums[contrast.units, REFERENCE]])


def _of_all(sums: np.ndarray, contrast: Contrast) -> np.ndarray:
    """Take the sums of treated, reference and all other cells, ``(3, n_used_units, ...)``."""
    arms = _of_arms(sums, contrast)
    return np.concatenate([arms, (sums[contrast.units].sum(axis=1) - arms.sum(axis=0))[None]])


def _moments(
    contrast: Contrast, design: Design, outcomes: Outcomes, products: Products | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, means and sums of products about them: by arm, unit and variable.

    Shapes ``(n_arms, n_units)``, ``(n_arms, n_units, n_variables, n_genes)`` and
    ``(n_arms, n_units, n_variables, n_variables, n_genes)``.
    """
    if products is None:
        n = _of_arms(design.counts, contrast)
        first = _of_arms(outcomes.total, contrast)[:, :, None]
        second = _of_arms(outcomes.square, contrast)[:, :, None, None]
    else:
        n = _of_all(design.counts, contrast)
        p = products
        # What all other cells' outcomes are is of no use; zeros keep the arrays in one piece.
        by_variable = (_padded(outcomes.total, contrast), p.treated.total, p.reference.total)
        first = np.stack(
            [by_variable[0], *(_of_all(v, contrast) for v in by_variable[1:])], axis=2
        )
        yy = _padded(outcomes.square, contrast)
        yt, y0 = (_padded(v, contrast) for v in (p.outcome_treated, p.outcome_reference))
        tt, t0, oo = (
            _of_all(v, contrast) for v in (p.treated.square, p.treated.product, p.reference.square)
        )
        rows = [np.stack(row, axis=2) for row in ([yy, yt, y0], [yt, tt, t0], [y0, t0, oo])]
        second = np.stack(rows, axis=2)
    some = np.maximum(n, 1)[:, :, None, None]
    mean = first / some
    scatter = second - some[..., None] * mean[:, :, :, None] * mean[:, :, None]
    return n, mean, _without_rounding(scatter, second)


def _padded(sums: np.ndarray, contrast: Contrast) -> np.ndarray:
    arms = _of_arms(sums, contrast)
    return np.concatenate([arms, np.zeros_like(arms[:1])])


def _without_rounding(scatter: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Zero in place of the rounding errors that constants leave."""
    size = np.sqrt(np.abs(np.einsum("axvvg->axvg", second)))
    scale = size[:, :, :, None] * size[:, :, None]
    return np.where(np.abs(scatter) > 1e-12 * scale, scatter, 0.0)


def _coefficients(
    n: np.ndarray, everyone: np.ndarray, estimand: str, with_predictions: bool
) -> np.ndarray:
    """Coefficient of a cell's variable in the influence of each part, by arm and unit."""
    own = 1 / np.maximum(n, 1)
    coefficient = np.zeros((*n.shape, 4 if with_predictions else 2))
    coefficient[0, :, 0] = own[0]
    coefficient[1, :, 1] = own[1]
    if with_predictions and estimand == "ate":
        coefficient[:, :, 2:] = (1 / everyone)[None, :, None]
        coefficient[0, :, 2] -= own[0]
        coefficient[1, :, 3] -= own[1]
    elif with_predictions:
        coefficient[0, :, 3] = own[0]
        coefficient[1, :, 3] = -own[1]
    return coefficient


def _corrections(n: np.ndarray, mean: np.ndarray, estimand: str) -> np.ndarray:
    """Average what predictions add to the means of both arms, ``(n_units, 2, n_genes)``."""
    if estimand == "att":
        shift = mean[0] - mean[1]
        shift[:, 0] = 0
        return shift
    average = np.einsum("ax,axmg->xmg", n / n.sum(axis=0), mean)
    return average - np.stack([mean[0, :, 0], mean[1, :, 1]], axis=1)


def _between_arms(n: np.ndarray, mean: np.ndarray, everyone: np.ndarray) -> np.ndarray:
    """Products of the arms' mean influences, from predictions that differ between arms."""
    average = np.einsum("ax,axmg->xmg", n / everyone, mean)
    offset = np.where(n[:, :, None, None] > 0, mean - average, 0)
    per_cell = n / everyone**2
    return per_cell[:, :, None, None, None] * offset[:, :, :, None] * offset[:, :, None]
