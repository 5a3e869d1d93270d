r"""Effects of treatments over strata as a mixed model.

On a scale on which effects add up, the effect of treatment t in stratum x is, for each gene,

.. math:: d_{x,t} = m + a_t + b_x + e_{x,t},

a part that all treatments share, one of the treatment, one of the stratum and one of the pair,
each normal over genes with a variance of its own. The variances say how far an effect carries over
to a stratum where it was not measured, and how much of what was measured is noise.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.optimize import nnls

from ._means import PairMeans
from ._mixture import mixture_variances

if TYPE_CHECKING:
    from collections.abc import Callable

#: Fitting stops when no part would move by more, on the scale of the means.
_TOLERANCE = 1e-6
_MAX_STEPS = 500
#: Numbers in an array while parts are fitted, a block of genes at a time.
_MAX_NUMBERS = 2_000_000
_TINY = 1e-12


@dataclass(frozen=True)
class EffectVariances:
    """Variances over genes of the parts of an effect, on the scale of the means.

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


@dataclass(frozen=True)
class Forecast:
    """Prediction of every pair's mean.

    Attributes
    ----------
    means
        The measured means.
    variances
        Variances of the parts.
    control
        Index of the control.
    common
        Part of all treatments, shape ``(1, n_genes)``.
    treatment
        Part of each treatment, shape ``(n_treatments, n_genes)``; zero for the control.
    stratum
        Part of each stratum, shape ``(n_strata, n_genes)``.
    """

    means: PairMeans
    variances: EffectVariances
    control: int
    common: np.ndarray
    treatment: np.ndarray
    stratum: np.ndarray

    def at(self, stratum: np.ndarray, treatment: np.ndarray) -> np.ndarray:
        """Predict pairs, measured or not.

        Parameters
        ----------
        stratum, treatment
            Codes of the pairs, shape ``(n,)``.

        Returns
        -------
        Shape ``(n, n_genes)``. A measured pair's forecast includes its own measurement; the
        control's is its mean with the noise taken off that the stratum's effects show. NaN in
        strata without a control.
        """
        means, pairs = self.means, self.means.pairs
        base = pairs.rows(stratum, self.control)
        value = np.full((len(base), means.value.shape[1]), np.nan)
        value[base >= 0] = means.value[base[base >= 0]]
        effect = self.common + self.treatment[treatment] + self.stratum[stratum]
        is_control = treatment == self.control
        row = pairs.rows(stratum, treatment)
        own = ~is_control & (base >= 0) & (row >= 0)
        left = means.value[row[own]] - value[own] - effect[own]
        effect[own] += _share(self.variances.pair, means.noise[row[own]]) * left
        shown = is_control & (base >= 0)
        noise_share = 1 - _share(self.variances.stratum, means.noise[base[shown]])
        effect[shown] = noise_share * self.stratum[stratum[shown]]
        return value + effect

    @cached_property
    def noise_share(self) -> np.ndarray:
        """Share of noise in the measured effects of each treatment, ``(n_treatments,)``.

        NaN for a treatment that was measured in no stratum with a control.
        """
        base = self.means.pairs.rows(self.means.pairs.stratum, self.control)
        used = self.means.take(base >= 0)
        noise = (used.noise.astype(float) + self.means.noise[base[base >= 0]]).mean(axis=1)
        n = np.bincount(used.pairs.treatment, minlength=used.pairs.n_treatments)
        total = used.pairs.sum_by_treatment(noise)
        mean = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return mean / (mean + sum(astuple(self.variances)) + _TINY)


