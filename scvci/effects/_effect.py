"""The effect of one treatment in one group: estimated from measured cells or predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ._contrasts import DIFFERENCE, derivative, weighted_sum
from ._intervals import NO_RATIO, Estimate, infer, student_interval, zero_p_value

if TYPE_CHECKING:
    from ._comparisons import Comparison
    from ._contrasts import Contrast
    from ._design import Design
    from ._intervals import Means
    from ._moments import BothPredictions, OutcomeSums
    from ._validation import Estimand, Scale

_TINY = 1e-12
#: Where this many times more cells of one arm express a gene, and so many beside, means are
#: compared by their difference. Unequal depth alone seldom does that.
_TIMES_EXPRESSING, _LEAST_EXPRESSING = 8, 20


@dataclass(frozen=True)
class Options:
    """What is estimated and how; see :func:`estimate_effects`."""

    estimand: Estimand
    scale: Scale
    prediction_weight: float | None
    level: float
    min_expressing: int


def measured_effect(
    contrast: Contrast,
    means: Means,
    sums: OutcomeSums,
    options: Options,
) -> Estimate:
    """Effect from the means of both arms, with the corrections by predictions that there are.

    Parameters
    ----------
    contrast
        The difference of both arms.
    means
        Means of the treated and reference cells, and perhaps a correction of each.
    sums
        Sums of the chunk of genes.
    options
        Scale, level and rules.
    """
    both = means.value[:2]
    if options.scale == "lfc":
        both = np.where(both == 0, half_a_count(contrast, sums), both)
    weights, lost_df = derivative(contrast.weights, both, options.scale), np.zeros(both.shape[1])
    if len(means.value) > 2:
        share, lost_df = _prediction_weight(means, weights, options.prediction_weight)
        both = both + share * means.value[2:]
        gradient = derivative(contrast.weights, both, options.scale)
        weights = np.concatenate([gradient, share * gradient])
    rules: dict[str, Any] = {
        "compared": both[0],
        "baseline": both[1],
        "expressing": contrast.count_expressing(sums),
        "level": options.level,
        "min_expressing": options.min_expressing,
        "lost_df": lost_df,
    }
    estimate = weighted_sum(contrast.weights, both, options.scale)
    found = infer(means, weights, estimate=estimate, **rules)
    if options.scale != "lfc":
        return found
    linear = derivative(contrast.weights, both)
    linear = linear if len(means.value) == 2 else np.concatenate([linear, share * linear])
    difference = infer(means, linear, estimate=weighted_sum(contrast.weights, both), **rules)
    inside = contrast.units[:, None], contrast.arms
    fewer, more = np.sort(sums.expressing[inside].sum(axis=0), axis=0)
    silenced = more > _LEAST_EXPRESSING + _TIMES_EXPRESSING * fewer
    by_difference = _ratio_by_difference(found, difference, options.level)
    return Estimate.combine([by_difference, found], lambda two: np.where(silenced, *two))


def _ratio_by_difference(ratio: Estimate, difference: Estimate, level: float) -> Estimate:
    """Log-ratio of means whose difference is tested.

    The logarithm of a mean that rests on a few counts has no useful error: a gene that a treatment
    silences, or switches on, would never be found. That both means are the same can be tested on
    their difference.
    """
    same = (difference.estimate == 0) | (ratio.estimate == 0)
    stretch = np.divide(
        ratio.estimate, difference.estimate, out=np.ones_like(ratio.estimate), where=~same
    )
    std_error = np.where(same, ratio.std_error, difference.std_error * stretch)
    low, high, _ = student_interval(ratio.estimate, std_error, difference.df, level)
    return replace(
        ratio,
        std_error=std_error,
        ci_low=low,
        ci_high=high,
        p_value=difference.p_value,
        df=difference.df,
        tested=difference.estimate,
        stretch=stretch,
    )


def half_a_count(contrast: Contrast, sums: OutcomeSums) -> np.ndarray:
    """Half a count in an arm's cells, as a mean: what the ratio takes a silent arm to have.

    Parameters
    ----------
    contrast
        Arms and units.
    sums
        Sums of the chunk of genes.

    Returns
    -------
    Shape ``(n_arms, n_genes)``; 0 in genes that are silent in all arms.
    """
    inside = contrast.units[:, None], contrast.arms
    total, square = (v[inside].sum(axis=(0, 1)) for v in (sums.total, sums.square))
    count = np.divide(square, total, out=np.zeros_like(total), where=total > 0)
    return count / (2 * contrast.n_cells[:, None])


def predicted_effect(
    comparison: Comparison, design: Design, predictions: BothPredictions, options: Options
) -> Estimate:
    """Effect from predictions alone, without an interval.

    Parameters
    ----------
    comparison
        The treatment and the units.
    design
        Cells by unit and arm.
    predictions
        Predictions of a chunk of genes.
    options
        Scale and estimand.
    """
    units = comparison.units
    total = np.stack([predictions.treated.total[units], predictions.reference.total[units]])
    arms = slice(None)
    if options.estimand == "att":
        arms = slice(comparison.arm, comparison.arm + 1)
    n = design.counts[units, arms].sum()
    means = total[:, :, arms].sum(axis=(1, 2)) / n
    estimate = weighted_sum(DIFFERENCE, means, options.scale)
    return Estimate.missing(
        *estimate.shape,
        estimate=estimate,
        compared=means[0],
        baseline=means[1],
        problem=np.where(np.isfinite(estimate), 0, NO_RATIO),
    )


def leakage_p_values(means: Means) -> np.ndarray:
    """P-values of the corrections by predictions, which are 0 in expectation without leakage.

    Parameters
    ----------
    means
        Means of both arms and their corrections.

    Returns
    -------
    Of the treated and of the reference mean, shape ``(2, n_genes)``; NaN where there is no
    correction.
    """
    scale = np.abs(means.value[:2]).max(axis=0)
    return np.stack(
        [zero_p_value(means.value[i], *means.variance(np.eye(4)[:, [i]]), scale) for i in (2, 3)]
    )


def _prediction_weight(
    means: Means, gradient: np.ndarray, fixed: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Share λ of the correction that is made, and the degrees of freedom that choosing it costs.

    It is the given one, or that with the least variance, as in a regression of the measured
    difference on the correction. Corrections that do not vary are made in full.
    """
    n_genes = means.value.shape[1]
    if fixed is not None:
        return np.full(n_genes, fixed), np.zeros(n_genes)
    total = means.covariance.sum(axis=0)
    measured, mixed, correction = (
        np.einsum("ig,jg,ijg->g", gradient, gradient, part)
        for part in (total[:2, :2], total[:2, 2:], total[2:, 2:])
    )
    varies = correction > _TINY * measured
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.clip(np.where(varies, -mixed / correction, 1.0), 0.0, 1.0)
    return weight, varies.astype(float)
