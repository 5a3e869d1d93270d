"""From means and their covariance to errors, intervals, p-values and q-values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special, stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Why a gene has no interval, by code.
PROBLEMS = (
    "",
    "constant in every arm: no interval",
    "too few expressing cells for an interval",
    "not expressed in an arm: no ratio",
)
CONSTANT, SPARSE, NO_RATIO = 1, 2, 3
#: Differences of means that are rounding errors, relative to the means.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Means:
    """Means of arms and corrections of these, and how they vary together.

    Attributes
    ----------
    value
        Shape ``(n_means, n_genes)``.
    covariance
        Contribution of each block of independent cells or clusters to the covariance, shape
        ``(n_blocks, n_means, n_means, n_genes)``.
    df
        Degrees of freedom of each block, shape ``(n_blocks,)``.
    """

    value: np.ndarray
    covariance: np.ndarray
    df: np.ndarray

    def variance(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Variance of a weighted sum of the means, and its degrees of freedom.

        These are those of Welch and Satterthwaite, :math:`(\sum_b v_b)^2 / \sum_b v_b^2 / d_b`.

        Parameters
        ----------
        weights
            Weight of each mean, shape ``(n_means, n_genes)`` or ``(n_means, 1)``.

        Returns
        -------
        Two arrays, shape ``(n_genes,)``. The degrees of freedom are NaN where the variance is 0.
        """
        a = np.broadcast_to(weights, self.value.shape)
        by_block = np.maximum((self.covariance * (a[:, None] * a)).sum(axis=(1, 2)), 0)
        total = by_block.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = total**2 / (by_block**2 / self.df[:, None]).sum(axis=0)
        return total, df


@dataclass(frozen=True)
class Estimate:
    """An estimate of each gene, all of shape ``(n_genes,)`` or ``(n_rows, n_genes)``.

    Attributes
    ----------
    estimate
        Usually ``compared`` less ``baseline``.
    compared, baseline
        The numbers it is made of: two means, or the effect of a combination and the sum of its
        members' effects.
    std_error, ci_low, ci_high, p_value, df
        Error, interval of Student's t, p-value of no effect and degrees of freedom.
    problem
        Index of :data:`PROBLEMS`.
    tested
        The number whose distance from 0 gives the p-value, usually the estimate.
    stretch
        ``std_error`` over the error of that number.
    least_error
        Error of that number that is known to be there, whatever is measured.
    """

    estimate: np.ndarray
    compared: np.ndarray
    baseline: np.ndarray
    std_error: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    p_value: np.ndarray
    df: np.ndarray
    problem: np.ndarray
    tested: np.ndarray
    stretch: np.ndarray
    least_error: np.ndarray

    @classmethod
    def missing(cls, *shape: int, **known: np.ndarray) -> Estimate:
        """NaN, but for what is known.

        Parameters
        ----------
        shape
            Shape of the arrays.
        known
            Arrays by name.
        """
        nothing = {f.name: np.full(shape, np.nan) for f in fields(cls)}
        return cls(**{**nothing, "problem": np.zeros(shape, dtype=np.int8), **known})

    def with_error(self, error: np.ndarray, df: np.ndarray, level: float) -> Estimate:
        """Give the tested number another error, and with it interval and p-value.

        Parameters
        ----------
        error, df
            Error of the tested number and its degrees of freedom; NaN where there is none.
        level
            Coverage of the interval, in (0, 1).
        """
        std_error = self.stretch * error
        low, high, _ = student_interval(self.estimate, std_error, df, level)
        _, _, p_value = student_interval(self.tested, error, df, level)
        return replace(self, std_error=std_error, ci_low=low, ci_high=high, p_value=p_value, df=df)

    @classmethod
    def combine(
        cls, estimates: Sequence[Estimate], how: Callable[[list[np.ndarray]], np.ndarray]
    ) -> Estimate:
        """Make one of several.

        Parameters
        ----------
        estimates
            The estimates.
        how
            Makes one array of theirs, such as :func:`numpy.stack` to put rows together.
        """
        names = [f.name for f in fields(cls)]
        return cls(**{name: how([getattr(e, name) for e in estimates]) for name in names})