def effect_variances(means: PairMeans, control: int = 0) -> EffectVariances:
    """Estimate the variances by the method of moments.

    The products of the effects of two pairs have the expectation of the variances that the pairs
    share, plus their common noise: that of a pair itself, and that of a stratum's control, which
    all its effects are measured from. Averaged over genes, precise ones counting more, they are
    regressed on which parts are shared, with coefficients that are not negative.

    Parameters
    ----------
    means
        Measured means.
    control
        Index of the control.

    Returns
    -------
    A part that the design cannot tell from another (as that of the treatment, where there is one)
    has variance 0 and is counted with the other.
    """
    effects, base = _measured_effects(means, control)
    pairs, d = effects.pairs, effects.value
    if d.size == 0:
        return EffectVariances(0.0, 0.0, 0.0, 0.0)
    n_x = np.bincount(pairs.stratum, minlength=pairs.n_strata).astype(float)
    n_t = np.bincount(pairs.treatment, minlength=pairs.n_treatments).astype(float)
    n_all = float(len(pairs))
    noise = effects.noise.sum(axis=0)
    total = (noise + n_x @ base) / n_all
    weight = 1 / (total + np.median(total) + _TINY)
    weight /= weight.sum()
    own, shared = noise @ weight, base @ weight
    # Sums over all couples of pairs that share: anything, the treatment, the stratum, both.
    sums = (d.sum(axis=0, keepdims=True), pairs.sum_by_treatment(d), pairs.sum_by_stratum(d), d)
    products = np.array([np.einsum("ng,ng,g->", s, s, weight) for s in sums])
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
    # Of treatments that were measured once each, what is particular to the stratum is not known.
    repeated = several_x and in_t > n_all
    kept = np.flatnonzero(np.array([True, several_t, several_t and several_x, repeated]))
    # Least squares with the Gram matrix in place of the couples, of which there may be millions.
    part = gram[np.ix_(kept, kept)]
    root = np.linalg.cholesky(part + 1e-9 * np.trace(part) * np.eye(len(kept))).T
    moments = (products - own - by_control)[kept]
    variances = np.zeros(4)
    variances[kept] = nnls(root, np.linalg.solve(root.T, moments))[0]
    return EffectVariances(*variances.tolist())


def forecast(
    means: PairMeans, variances: EffectVariances, control: int = 0, *, adaptive: bool = True
) -> Forecast:
    """Fit the parts of the mixed model to the measured means.

    Each part is the weighted mean of what the other parts leave over, shrunk by its variance
    (Henderson's mixed model equations). Where a treatment changes few genes, effects are not
    normal over genes: the parts of treatments have a mixture of scales as prior
    (:func:`mixture_variances`), so that noise goes and strong effects stay. What the effects of a
    stratum have in common is split between the stratum and the noise of its control, from which
    all of them are measured.

    Parameters
    ----------
    means
        Measured means.
    variances
        Variances of the parts.
    control
        Index of the control.
    adaptive
        ``False`` for normal priors: the best linear prediction.
    """
    shape = means.pairs.n_treatments, means.value.shape[1]
    single = np.full(shape, variances.treatment)
    parts = _fit_parts(means, variances, single, control)
    # Doing so again from these parts changes no forecast.
    if adaptive and variances.treatment > _TINY:
        single = _single_variances(means, variances, parts, control)
        parts = _fit_parts(means, variances, single, control)
    return Forecast(means, variances, control, *_split(parts, shape[0]))


