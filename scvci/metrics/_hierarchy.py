r"""Effects of treatments over strata as a mixed model.

On a scale on which effects add up, the effect of treatment t in stratum x is, for each gene,

.. math:: d_{x,t} = m + a_t + b_x + e_{x,t},

a part that all treatments share, one of the treatment, one of the stratum and one of the pair,
each normal over genes with a variance of its own. The variances say how far an effect carries over
to a stratum where it was not measured, and how much of what was measured is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

#: Cells of its stratum that a pair's moments are pooled with, when their noise is judged: a gene
#: that a few cells do not show has no variance among them, and is not known without error.
_N_POOLED = 20
#: Backfitting stops when no part moves by more, on the scale of the levels.
_TOLERANCE = 1e-5
_MAX_PASSES = 500


@dataclass(frozen=True)
class PairLevels:
    """Mean expression of each (stratum, treatment) on the scale of effects.

    Attributes
    ----------
    value
        Levels, shape ``(n_strata, n_treatments, n_genes)``: log1p per 10,000 of mean counts, or
        means of log-normalised data.
    noise
        Sampling variance of each level, same shape.
    observed
        Pairs that have cells, shape ``(n_strata, n_treatments)``.
    """

    value: np.ndarray
    noise: np.ndarray
    observed: np.ndarray


@dataclass(frozen=True)
class EffectVariances:
    """Variances over genes of the parts of an effect, on the scale of the levels.

    Attributes
    ----------
    common
        Of what all treatments do.
    treatment
        Of what a treatment does in every stratum.
    stratum
        Of what all treatments do in a stratum.
    pair
        Of what is particular to a treatment in a stratum.
    """

    common: float
    treatment: float
    stratum: float
    pair: float


def pair_levels(
    mean: np.ndarray, variance: np.ndarray, count: np.ndarray, is_count: bool = True
) -> PairLevels:
    r"""Levels of each pair and their sampling variances, by the delta method.

    For counts the level is :math:`\log(1 + s m)` with s = 10,000 over the pair's total, and its
    variance :math:`s^2 v / n / (1 + s m)^2`, v at least the mean, as counts vary at least as much
    as a Poisson variable. Moments in the variance are pooled with 20 cells of the stratum.

    Parameters
    ----------
    mean, variance
        Moments of the cells of each pair, shape ``(n_strata, n_treatments, n_genes)``.
    count
        Cells of each pair, shape ``(n_strata, n_treatments)``.
    is_count
        Whether the moments are those of counts, rather than of log-normalised data.
    """
    n = np.asarray(count, dtype=float)[..., None]
    total = np.maximum(n.sum(axis=1, keepdims=True), 1)

    def pooled(moment: np.ndarray) -> np.ndarray:
        of_stratum = (n * moment).sum(axis=1, keepdims=True) / total
        return (n * moment + _N_POOLED * of_stratum) / (n + _N_POOLED)

    if not is_count:
        noise = pooled(variance) / np.maximum(n, 1)
        return PairLevels(np.asarray(mean, dtype=float), noise, n[..., 0] > 0)
    sums = mean.sum(axis=-1, keepdims=True)
    scale = 1e4 / np.where(sums > 0, sums, 1)
    smooth = pooled(mean)
    spread = np.maximum(pooled(variance), smooth) / np.maximum(n, 1)
    noise = scale**2 * spread / (1 + scale * smooth) ** 2
    return PairLevels(np.log1p(scale * mean), noise, (n > 0)[..., 0] & (sums[..., 0] > 0))


def effect_variances(levels: PairLevels, control: int = 0) -> EffectVariances:
    """Estimate the variances by the method of moments.

    The products of the effects of two pairs have the expectation of the variances that the pairs
    share, plus their common noise: that of a pair itself, and that of a stratum's control, which
    all its effects are measured from. Averaged over genes, precise ones counting more, they are
    regressed on which parts are shared, with coefficients that are not negative.

    Parameters
    ----------
    levels
        Measured levels.
    control
        Index of the control.

    Returns
    -------
    A part that the design cannot tell from another (as that of the treatment, where there is one)
    has variance 0 and is counted with the other.
    """
    effects = _measured_effects(levels, control)
    observed, n_genes = effects.observed, effects.value.shape[-1]
    if not observed.any() or n_genes == 0:
        return EffectVariances(0.0, 0.0, 0.0, 0.0)
    base = levels.noise[:, control]
    total = (effects.noise + base[:, None])[observed].mean(axis=0)
    weight = 1 / (total + np.median(total) + 1e-12)
    weight /= weight.sum()
    d = np.where(observed[..., None], effects.value, 0)
    own = np.where(observed[..., None], effects.noise, 0).sum(axis=(0, 1)) @ weight
    shared = base @ weight
    n = observed.astype(float)
    n_x, n_t, n_all = n.sum(axis=1), n.sum(axis=0), n.sum()
    # Sums over all couples of pairs that share: anything, the treatment, the stratum, both.
    products = np.array(
        [
            d.sum(axis=(0, 1)) ** 2 @ weight,
            (d.sum(axis=0) ** 2 @ weight).sum(),
            (d.sum(axis=1) ** 2 @ weight).sum(),
            ((d**2) @ weight).sum(),
        ]
    )
    by_control = np.array([n_x**2 @ shared, n_x @ shared, n_x**2 @ shared, n_x @ shared])
    in_t, in_x = (n_t**2).sum(), (n_x**2).sum()
    gram = np.array(
        [
            [n_all**2, in_t, in_x, n_all],
            [in_t, in_t, n_all, n_all],
            [in_x, n_all, in_x, n_all],
            [n_all, n_all, n_all, n_all],
        ]
    )
    several_t, several_x = (n_t > 0).sum() > 1, (n_x > 0).sum() > 1
    kept = np.flatnonzero(np.array([True, several_t, several_t and several_x, several_x]))
    # Least squares with the Gram matrix in place of the couples, of which there may be millions.
    part = gram[np.ix_(kept, kept)]
    root = np.linalg.cholesky(part + 1e-9 * np.trace(part) * np.eye(len(kept))).T
    moments = (products - own - by_control)[kept]
    variances = np.zeros(4)
    variances[kept] = nnls(root, np.linalg.solve(root.T, moments))[0]
    return EffectVariances(*variances.tolist())


def forecast_levels(
    levels: PairLevels, variances: EffectVariances, control: int = 0
) -> np.ndarray:
    """Best linear prediction of every pair's level from the measured ones.

    Each part is the weighted mean of what the other parts leave over, shrunk by its variance;
    passes over the parts are repeated until they agree (backfitting). What the effects of a
    stratum have in common is split between the stratum and the noise of its control, from which
    all of them are measured.

    Parameters
    ----------
    levels
        Measured levels.
    variances
        Variances of the parts.
    control
        Index of the control.

    Returns
    -------
    Shape ``(n_strata, n_treatments, n_genes)``. A measured pair's forecast includes its own
    measurement; the control's is its level with the noise taken off that the stratum's effects
    show. Strata without a control are NaN.
    """
    effects = _measured_effects(levels, control)
    weight = effects.observed[..., None] / np.maximum(variances.pair + effects.noise, 1e-12)
    base = np.where(levels.observed[:, [control]], levels.noise[:, control], 0)
    of_x = variances.stratum + base
    precision = [1 / np.maximum(v, 1e-12) for v in (variances.common, variances.treatment, of_x)]
    # Sums over strata and treatments, over strata, over treatments.
    axes = ((0, 1), (0,), (1,))
    scale = [
        weight.sum(axis=a, keepdims=True) + (p[:, None] if np.ndim(p) else p)
        for a, p in zip(axes, precision, strict=True)
    ]
    parts = [np.zeros(s.shape) for s in scale]
    d = np.where(effects.observed[..., None], effects.value, 0)
    for _ in range(_MAX_PASSES):
        moved = 0.0
        for i, (axis, s) in enumerate(zip(axes, scale, strict=True)):
            others = sum(p for j, p in enumerate(parts) if j != i)
            new = (weight * (d - others)).sum(axis=axis, keepdims=True) / s
            moved = max(moved, float(np.abs(new - parts[i]).max(initial=0.0)))
            parts[i] = new
        if moved < _TOLERANCE:
            break
    forecast = parts[0] + parts[1] + parts[2]
    own = weight * variances.pair * (d - forecast)
    level = levels.value[:, [control]] + forecast + own
    by_noise = base / np.maximum(of_x, 1e-12)
    level[:, control] = levels.value[:, control] + by_noise * parts[2][:, 0]
    return np.where(levels.observed[:, [control], None], level, np.nan)


def _measured_effects(levels: PairLevels, control: int) -> PairLevels:
    """Differences to the stratum's control, and the treated pairs' own noise."""
    observed = levels.observed & levels.observed[:, [control]]
    observed[:, control] = False
    return PairLevels(levels.value - levels.value[:, [control]], levels.noise, observed)
