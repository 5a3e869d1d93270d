"""Variances that borrow from those of other genes, for experiments with few clusters."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

#: Fewest genes whose variances say how variances differ.
_MIN_GENES = 10
#: Most degrees of freedom that the other genes' variances are worth.
_MAX_DF = 1e4


def moderate(variance: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Shrink the variance of each gene's estimate towards that of the others.

    True variances are assumed to follow a scaled inverse :math:`\chi^2` over genes with
    :math:`d_0` degrees of freedom and location :math:`s_0^2`, estimated from the moments of the
    logarithms of the measured ones. The posterior variance of a gene and its degrees of freedom
    are

    .. math:: \tilde s_g^2 = \frac{d_0 s_0^2 + d_g s_g^2}{d_0 + d_g}, \qquad d_0 + d_g .

    Parameters
    ----------
    variance, df
        Squared standard errors and their degrees of freedom, shape ``(n_genes,)``; NaN where
        there is none.

    Returns
    -------
    Variances and degrees of freedom. They are unchanged with fewer than 10 genes.

    References
    ----------
    Smyth, "Linear models and empirical Bayes methods for assessing differential expression in
    microarray experiments", 2004.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(variance) & np.isfinite(df) & (variance > 0)
    if known.sum() < _MIN_GENES:
        return variance, df
    half = df[known] / 2
    # Logarithms of a chi-squared variable over its degrees of freedom have this mean and variance.
    location = np.log(variance[known]) - special.digamma(half) + np.log(half)
    excess = location.var(ddof=1) - special.polygamma(1, half).mean()
    prior_df = _inverse_trigamma(excess)
    log_scale = location.mean() + special.digamma(prior_df / 2) - np.log(prior_df / 2)
    moderated, total = variance.copy(), df.copy()
    total[known] += prior_df
    moderated[known] = (prior_df * np.exp(log_scale) + df[known] * variance[known]) / total[known]
    return moderated, total


def _inverse_trigamma(excess: float) -> float:
    """Degrees of freedom whose log-variances vary by ``excess``."""
    if excess <= special.polygamma(1, _MAX_DF / 2):
        return _MAX_DF
    tail = optimize.brentq(
        lambda half: float(special.polygamma(1, half)) - excess, 1e-6, _MAX_DF / 2
    )
    return 2 * tail
