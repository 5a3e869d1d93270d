r"""Effects between clusters: a linear model of the means of each cluster in each arm.

Cells of a donor, well or guide are not independent; clusters are. What is compared are means over
the cells of one cluster in one arm and one block (*pseudobulks*), on the scale of the effect, by

.. math:: y_r = \beta_{e(r)} a_r + \gamma_{b(r)} + \varepsilon_r,

with :math:`a_r` 1 for treated cells and a constant for each block b, a stratum within a batch. A
stratum has an effect of its own, and the effect of a group is their weighted mean. Strata that
belong to one cluster each (a donor that is registered as a covariate) share an effect, and their
clusters are paired. The error is that of CR2 (Bell and McCaffrey, 2002; Pustejovsky and Tipton,
2018): sums of residuals over clusters, corrected for what the fit took from them, with the
degrees of freedom of Satterthwaite if pseudobulks vary alike. Where every cluster has both arms
this is the paired t-test of their means; where none has, errors are Welch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._intervals import CONSTANT, NO_RATIO, SPARSE, Estimate

if TYPE_CHECKING:
    from ._design import Design
    from ._effect import Options
    from ._moments import OutcomeSums
    from ._validation import ClusterWeighting

#: Counts of the shallowest arm that are added before a logarithm is taken. It is nearly linear
#: then where counts are few, so that arms of unequal depth do not differ by its curvature.
_OFFSET = 2.0
#: Counts of a pseudobulk from which on the curvature of the logarithm is of second order.
_MANY = 15.0
#: Eigenvalues of residuals' covariance that are rounding errors.
_TINY = 1e-9
#: Expressing cells from which on an arm's own ratio of variance to mean is known.
_MIN_EXPRESSING = 10
#: Differences of logarithms below which their ratio to the estimate is its limit.
_CLOSE = 1e-6
#: Least mean that a logarithm of a ratio is taken of, relative to the offset.
_LEAST_MEAN = 0.05


@dataclass(frozen=True)
class Pseudobulks:
    """Weights that turn pseudobulks into an effect and its error; the same for all genes.

    Attributes
    ----------
    sets
        The pseudobulks, as sets of the design, shape ``(n_rows,)``.
    treated, size
        Whether they are treated, and their cells, shape ``(n_rows,)``.
    effect, baseline
        Weights of the effect and of the reference's mean, shape ``(n_rows,)``.
    pulls
        Weights of each cluster's share of the error, shape ``(n_clusters, n_rows)``.
    kind
        Which arms each cluster has, as a code, shape ``(n_clusters,)``.
    df
        Degrees of freedom of the error; 0 if there is none.
    """

    sets: np.ndarray
    treated: np.ndarray
    size: np.ndarray
    effect: np.ndarray
    baseline: np.ndarray
    pulls: np.ndarray
    kind: np.ndarray
    df: float


def plan_pseudobulks(
    design: Design,
    arm: int,
    reference: int,
    units: np.ndarray,
    effect_of: np.ndarray,
    effect_weights: np.ndarray,
    weighting: ClusterWeighting,
) -> Pseudobulks:
    """Find the weights of pseudobulks in the difference of two arms.

    Parameters
    ----------
    design
        Cells by unit, arm and cluster.
    arm, reference
        The arms.
    units
        The blocks that are compared within; each has both arms.
    effect_of
        Effect that each of them shares in, shape ``(n_units,)``.
    effect_weights
        Weight of each effect, which sum to one.
    weighting
        ``"equal"``: each cluster counts once in an effect and arm, its pseudobulks by their cells;
        ``"cells"``: pseudobulks count by their cells.
    """
    clusters = design.clusters
    assert clusters is not None
    position = np.full(len(design.counts), -1)
    position[units] = np.arange(len(units))
    inside = np.isin(clusters.arm, [arm, reference]) & (position[clusters.unit] >= 0)
    sets = np.flatnonzero(inside)
    unit, size = position[clusters.unit[sets]], clusters.size[sets].astype(float)
    treated, effect = clusters.arm[sets] == arm, effect_of[unit]
    _, cluster = np.unique(clusters.cluster[sets], return_inverse=True)
    weight = size
    if weighting == "equal":
        weight = size / _sums(size, np.stack([effect, cluster, treated]))
    # Constants of units are taken out by subtracting weighted means; effects have units apart.
    centred = treated - _sums(weight * treated, unit) / _sums(weight, unit)
    scatter = _sums(weight * centred**2, effect)
    shares = effect_weights[effect] * weight * centred / scatter
    leverage = (unit[:, None] == unit) * (weight / _sums(weight, unit))
    leverage += (effect[:, None] == effect) * np.outer(centred / scatter, weight * centred)
    residuals = np.eye(len(sets)) - leverage
    pulls = np.stack(
        [
            shares[rows] @ _inverse_root(residuals[rows] @ residuals[rows].T) @ residuals[rows]
            for rows in (np.flatnonzero(cluster == c) for c in range(cluster.max() + 1))
        ]
    )
    products = pulls @ pulls.T
    total = np.trace(products)
    some = total > _TINY * (shares @ shares)
    base = effect_weights[effect] * weight * ~treated
    return Pseudobulks(
        sets=sets,
        treated=treated,
        size=size,
        effect=shares,
        baseline=base / _sums(weight * ~treated, effect),
        pulls=pulls,
        kind=_present(cluster, treated) + 2 * _present(cluster, ~treated),
        df=float(total**2 / (products**2).sum()) if some else 0.0,
    )


def _sums(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Sum of the values that have the same key (a column of keys, where there are several)."""
    _, code = np.unique(np.atleast_2d(keys), axis=1, return_inverse=True)
    code = code.ravel()
    return np.bincount(code, weights=values)[code]


