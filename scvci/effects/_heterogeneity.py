r"""Test whether an effect differs between the cells of a stratum, and in which genes.

Each cell is measured under one treatment only, so that its own outcomes cannot be compared. But
if a prediction :math:`s_{ig}` of cell i's log-fold change of gene g is any good, the difference
between treated and reference cells is larger where the prediction is. With
:math:`b_{ig}` the predicted log-expression under the reference and size :math:`\ell_i`, each
gene's counts are regressed on

.. math::

    \log E[y_{ig}] = \log \ell_i - T_i D_i + \alpha_g + \tau_g T_i
        + \beta_g b_{ig} + \kappa_g s_{ig} + \gamma_g T_i (s_{ig} - \bar s_g) .

:math:`\gamma_g` is zero if nothing of the prediction comes true, and one if all of it does: the
best linear predictor of Chernozhukov, Demirer, Duflo and Fernández-Val (2018), here of log-fold
changes. On this scale an effect that multiplies the expression of all cells by the same factor is
not heterogeneous, whatever their baselines. Counts are parts of a total: raising some genes lowers
the share of all others, and by more in cells where those genes are a larger part. The offset
:math:`D_i = \log \sum_h \pi_{ih} e^{\delta_h}`, with the cell's predicted reference composition
:math:`\pi_i` and observed mean log-fold changes :math:`\delta`, removes this. What predictions
of all genes have in common beyond it is removed as far as it comes true in the median gene, whose
log-fold change is assumed to be the same in all cells, as in size factors from medians of ratios.
Both are removed from s as well.

The estimating equations are those of Poisson regression, which need only the mean to be right.
As b and s are main effects as well, :math:`\gamma` is zero without heterogeneity even if they
predict the mean badly, provided that they do so equally in both arms. Errors are robust to any
variance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse, stats

from ._intervals import adjust
from ._moments import dense
from ._regressions import N_COLUMNS, PROBLEMS, Fits, Pool, Sample, fit_genes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: Rows that stand for all genes together.
_SUMMARIES = ("all", "signature")
#: Numbers in the design of the genes that are fitted at once.
_BLOCK = 2_000_000
#: Passes of the fixed point between fold changes and composition.
_N_PASSES = 4
_TINY = 1e-12
_COLUMNS = (
    "gene",
    "estimate",
    "std_error",
    "ci_low",
    "ci_high",
    "least_estimate",
    "p_value",
    "q_value",
    "n_treated",
    "n_reference",
    "predicted_sd",
    "confirmed_sd",
    "shift",
    "shift_p_value",
    "leakage",
    "note",
)


def heterogeneity_test(
    outcome: np.ndarray | sparse.spmatrix,
    treated: np.ndarray,
    baseline: np.ndarray,
    prediction: np.ndarray,
    genes: Sequence[str],
    *,
    size: np.ndarray | None = None,
    stratum: np.ndarray | None = None,
    cluster: np.ndarray | None = None,
    composition: bool = True,
    min_cells: int = 30,
    min_counts: int = 20,
    margin: float = 0.1,
    level: float = 0.95,
    leakage_level: float = 0.05,
) -> pd.DataFrame:
    r"""Test whether predicted differences between cells' effects come true.

    Parameters
    ----------
    outcome
        Counts of the cells, shape ``(n_cells, n_genes)``, dense or sparse. Predictions must
        not have been made from these counts.
    treated
        Which cells received the treatment, shape ``(n_cells,)``; the others are the reference.
    baseline, prediction
        Predicted expression under the reference and under the treatment at a common library
        size, positive, shape ``(n_cells, n_genes)``.
    genes
        Names of the genes.
    size
        Size of each cell, by default the sum of ``outcome``. Cells of size zero are left out.
    stratum
        Code or name of each cell's stratum, shape ``(n_cells,)``, by default one for
        all. Each stratum has its own expression and mean effect; differences between cells are
        those within strata. Strata without cells of both arms are left out.
    cluster
        Code or name of each cell's cluster (donor, well, guide), shape ``(n_cells,)``, for errors
        that allow for any dependence within clusters.
    composition
        Whether ``size`` is a total of which counts are parts; ``False`` for external size factors.
    min_cells
        Fewest cells in either arm.
    min_counts
        Fewest counts of a gene in either arm.
    margin
        Standard deviation of log-fold changes between cells, in natural log-fold, that is too
        small to be called heterogeneity.
    level
        Coverage of the intervals.
    leakage_level
        False discovery rate of the test of leakage.

    Returns
    -------
    Two rows for all genes together, then one per gene. ``"all"`` pools the genes' coefficients,
    weighted by their information. ``"signature"`` tests a single number per cell, the strength of
    its response: it replaces s by its projection on the mean effect. Columns are ``gene``;
    ``estimate`` of :math:`\gamma` with ``std_error``, ``ci_low`` and ``ci_high``;
    ``least_estimate``, ``margin / predicted_sd``, which the estimate has to exceed; ``p_value`` of
    ``confirmed_sd <= margin`` against larger ones and its ``q_value`` (Benjamini and Hochberg
    over the genes); ``predicted_sd``, the standard deviation of s over cells in natural log-fold
    (for all genes the root mean square of theirs), and ``confirmed_sd``, the part of it that came
    true, ``estimate * predicted_sd``; ``n_treated`` and ``n_reference``; ``shift``, the mean s of
    treated minus that of reference cells, which should be zero, with ``shift_p_value``
    (``"all"``: that any gene's is not) and ``leakage``, whether it is not; ``note``, why a row
    has no estimate, or that its interval is above 0 and yet below the margin.

    Raises
    ------
    ValueError
        If shapes disagree, counts are negative, or predictions are not positive.

    Notes
    -----
    The test is valid only if the predictions for a cell do not depend on its arm. ``leakage``
    tests one consequence, equal means of s. The rest is an assumption: a model that numbers the
    states of treated cells in another order than those of reference cells predicts differences
    that come true and are none. Predictions that are more accurate in one arm than in the other
    move :math:`\gamma` off zero, in either direction, by about that share of the baselines' own
    variation; ``margin`` allows for that. With ``margin=0`` the p-value is that of no
    heterogeneity at all, and is right only for predictions from a state that was measured before
    treatment.
    """
    _validate(outcome, treated, baseline, prediction, genes, stratum, cluster)
    total = np.asarray(outcome.sum(axis=1) if size is None else size, dtype=float).ravel()
    arm = np.asarray(treated, dtype=bool)
    code = _codes(np.zeros(len(arm)) if stratum is None else stratum)
    rows = np.flatnonzero((total > 0) & _has_both_arms(code, arm))
    arm, total, code = arm[rows], total[rows], _codes(code[rows])
    clusters = None if cluster is None else _codes(np.asarray(cluster)[rows])
    n_treated, n_reference = int(arm.sum()), int((~arm).sum())
    table = dict.fromkeys(_COLUMNS, np.nan) | {
        "gene": [*_SUMMARIES, *genes],
        "n_treated": n_treated,
        "n_reference": n_reference,
        "leakage": False,
    }
    if min(n_treated, n_reference) < max(min_cells, 2 * N_COLUMNS):
        return pd.DataFrame({**table, "note": f"fewer than min_cells={min_cells} cells in an arm"})
    if clusters is not None and clusters.max() == 0:
        return pd.DataFrame({**table, "note": "all cells are of one cluster"})
    folds = _LogFolds(baseline, prediction, rows, composition)
    outcome, offset = outcome[rows], np.log(total)
    if composition:
        offset = offset - arm * _composition(outcome, arm, total, baseline[rows])
    sample = Sample(arm, offset, code, clusters)
    if composition:
        confirmed = _confirmed_remainder(sample, outcome, folds, min_counts)
        sample = replace(sample, offset=offset - arm * confirmed * folds.remainder)
    found = _estimate(sample, outcome, folds, min_counts, margin, level)
    return pd.DataFrame(table | found | _adjusted(found, leakage_level))


def _codes(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1]


def _has_both_arms(stratum: np.ndarray, treated: np.ndarray) -> np.ndarray:
    n_treated = np.bincount(stratum, treated)[stratum]
    return (n_treated > 0) & (n_treated < np.bincount(stratum)[stratum])


def _composition(
    outcome: Any, treated: np.ndarray, size: np.ndarray, baseline: np.ndarray
) -> np.ndarray:
    """D of each cell, from observed fold changes beyond what the cells' baselines explain."""
    share = baseline / baseline.sum(axis=1, keepdims=True, dtype=float)
    arms = [np.asarray(outcome[arm].sum(axis=0)).ravel() for arm in (treated, ~treated)]
    reference = size[~treated] @ share[~treated]
    shift = np.zeros(len(size))
    for _ in range(_N_PASSES):
        raised = (size * np.exp(-shift))[treated] @ share[treated]
        # Totals as observed, so that half a count is half a count whatever the unit of size.
        expected = [e * n.sum() / e.sum() for e, n in zip((raised, reference), arms, strict=True)]
        change = (arms[0] + 0.5) / (expected[0] + 0.5) * (expected[1] + 0.5) / (arms[1] + 0.5)
        shift = np.log(share @ change)
    return shift


def _confirmed_remainder(sample: Sample, outcome: Any, folds: _LogFolds, min_counts: int) -> float:
    """Share of the remainder of the composition that comes true: the median gene's.

    It is zero if there is no heterogeneity, whatever the predictions.
    """
    shares = []
    for some in folds.blocks():
        counts = dense(outcome[:, some]).astype(float)
        base, _ = folds.log_fold(some)
        common = np.broadcast_to(-folds.remainder[:, None], base.shape)
        shares.append(fit_genes(sample, counts, base, common, min_counts).estimate)
    found = np.concatenate(shares)
    found = found[np.isfinite(found)]
    return float(np.clip(np.median(found), 0, 1)) if len(found) else 0.0


class _LogFolds:
    """Predicted log-baselines, and log-fold changes without those of the composition.

    Attributes
    ----------
    composition
        D of each cell as predicted, shape ``(n_cells,)``.
    remainder
        The part of it that a homogeneous effect does not imply.
    mean_effect
        Log-fold change of each gene that mean predictions imply, shape ``(n_genes,)``.
    strength
        Projection of each cell's log-fold changes on ``mean_effect``, shape ``(n_cells,)``: one
        where the cell responds as the mean does.
    """

    def __init__(
        self,
        baseline: np.ndarray,
        prediction: np.ndarray,
        rows: np.ndarray,
        composition: bool,
    ) -> None:
        self.rows = rows
        self._baseline, self._prediction = baseline, prediction
        own, mean = baseline[rows], prediction[rows].mean(axis=0, dtype=float)
        self.mean_effect = np.log(mean / own.mean(axis=0, dtype=float))
        self.composition = np.zeros(len(rows))
        for _ in range(_N_PASSES if composition else 0):
            raised = own @ np.exp(self.mean_effect) / own.sum(axis=1, dtype=float)
            self.composition = np.log(raised / raised.mean())
            without = np.exp(-self.composition) @ own / len(rows)
            self.mean_effect = np.log(mean / without)
        self.remainder = np.zeros(len(rows))
        if composition:
            ratio = np.log(prediction[rows] / own)
            ratio -= ratio.mean(axis=0)
            self.remainder = -np.median(ratio, axis=1).astype(float) - self.composition
            self.remainder -= self.remainder.mean()
        self.composition += self.remainder
        self.strength = np.zeros(len(rows))
        for some in self.blocks():
            self.strength += self.log_fold(some)[1] @ self.mean_effect[some]
        self.strength /= max((self.mean_effect**2).sum(), _TINY)

    def blocks(self) -> list[slice]:
        """Genes that are in memory at once."""
        step = max(1, _BLOCK // (N_COLUMNS * len(self.rows)))
        return [slice(i, i + step) for i in range(0, len(self.mean_effect), step)]

    def log_fold(self, some: slice) -> tuple[np.ndarray, np.ndarray]:
        """Log-baselines and log-fold changes of some genes, shape ``(n_cells, n_some)``."""
        base = np.log(self._baseline[self.rows, some].astype(float))
        ratio = np.log(self._prediction[self.rows, some].astype(float)) - base
        return base, ratio + self.composition[:, None]


def _estimate(
    sample: Sample,
    outcome: Any,
    folds: _LogFolds,
    min_counts: int,
    margin: float,
    level: float,
) -> dict[str, np.ndarray]:
    """Columns that need nothing of the other genes, summaries first."""
    pools = [Pool(len(folds.rows)) for _ in _SUMMARIES]
    of_genes = []
    for some in folds.blocks():
        counts = dense(outcome[:, some]).astype(float)
        base, score = folds.log_fold(some)
        signature = np.outer(folds.strength, folds.mean_effect[some])
        fits = fit_genes(sample, counts, base, score, min_counts)
        pools[0].add(fits)
        pools[1].add(fit_genes(sample, counts, base, signature, min_counts))
        of_genes.append(_columns(sample, fits, sample.shift(score), margin, level))
    # The genes' shifts are summed up later, by their p-values.
    shifts = [(np.array([np.nan]),) * 2, sample.shift(folds.strength[:, None])]
    blocks = [
        _columns(sample, pool.fits(), shift, margin, level)
        for pool, shift in zip(pools, shifts, strict=True)
    ] + of_genes
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _columns(
    sample: Sample,
    fits: Fits,
    shift: tuple[np.ndarray, np.ndarray],
    margin: float,
    level: float,
) -> dict[str, np.ndarray]:
    error, low, high, _ = sample.interval(fits.estimate, fits.influence, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = margin / fits.spread
        p_value = stats.t.sf((fits.estimate - least) / error, sample.degrees_of_freedom)
    confirmed = fits.estimate * fits.spread
    note = np.array(PROBLEMS, dtype=object)[fits.problem]
    for i in np.flatnonzero((low > 0) & (p_value > (1 - level) / 2)):
        note[i] = (
            f"differences are confirmed, but of {confirmed[i]:.2g} (standard deviation of "
            f"log-fold), which is not clearly more than the margin of {margin:g}"
        )
    return {
        "estimate": fits.estimate,
        "std_error": error,
        "ci_low": low,
        "ci_high": high,
        "least_estimate": least,
        "p_value": p_value,
        "predicted_sd": fits.spread,
        "confirmed_sd": confirmed,
        "shift": shift[0],
        "shift_p_value": shift[1],
        "note": note,
    }


def _adjusted(found: dict[str, np.ndarray], leakage_level: float) -> dict[str, np.ndarray]:
    """Adjust p-values over genes, and say where predictions depend on the treatment."""
    n = len(_SUMMARIES)
    p_value, shift_p = found["p_value"], found["shift_p_value"].copy()
    shift_q = np.concatenate([shift_p[:n], adjust(shift_p[n:])])
    # Some gene's prediction is shifted: the smallest q-value is Simes' p-value of the joint test.
    shift_p[0] = shift_q[0] = np.nanmin(shift_q[n:], initial=1.0)
    return {
        "q_value": np.concatenate([p_value[:n], adjust(p_value[n:])]),
        "shift_p_value": shift_p,
        "leakage": shift_q <= leakage_level,
    }


def _validate(
    outcome: Any,
    treated: np.ndarray,
    baseline: np.ndarray,
    prediction: np.ndarray,
    genes: Sequence[str],
    stratum: np.ndarray | None,
    cluster: np.ndarray | None,
) -> None:
    shape = (len(treated), len(genes))
    for name, values in (("outcome", outcome), ("baseline", baseline), ("prediction", prediction)):
        if values.shape != shape:
            raise ValueError(
                f"{name} of shape {values.shape} must have shape (n_cells, n_genes) = {shape}."
            )
    stored = outcome.data if sparse.issparse(outcome) else outcome
    if np.size(stored) and not np.min(stored) >= 0:
        raise ValueError("outcome holds negative or missing values; pass counts.")
    for name, values in (("baseline", baseline), ("prediction", prediction)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name} must be positive and finite: log-fold changes are tested.")
    for name, codes in (("stratum", stratum), ("cluster", cluster)):
        if codes is not None and len(codes) != shape[0]:
            raise ValueError(
                f"{len(codes)} values of {name} for {shape[0]} cells; pass one per cell."
            )