def infer(
    means: Means,
    weights: np.ndarray,
    *,
    estimate: np.ndarray,
    compared: np.ndarray,
    baseline: np.ndarray,
    expressing: np.ndarray,
    level: float,
    min_expressing: int,
    lost_df: np.ndarray | float = 0.0,
) -> Estimate:
    """Add error, interval and p-value to an estimate, or the problem that stands in their way.

    Parameters
    ----------
    means
        Means and their covariance.
    weights
        Derivative of the estimate by each mean, shape ``(n_means, n_genes)`` or ``(n_means, 1)``.
    estimate, compared, baseline
        See :class:`Estimate`; not finite where there is no ratio.
    expressing
        Expressing cells of all arms, shape ``(n_genes,)``.
    level
        Coverage of the interval, in (0, 1).
    min_expressing
        Fewest expressing cells for an interval.
    lost_df
        Degrees of freedom that the choice of weights costs, shape ``(n_genes,)``.
    """
    variance, df = means.variance(weights)
    left = np.where(lost_df > 0, np.maximum(df - lost_df, 1), df)
    variance = variance * np.where(lost_df > 0, df / left, 1)
    problem = np.zeros(len(estimate), dtype=np.int8)
    problem[expressing < min_expressing] = SPARSE
    rounding = _ROUNDING**2 * ((weights * means.value) ** 2).sum(axis=0)
    problem[variance <= np.nan_to_num(rounding)] = CONSTANT
    problem[~np.isfinite(estimate)] = NO_RATIO
    std_error = np.where(problem == 0, np.sqrt(variance), np.nan)
    low, high, p_value = student_interval(estimate, std_error, left, level)
    return Estimate(
        estimate=estimate,
        compared=compared,
        baseline=baseline,
        std_error=std_error,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        df=left,
        problem=problem,
        tested=estimate,
        stretch=np.ones(len(estimate)),
        least_error=np.zeros(len(estimate)),
    )


def student_interval(
    estimate: np.ndarray, std_error: np.ndarray, df: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval of Student's t, and the two-sided p-value of no effect.

    Parameters
    ----------
    estimate, std_error, df
        Shape ``(n_genes,)``; NaN where there is no interval.
    level
        Coverage of the interval, in (0, 1).

    Returns
    -------
    Lower end, upper end and p-value, each of shape ``(n_genes,)``.
    """
    half = special.stdtrit(df, (1 + level) / 2) * std_error
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * special.stdtr(df, -np.abs(estimate / std_error))
    return estimate - half, estimate + half, p_value


def zero_p_value(
    value: np.ndarray, variance: np.ndarray, df: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """P-value of a statistic that should be 0.

    Parameters
    ----------
    value, variance, df
        The statistic, its variance and degrees of freedom, shape ``(n_genes,)``.
    scale
        Size of the numbers it is a difference of: what is smaller by 10⁻⁹ is rounding.

    Returns
    -------
    Shape ``(n_genes,)``. Without variance it is NaN if the statistic is 0, and 0 if it is not.
    """
    tiny = 1e-9 * scale
    varies = variance > tiny**2
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * special.stdtr(df, -np.abs(value) / np.sqrt(variance))
    return np.where(varies, p_value, np.where(np.abs(value) > tiny, 0.0, np.nan))


def adjust(p_value: np.ndarray) -> np.ndarray:
    """Q-values of Benjamini and Hochberg over the finite p-values; NaN elsewhere.

    Parameters
    ----------
    p_value
        Any shape; all of its numbers are one family.
    """
    q_value = np.full(np.shape(p_value), np.nan)
    finite = np.isfinite(p_value)
    if finite.any():
        q_value[finite] = stats.false_discovery_control(p_value[finite], method="bh")
    return q_value


def adjust_rows(p_value: np.ndarray) -> np.ndarray:
    """Q-values where each row is a family of its own.

    Parameters
    ----------
    p_value
        Shape ``(n_rows, n_genes)``.
    """
    return np.array([adjust(row) for row in p_value]).reshape(p_value.shape)
