"""One contrast: its estimate, its error and what stands in the way of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._intervals import student_interval, zero_p_value

if TYPE_CHECKING:
    from ._components import Products
    from ._design import Contrast, Design
    from ._intervals import Components

#: What may be wrong with a gene, by code.
PROBLEMS = (
    "",
    "constant in both arms: no interval",
    "too few expressing cells for an interval",
    "not expressed in an arm: no ratio",
)
_CONSTANT, _SPARSE, _NO_RATIO = 1, 2, 3
_TINY = 1e-12
_COLUMNS = (
    "estimate",
    "std_error",
    "ci_low",
    "ci_high",
    "p_value",
    "df",
    "mean_factual",
    "mean_counterfactual",
)


@dataclass(frozen=True)
class Options:
    """What is estimated and how; see :func:`estimate_effects`."""

    estimand: str
    scale: str
    prediction_weight: float | None
    level: float
    min_expressing: int


@dataclass
class Effects:
    """Columns of the table that differ by gene.

    Attributes
    ----------
    columns
        Each of shape ``(n_contrasts, n_genes)``; ``df`` are degrees of freedom.
    problem
        Index of :data:`PROBLEMS`, same shape.
    leakage_p
        P-values of the corrections of the treated and of the reference mean, shape
        ``(2, n_contrasts, n_genes)``; NaN where they are not tested.
    robust
        The same by the robust estimator, where it was asked for.
    """

    columns: dict[str, np.ndarray]
    problem: np.ndarray
    leakage_p: np.ndarray
    robust: Effects | None = None

    @classmethod
    def empty(cls, n_contrasts: int, n_genes: int, robust: bool = False) -> Effects:
        """NaN everywhere.

        Parameters
        ----------
        n_contrasts, n_genes
            Shape of the columns.
        robust
            Whether to make room for effects by the robust estimator.
        """
        shape = (n_contrasts, n_genes)
        return cls(
            columns={name: np.full(shape, np.nan) for name in _COLUMNS},
            problem=np.zeros(shape, dtype=np.int8),
            leakage_p=np.full((2, *shape), np.nan),
            robust=cls.empty(n_contrasts, n_genes) if robust else None,
        )


def measured_effect(
    components: Components,
    expressing: np.ndarray,
    options: Options,
    effects: Effects,
    row: int,
) -> None:
    """Fill in the effect of a contrast from the means of its arms.

    Parameters
    ----------
    components
        Parts of the estimate and their covariance.
    expressing
        Expressing cells of both arms, shape ``(n_genes,)``.
    options
        Scale, level and rules.
    effects, row
        Where to write.
    """
    measured = components.value[:2]
    gradient = _gradient(measured, options.scale)
    means, full, lost = measured, gradient, np.zeros(measured.shape[1])
    if len(components.value) > 2:
        weight, lost = _prediction_weight(components, gradient, options.prediction_weight)
        means = measured + weight * components.value[2:]
        gradient = _gradient(means, options.scale)
        full = np.concatenate([gradient, weight * gradient])
    variance, df = components.variance(full)
    left = np.where(lost > 0, np.maximum(df - lost, 1), df)
    variance, df = variance * np.where(lost > 0, df / left, 1), left
    estimate = _difference(means, options.scale)
    problem = np.zeros(len(estimate), dtype=np.int8)
    problem[expressing < options.min_expressing] = _SPARSE
    # Means of constants differ by rounding errors.
    rounding = _TINY**2 * (gradient * measured**2 * gradient).sum(axis=0)
    problem[variance <= np.nan_to_num(rounding)] = _CONSTANT
    problem[~np.isfinite(estimate)] = _NO_RATIO
    std_error = np.where(problem == 0, np.sqrt(variance), np.nan)
    low, high, p_value = student_interval(estimate, std_error, df, options.level)
    values = (estimate, std_error, low, high, p_value, df, *means)
    for name, value in zip(_COLUMNS, values, strict=True):
        effects.columns[name][row] = value
    effects.problem[row] = problem


def predicted_effect(
    contrast: Contrast,
    design: Design,
    products: Products,
    options: Options,
    effects: Effects,
    row: int,
) -> None:
    """Fill in the effect of a contrast from predictions alone, without an interval.

    Parameters
    ----------
    contrast
        Arm, units and weights.
    design
        Cells by unit and arm.
    products
        Predictions of a chunk of genes.
    options
        Scale and estimand.
    effects, row
        Where to write.
    """
    totals = np.stack([products.treated.total, products.reference.total])[:, contrast.units]
    counts = design.counts[contrast.units]
    if options.estimand == "att":
        totals, n = totals[:, :, contrast.arm], counts[:, contrast.arm]
    else:
        totals, n = totals.sum(axis=2), counts.sum(axis=1)
    means = totals.sum(axis=1) / n.sum()
    values = {
        "estimate": _difference(means, options.scale),
        "mean_factual": means[0],
        "mean_counterfactual": means[1],
    }
    for name, value in values.items():
        effects.columns[name][row] = value
    effects.problem[row] = np.where(np.isfinite(values["estimate"]), 0, _NO_RATIO)


def leakage_p_values(components: Components) -> np.ndarray:
    """P-values of the corrections by predictions, which are 0 in expectation without leakage.

    Parameters
    ----------
    components
        Four parts.

    Returns
    -------
    Of the treated and of the reference mean, shape ``(2, n_genes)``; NaN where there is no
    correction.
    """
    scale = np.abs(components.value[:2]).max(axis=0)
    p_values = []
    for part in (2, 3):
        variance, df = components.variance(np.eye(4)[:, [part]])
        p_values.append(zero_p_value(components.value[part], variance, df, scale))
    return np.stack(p_values)


def _gradient(means: np.ndarray, scale: str) -> np.ndarray:
    """Differentiate the effect by both means, ``(2, n_genes)``."""
    sign = np.array([[1.0], [-1.0]])
    if scale != "lfc":
        return np.broadcast_to(sign, means.shape)
    return sign / (np.log(2) * np.where(means > 0, means, np.nan))


def _difference(means: np.ndarray, scale: str) -> np.ndarray:
    if scale != "lfc":
        return means[0] - means[1]
    logs = np.log2(np.where(means > 0, means, np.nan))
    return logs[0] - logs[1]


def _prediction_weight(
    components: Components, gradient: np.ndarray, fixed: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share λ of the correction that is made, and the degrees of freedom that choosing it costs.

    It is the given one, or that with the least variance, as in a regression of the measured
    difference on the correction. Corrections that do not vary are made in full.
    """
    n_genes = components.value.shape[1]
    if fixed is not None:
        return np.full(n_genes, fixed), np.zeros(n_genes)
    total = components.covariance.sum(axis=0)
    measured, mixed, correction = (
        np.einsum("ig,jg,ijg->g", gradient, gradient, part)
        for part in (total[:2, :2], total[:2, 2:], total[2:, 2:])
    )
    varies = correction > _TINY * measured
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.clip(np.where(varies, -mixed / correction, 1.0), 0.0, 1.0)
    return weight, varies.astype(float)
