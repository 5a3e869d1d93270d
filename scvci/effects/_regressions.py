"""Poisson regressions of counts on treatment × predicted effect, for many genes at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ._design import indicator
from ._intervals import student_interval

if TYPE_CHECKING:
    from scipy import sparse

#: Columns beside the constants of the arms: baseline, prediction, prediction × treatment.
N_COLUMNS = 3
_N_STEPS = 50
#: Most that one step changes a cell's linear predictor.
_MAX_STEP = 2.0
_TOLERANCE = 1e-6
_MAX_LOG = 30.0
#: Predicted log-fold changes with a smaller standard deviation are the same for all sample.
_MIN_SPREAD = 1e-3
#: Least share of the coefficient's information that other columns must leave to it.
_MIN_OWN_SHARE = 1e-3
_MAX_LEVERAGE = 0.9
_TINY = 1e-12

#: Why a gene has no estimate, by the code of the problem.
PROBLEMS = (
    "",
    "too few counts in an arm",
    "all cells have the same predicted effect",
    "predicted effect and treatment cannot be told apart",
    "regression did not converge",
    "no gene could be tested",
)
_FEW, _SAME, _ALIASED, _DIVERGED, _NONE = range(1, 6)


@dataclass(frozen=True)
class Sample:
    """Cells that the regressions of all genes are fitted to; arrays of shape ``(n_cells,)``.

    Attributes
    ----------
    treated
        Whether the cell received the treatment.
    offset
        Logarithm of its exposure.
    stratum
        Code of its stratum.
    cluster
        Code of its cluster, or ``None``.
    """

    treated: np.ndarray
    offset: np.ndarray
    stratum: np.ndarray
    cluster: np.ndarray | None

    @cached_property
    def members(self) -> sparse.csr_matrix:
        """Which cells are in each arm of each stratum, shape ``(n_arms, n_cells)``."""
        arms, code = np.unique(2 * self.stratum + self.treated, return_inverse=True)
        return indicator(code, len(arms))

    @cached_property
    def strata(self) -> sparse.csr_matrix:
        """Which cells are in each stratum, shape ``(n_strata, n_cells)``."""
        return indicator(self.stratum, int(self.stratum.max()) + 1)

    @property
    def degrees_of_freedom(self) -> int:
        """Of Student's t: clusters, or cells beyond coefficients."""
        if self.cluster is None:
            return len(self.treated) - N_COLUMNS - self.members.shape[0]
        return int(self.cluster.max())

    def centred(self, values: np.ndarray) -> np.ndarray:
        """Subtract means of strata from values of shape ``(n_cells, ...)``."""
        size = np.bincount(self.stratum)[self.stratum]
        return values - (self.strata.T @ (self.strata @ values)) / size.reshape(
            -1, *[1] * (values.ndim - 1)
        )

    def std_error(self, influence: np.ndarray) -> np.ndarray:
        """Return standard errors from influences of shape ``(n_cells, n_estimates)``."""
        if self.cluster is None:
            return np.sqrt((influence**2).sum(axis=0))
        n = int(self.cluster.max()) + 1
        sums = indicator(self.cluster, n) @ influence
        return np.sqrt(n / (n - 1) * (sums**2).sum(axis=0))

    def interval(
        self, estimate: np.ndarray, influence: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return standard error, ends of the interval and p-value of each estimate."""
        error = np.where(np.isfinite(estimate), self.std_error(influence), np.nan)
        df = np.full(len(estimate), float(self.degrees_of_freedom))
        return error, *student_interval(estimate, error, df, level)

    def shift(self, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean of treated minus mean of reference cells within strata, and its p-value.

        Scores that are the same for all cells have none.

        Parameters
        ----------
        score
            Shape ``(n_cells, n_scores)``.
        """
        arm = self.centred(self.treated.astype(float))
        arm /= (arm**2).sum()
        score = self.centred(score)
        difference = arm @ score
        residual = score - np.outer(arm / (arm**2).sum(), difference)
        p_value = self.interval(difference, arm[:, None] * residual, 0.95)[3]
        return difference, np.where(score.std(axis=0) < _MIN_SPREAD, np.nan, p_value)


@dataclass(frozen=True)
class Fits:
    """Coefficients of treatment × predicted effect in some genes.

    Attributes
    ----------
    estimate
        Shape ``(n_genes,)``; NaN where there is a problem.
    influence
        Of each cell on each estimate, shape ``(n_cells, n_genes)``; 0 where there is a problem.
    information
        On the coefficient, given that the others are unknown and counts as overdispersed as they
        are; 0 where there is a problem.
    spread
        Standard deviation of the prediction.
    problem
        Index in :data:`PROBLEMS`.
    """

    estimate: np.ndarray
    influence: np.ndarray
    information: np.ndarray
    spread: np.ndarray
    problem: np.ndarray


class Pool:
    """One coefficient for all genes: the mean of theirs, weighted by information.

    Influences are added up within cells, so that its error allows for genes that vary together.
    """

    def __init__(self, n_cells: int) -> None:
        self._information = 0.0
        self._weighted = 0.0
        self._influence = np.zeros(n_cells)
        self._squared_spread = 0.0
        self._n_genes = 0

    def add(self, fits: Fits) -> None:
        """Add some genes."""
        fitted = fits.problem == 0
        self._information += fits.information.sum()
        self._weighted += (fits.information * np.where(fitted, fits.estimate, 0)).sum()
        self._influence += fits.influence @ fits.information
        self._squared_spread += (fits.spread[fitted] ** 2).sum()
        self._n_genes += int(fitted.sum())

    def fits(self) -> Fits:
        """Return the pooled coefficient in the shape of a gene's."""
        found = self._n_genes > 0
        scale = self._information if found else np.nan
        return Fits(
            estimate=np.array([self._weighted / scale]),
            influence=self._influence[:, None] / (scale if found else 1.0),
            information=np.array([self._information]),
            spread=np.array([np.sqrt(self._squared_spread / max(self._n_genes, 1))]),
            problem=np.array([0 if found else _NONE]),
        )


def fit_genes(
    sample: Sample, counts: np.ndarray, base: np.ndarray, score: np.ndarray, min_counts: int
) -> Fits:
    """Fit the coefficient of treatment × predicted effect in each gene.

    Parameters
    ----------
    sample
        Arms, exposures, strata and clusters.
    counts, base, score
        Counts, predicted log-expression under the reference and predicted log-fold change, shape
        ``(n_cells, n_genes)``.
    min_counts
        Fewest counts of a gene in either arm.
    """
    n_cells, n_genes = counts.shape
    base, score = sample.centred(base), sample.centred(score)
    spread = score.std(axis=0)
    problem = np.zeros(n_genes, dtype=int)
    problem[spread < _MIN_SPREAD] = _SAME
    arms = [counts[arm].sum(axis=0) for arm in (sample.treated, ~sample.treated)]
    problem[np.minimum(*arms) < max(min_counts, 1)] = _FEW
    estimate, information = np.full(n_genes, np.nan), np.zeros(n_genes)
    influence = np.zeros((n_cells, n_genes))
    rows = np.flatnonzero(problem == 0)
    if not len(rows):
        return Fits(estimate, influence, information, spread, problem)
    regression = _Regression.of(sample, counts[:, rows], base[:, rows], score[:, rows])
    coefficients, converged = regression.solve()
    mean, design, hessian, inverse = regression.at(coefficients)
    own_variance = inverse[:, -1, -1]
    share = 1 / np.maximum(own_variance * hessian[:, -1, -1], _TINY)
    problem[rows[share < _MIN_OWN_SHARE]] = _ALIASED
    problem[rows[~converged]] = _DIVERGED
    fitted = problem[rows] == 0
    rows, scale = rows[fitted], spread[rows[fitted]]
    estimate[rows] = coefficients[fitted, -1] / scale
    residual = (regression.counts - mean)[fitted]
    pearson = residual**2 / np.maximum(mean[fitted], _TINY)
    dispersion = pearson.sum(axis=1) / (n_cells - N_COLUMNS - sample.members.shape[0])
    information[rows] = scale**2 / (own_variance[fitted] * np.maximum(dispersion, _TINY))
    pulls = _influence(design[fitted], inverse[fitted], mean[fitted], residual, sample)
    influence[:, rows] = (pulls / scale[:, None]).T
    return Fits(estimate, influence, information, spread, problem)


@dataclass(frozen=True)
class _Regression:
    """Poisson regressions of genes, with a constant for each arm of each stratum.

    Whatever the other coefficients, the best constants make the arms' fitted totals the observed
    ones; they are not searched for.

    Attributes
    ----------
    sample
        Exposures and arms.
    counts
        Shape ``(n_genes, n_cells)``.
    design
        Shape ``(n_genes, n_cells, N_COLUMNS)``.
    """

    sample: Sample
    counts: np.ndarray
    design: np.ndarray

    @classmethod
    def of(
        cls, sample: Sample, counts: np.ndarray, base: np.ndarray, score: np.ndarray
    ) -> _Regression:
        """Put standardised columns together."""
        base, score = (v / np.maximum(v.std(axis=0), _TINY) for v in (base, score))
        columns = [base, score, sample.treated[:, None] * score]
        return cls(sample, counts.T, np.stack(columns, axis=-1).transpose(1, 0, 2))

    def at(
        self, coefficients: np.ndarray, genes: np.ndarray | slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Means, columns freed of the arms' constants, information and its inverse.

        Baseline and prediction can be the same up to a factor; with a generalised inverse their
        product with treatment still has a coefficient.
        """
        design, counts, members = self.design[genes], self.counts[genes], self.sample.members
        eta = (design @ coefficients[:, :, None])[..., 0] + self.sample.offset
        raw = np.exp(np.clip(eta, -_MAX_LOG, _MAX_LOG))
        ratio = (counts @ members.T) / (raw @ members.T)
        mean = raw * (ratio @ members)
        total = np.maximum(mean @ members.T, _TINY)
        weighted = design * mean[..., None]
        n_genes, n_cells, _ = design.shape
        flat = weighted.transpose(0, 2, 1).reshape(-1, n_cells)
        arm_means = (flat @ members.T).reshape(n_genes, N_COLUMNS, -1) / total[:, None]
        own = (arm_means.reshape(-1, members.shape[0]) @ members).reshape(n_genes, N_COLUMNS, -1)
        centred = design - own.transpose(0, 2, 1)
        hessian = (centred * mean[..., None]).transpose(0, 2, 1) @ centred
        return mean, centred, hessian, np.linalg.pinv(hessian, rcond=1e-9, hermitian=True)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients by damped Newton steps, and which genes converged."""
        coefficients = np.zeros((len(self.counts), N_COLUMNS))
        moving = np.arange(len(self.counts))
        for _ in range(_N_STEPS):
            mean, design, _, inverse = self.at(coefficients[moving], moving)
            residual = (self.counts[moving] - mean)[..., None]
            step = inverse @ (design.transpose(0, 2, 1) @ residual)
            size = np.abs(self.design[moving] @ step).max(axis=(1, 2))
            damping = np.minimum(1, _MAX_STEP / np.maximum(size, _TINY))
            coefficients[moving] += step[..., 0] * damping[:, None]
            moving = moving[~(size < _TOLERANCE)]
            if not len(moving):
                break
        converged = np.ones(len(self.counts), dtype=bool)
        converged[moving] = False
        return coefficients, converged


def _influence(
    design: np.ndarray,
    inverse: np.ndarray,
    mean: np.ndarray,
    residual: np.ndarray,
    sample: Sample,
) -> np.ndarray:
    """Influence of each cell on the last coefficient, shape ``(n_genes, n_cells)``.

    A cell pulls the fit towards itself; residuals are divided by one minus its leverage (HC3).
    Sums over clusters are left as they are.
    """
    by_cell = design @ inverse
    influence = by_cell[..., -1] * residual
    if sample.cluster is None:
        arm_total = np.maximum(mean @ sample.members.T, _TINY) @ sample.members
        leverage = mean * ((by_cell * design).sum(axis=-1) + 1 / arm_total)
        influence = influence / (1 - np.minimum(leverage, _MAX_LEVERAGE))
    return influence
