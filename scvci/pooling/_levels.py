"""Levels of the strata, which their controls show: pooled where strata do not differ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ._mixture import mixture_variances

if TYPE_CHECKING:
    from ._means import PairMeans

#: Steps of the variance between strata, and where they stop.
_MAX_STEPS, _TOLERANCE = 50, 1e-6
_TINY = 1e-12


def pool_levels(means: PairMeans, control: int) -> PairMeans:
    r"""Shrink the controls of strata towards their mean, where strata differ less than by noise.

    Effects are measured from the level of a stratum's control, and added to it. For each gene the
    level of stratum x is :math:`c_x = \mu + u_x` with :math:`u_x` from a mixture of normals with
    variances around that between strata (:func:`mixture_variances`): marker genes of cell types
    stay as they were measured, while in replicates of one kind of cell the noise of few or shallow
    cells is averaged out.

    Parameters
    ----------
    means
        Measured means.
    control
        Index of the control.

    Returns
    -------
    The same pairs, controls with smaller noise.
    """
    row = means.rows_of(control)
    row = row[row >= 0]
    if len(row) < 2:
        return means
    level, noise = means.value[row].astype(float), means.noise[row].astype(float)
    variance = _variance_between(level, noise)
    off = _off_centre(level, noise + variance)
    own = mixture_variances(off, noise, variance) if variance > _TINY else np.zeros_like(noise)
    centre, precision = _centre(level, noise + own)
    kept = own / np.maximum(own + noise, _TINY)
    value, spread = means.value.copy(), means.noise.copy()
    value[row] = centre + kept * (level - centre)
    spread[row] = kept * noise + (1 - kept) ** 2 / precision
    return replace(means, value=value, noise=spread)


def _centre(level: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over strata by the precision of each, and its precision, shape ``(n_genes,)``."""
    weight = 1 / np.maximum(variance, _TINY)
    return (weight * level).sum(axis=0) / weight.sum(axis=0), weight.sum(axis=0)


def _off_centre(level: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Deviations of strata from their mean, scaled to the variance of one stratum by itself.

    What a stratum is off the mean of all has a little less variance than what it differs by.
    """
    return (level - _centre(level, variance)[0]) / np.sqrt(1 - 1 / len(level))


def _variance_between(level: np.ndarray, noise: np.ndarray) -> float:
    """Variance between strata by the method of moments, precise genes counting more."""
    weight = 1 / (noise + np.median(noise) + _TINY)
    variance = 0.0
    for _ in range(_MAX_STEPS):
        before = variance
        off = _off_centre(level, noise + variance)
        variance = max(float((weight * (off**2 - noise)).sum() / weight.sum()), 0.0)
        if abs(variance - before) < _TOLERANCE:
            break
    return variance