def _present(cluster: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return (np.bincount(cluster, weights=inside) > 0).astype(int)


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """Inverse square root of a matrix that may be singular."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > _TINY
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


def pseudobulk_effect(
    plan: Pseudobulks,
    sums: OutcomeSums,
    counts: np.ndarray,
    units: np.ndarray,
    arms: tuple[int, int],
    options: Options,
) -> tuple[Estimate, np.ndarray]:
    """Estimate the effect on a chunk of genes.

    On ``"lfc"`` the logarithm of a pseudobulk is taken with an offset o, some counts of the
    shallowest arm. The difference of these logarithms is tested, and taken back to that of the
    means without the offset.

    Parameters
    ----------
    plan
        Weights.
    sums
        Sums of the chunk.
    counts
        Cells of each unit and arm, shape ``(n_units, n_arms)``.
    units, arms
        Units that are compared within; the treatment's arm and the reference's.
    options
        Scale, level and rules.

    Returns
    -------
    The estimate, and what each cluster pulls at the number that is tested, of whose squares the
    error is made, shape ``(n_clusters, n_genes)``.
    """
    means = sums.by_set[plan.sets]
    inside = units[:, None], np.array(arms)
    if options.scale != "lfc":
        estimate = tested = plan.effect @ means
        baseline = plan.baseline @ means
        pulls, compared = plan.pulls @ means, baseline + estimate
        stretch, least = np.ones_like(estimate), np.zeros_like(estimate)
    else:
        fano = _variance_to_mean(sums, counts, inside)
        offset = _OFFSET * fano.max(axis=0) * (1 / plan.size).mean()
        offset = np.where(offset > 0, offset, 1.0)
        arm = np.where(plan.treated, 0, 1)
        worth = fano[arm] / plan.size[:, None]
        level = np.stack([_average(means, plan.size * (arm == a)) for a in (0, 1)])[arm]
        logs = np.log2(means + offset) - _curvature(level, offset, worth)
        tested, base = plan.effect @ logs, plan.baseline @ logs
        pulls = plan.pulls @ logs
        baseline, compared = (
            np.maximum(2**log - offset, _LEAST_MEAN * offset) for log in (base, base + tested)
        )
        estimate = np.log2(compared) - np.log2(baseline)
        # The interval excludes 0 where the test does.
        far = (np.abs(tested) > _CLOSE) & (np.abs(estimate) > _CLOSE)
        stretch = np.where(far, estimate / np.where(far, tested, 1), 1 + offset / baseline)
        # What counting alone makes logarithms vary, if both arms had the same mean.
        mean = means.mean(axis=0)
        counting = plan.effect**2 @ worth * mean
        least = np.sqrt(counting) / ((mean + offset) * np.log(2))
    error = np.sqrt((pulls**2).sum(axis=0))
    problem = np.zeros(len(estimate), dtype=np.int8)
    problem[sums.expressing[inside].sum(axis=(0, 1)) < options.min_expressing] = SPARSE
    problem[error <= 1e-12 * np.abs(means).max(axis=0)] = CONSTANT
    if options.scale == "lfc":
        problem[means.max(axis=0) <= 0] = NO_RATIO
        estimate = np.where(problem == NO_RATIO, np.nan, estimate)
    found = Estimate.missing(
        *estimate.shape,
        estimate=estimate,
        compared=compared,
        baseline=baseline,
        problem=problem,
        tested=tested,
        stretch=stretch,
        least_error=least,
    )
    df = np.full(len(estimate), plan.df)
    return found.with_error(np.where(problem == 0, error, np.nan), df, options.level), pulls


def _average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum()


def _curvature(mean: np.ndarray, offset: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """How much lower the expected log2 of a mean is than that of its expectation.

    The fewer counts a pseudobulk has, the lower its logarithm is on average: with unequal numbers
    of cells or depths, arms would differ by that, and the more surely the more clusters there are.
    Means are taken for Poisson counts times what a count is worth.

    Parameters
    ----------
    mean
        Expected means, shape ``(n_rows, n_genes)``.
    offset
        Added before the logarithm, shape ``(n_genes,)``.
    worth
        Mean that one count makes, shape ``(n_rows, n_genes)``.

    Returns
    -------
    Shape ``(n_rows, n_genes)``, at most 0.
    """
    worth = np.where(worth > 0, worth, 1.0)
    rate, added = mean / worth, np.broadcast_to(offset, mean.shape) / worth
    # Second order where there are many counts, the sum over Poisson counts elsewhere.
    found = -rate / (2 * (rate + added) ** 2)
    few = rate < _MANY
    rate, added = rate[few], added[few]
    share = np.exp(-rate)
    expected = share * np.log(added)
    for count in range(1, int(_MANY + 7 * np.sqrt(_MANY))):
        share = share * rate / count
        expected += share * np.log(count + added)
    found[few] = np.minimum(expected - np.log(rate + added), 0)
    return found / np.log(2)


def _variance_to_mean(sums: OutcomeSums, counts: np.ndarray, inside: tuple) -> np.ndarray:
    """Variance over mean of the cells of each arm, what a count is worth; ``(2, n_genes)``.

    An arm in which few cells express a gene has that of the other, times how both compare in other
    genes.
    """
    total, square, shown = (v[inside] for v in (sums.total, sums.square, sums.expressing))
    n = np.maximum(counts[inside], 1)[..., None]
    variance, total = (square - total**2 / n).sum(axis=0), total.sum(axis=0)
    fano = np.maximum(variance, 0) / np.where(total > 0, total, 1)
    shown = shown.sum(axis=0)
    known = (shown >= _MIN_EXPRESSING) & (fano > 0)
    both = known.all(axis=0)
    ratio = np.median(fano[0, both] / fano[1, both]) if both.any() else 1.0
    lent = np.stack([fano[1] * ratio, fano[0] / ratio])
    return np.where(~known & (shown < shown[::-1]), lent, fano)