def _split(parts: np.ndarray, n_treatments: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    common, treatment, stratum = np.split(parts, [1, 1 + n_treatments])
    return common, treatment, stratum


def _single_variances(
    means: PairMeans, variances: EffectVariances, parts: np.ndarray, control: int
) -> np.ndarray:
    """Prior variance of each treatment's part, from what the other parts leave of its effects."""
    effects, _ = _measured_effects(means, control)
    pairs = effects.pairs
    common, _, stratum = _split(parts, pairs.n_treatments)
    weight = 1 / np.maximum(variances.pair + effects.noise, _TINY)
    left = effects.value - common - stratum[pairs.stratum]
    total = pairs.sum_by_treatment(weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = pairs.sum_by_treatment(weight * left) / total
    return mixture_variances(estimate, 1 / np.maximum(total, _TINY), variances.treatment)


def _fit_parts(
    means: PairMeans, variances: EffectVariances, single: np.ndarray, control: int
) -> np.ndarray:
    """Solve the mixed model equations, a block of genes at a time.

    Parameters
    ----------
    means, variances, control
        See :func:`forecast`.
    single
        Variances of the treatments' parts, shape ``(n_treatments, n_genes)``.

    Returns
    -------
    The parts m, a and b below one another, shape ``(1 + n_treatments + n_strata, n_genes)``.
    """
    n_pairs, n_genes = means.value.shape
    n = max(1, _MAX_NUMBERS // max(n_pairs, 1))
    blocks = [slice(i, i + n) for i in range(0, n_genes, n)]
    solved = [
        _fit_block(
            replace(means, value=means.value[:, block], noise=means.noise[:, block]),
            variances,
            single[:, block],
            control,
        )
        for block in blocks
    ]
    return np.concatenate(solved, axis=1)


def _fit_block(
    means: PairMeans, variances: EffectVariances, single: np.ndarray, control: int
) -> np.ndarray:
    effects, base = _measured_effects(means, control)
    pairs = effects.pairs
    weight = 1 / np.maximum(variances.pair + effects.noise, _TINY)
    part_of_stratum = variances.stratum + base
    common = np.full_like(single, variances.common, shape=(1, single.shape[1]))
    precision = 1 / np.maximum(np.concatenate([common, single, part_of_stratum]), _TINY)
    row = np.arange(len(pairs))
    column = np.stack([0 * row, 1 + pairs.treatment, 1 + pairs.n_treatments + pairs.stratum])
    design = sparse.csr_matrix(
        (np.ones(3 * len(pairs)), (np.tile(row, 3), column.ravel())),
        shape=(len(pairs), len(precision)),
    )
    transposed = design.T.tocsr()

    def equations(parts: np.ndarray) -> np.ndarray:
        return transposed @ (weight * (design @ parts)) + precision * parts

    return _conjugate_gradients(
        equations, transposed @ (weight * effects.value), transposed @ weight + precision
    )


def _conjugate_gradients(
    matrix: Callable[[np.ndarray], np.ndarray], right: np.ndarray, diagonal: np.ndarray
) -> np.ndarray:
    """Solve a system of equations for each gene (column), preconditioned by the diagonal.

    Parameters
    ----------
    matrix
        Multiplies by the positive definite matrix of each gene.
    right
        Right sides, shape ``(n, n_genes)``.
    diagonal
        Diagonals of the matrices, same shape.
    """
    solution, residual = np.zeros_like(right), right
    step = direction = residual / diagonal
    size = (residual * step).sum(axis=0)
    for _ in range(_MAX_STEPS):
        if np.abs(step).max(initial=0) < _TOLERANCE:
            break
        image = matrix(direction)
        length = size / np.maximum((direction * image).sum(axis=0), _TINY**2)
        solution = solution + length * direction
        residual = residual - length * image
        step = residual / diagonal
        before, size = size, (residual * step).sum(axis=0)
        direction = step + size / np.maximum(before, _TINY**2) * direction
    return solution


def _share(variance: float, noise: np.ndarray) -> np.ndarray:
    """Share of a variance in its sum with noise, shape of the noise."""
    return variance / np.maximum(variance + noise, _TINY)


def _measured_effects(means: PairMeans, control: int) -> tuple[PairMeans, np.ndarray]:
    """Differences to the stratum's control, with the treated pairs' own noise, and its noise.

    The noise of a control that was not measured is zero, shape ``(n_strata, n_genes)``.
    """
    row = means.rows_of(control)
    noise = np.zeros((len(row), means.value.shape[1]))
    noise[row >= 0] = means.noise[row[row >= 0]]
    base = row[means.pairs.stratum]
    used = (base >= 0) & (means.pairs.treatment != control)
    chosen = means.take(used)
    value = chosen.value.astype(float) - means.value[base[used]]
    return PairMeans(chosen.pairs, value, chosen.noise.astype(float)), noise
