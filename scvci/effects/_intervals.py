"""From estimates and their variance components to intervals, p-values and q-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats


@dataclass(frozen=True)
class Components:
    """Parts of an estimate, and how they vary together.

    The first two are the mean of the treated and of the reference cells; two more, where there
    are predictions, are the corrections that these add to each mean.

    Attributes
    ----------
    value
        Shape ``(n_parts, n_genes)``.
    covariance
        Contribution of each block of independent cells or clusters to the covariance, shape
        ``(n_blocks, n_parts, n_parts, n_genes)``.
    df
        Degrees of freedom of each block, shape ``(n_blocks,)``.
    """

    value: np.ndarray
    covariance: np.ndarray
    df: np.ndarray

    def variance(self, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Variance of a combination of parts and its degrees of freedom.

        These are those of Welch and Satterthwaite, :math:`(\sum_b v_b)^2 / \sum_b v_b^2 / d_b`.

        Parameters
        ----------
        gradient
            Coefficient of each part, shape ``(n_parts, n_genes)`` or ``(n_parts, 1)``.

        Returns
        -------
        Two arrays, shape ``(n_genes,)``. The degrees of freedom are NaN where the variance is 0.
        """
        a = np.broadcast_to(gradient, self.value.shape)
        part = np.einsum("ig,jg,bijg->bg", a, a, self.covariance, optimize=True)
        part = np.maximum(part, 0)
        total = part.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = total**2 / (part**2 / self.df[:, None]).sum(axis=0)
        return total, df


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
