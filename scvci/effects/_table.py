"""Tables of rows times genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._intervals import PROBLEMS, Estimate, adjust, adjust_rows
from ._moderation import moderate, share_arms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._comparisons import Comparison

_TINY = 1e-12
_REFUSED = "robust refused: predictions depend on the treatment received (leakage)"


def make_table(columns: Mapping[str, Sequence | np.ndarray]) -> pd.DataFrame:
    """Write out a table with one line per row and gene.

    Parameters
    ----------
    columns
        Columns in order: of rows, shape ``(n_rows,)``, of genes, shape ``(1, n_genes)``, or of
        both, shape ``(n_rows, n_genes)``.
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    arrays = {name: v[:, None] if v.ndim == 1 else v for name, v in arrays.items()}
    shape = np.broadcast_shapes(*(v.shape for v in arrays.values()))
    return pd.DataFrame({name: np.broadcast_to(v, shape).ravel() for name, v in arrays.items()})


def effects_table(
    observed: Estimate,
    robust: Estimate | None,
    leakage_p: np.ndarray,
    pulls: Sequence[np.ndarray],
    comparisons: Sequence[Comparison],
    labels: Sequence[str],
    groups: Sequence[str],
    genes: Sequence[str],
    *,
    leakage_level: float,
    level: float,
    moderated: bool,
) -> pd.DataFrame:
    """Decide between estimators, adjust p-values and add names.

    Parameters
    ----------
    observed, robust
        Estimates of all comparisons and genes, shape ``(n_comparisons, n_genes)``, without and,
        where it was asked for, with corrections by predictions.
    leakage_p
        P-values of the corrections of both means, shape ``(2, n_comparisons, n_genes)``.
    pulls
        What the clusters of each comparison pull at the effect, ``(n_clusters, n_genes)``; no rows
        where pseudobulks are not what is compared.
    comparisons
        What the rows are.
    labels, groups, genes
        Names of the arms (the reference first), groups and genes.
    leakage_level
        False discovery rate of the test of leakage.
    level
        Coverage of the intervals.
    moderated
        Whether variances borrow from other genes.
    """
    used = np.array([c.estimator for c in comparisons])[:, None]
    with np.errstate(invalid="ignore"):
        leaks = (adjust(leakage_p) <= leakage_level).any(axis=0)
    found = observed
    if robust is not None:
        chosen = (used == "robust") & ~leaks
        found = Estimate.combine([robust, observed], lambda two: np.where(chosen, *two))
    error, df = found.std_error / found.stretch, found.df
    if moderated:
        error, df = _moderated(error, df, found.compared + found.baseline, pulls, comparisons)
    found = found.with_error(np.maximum(error, found.least_error), df, level)
    return make_table(
        {
            "treatment": [labels[c.arm] for c in comparisons],
            "reference": [labels[0]] * len(comparisons),
            "stratum": [groups[c.group] for c in comparisons],
            "gene": [list(genes)],
            "estimate": found.estimate,
            "std_error": found.std_error,
            "df": found.df,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "p_value": found.p_value,
            "q_value": adjust_rows(found.p_value),
            "n_treated": [c.n_treated for c in comparisons],
            "n_reference": [c.n_reference for c in comparisons],
            "propensity": [c.propensity for c in comparisons],
            "depth_ratio": [c.depth_ratio for c in comparisons],
            "mean_factual": found.compared,
            "mean_counterfactual": found.baseline,
            "estimator": np.where(leaks, "observed", used),
            "leakage": leaks,
            "note": _notes([c.note for c in comparisons], found.problem, leaks),
        }
    )


def _moderated(
    error: np.ndarray,
    df: np.ndarray,
    average: np.ndarray,
    pulls: Sequence[np.ndarray],
    comparisons: Sequence[Comparison],
) -> tuple[np.ndarray, np.ndarray]:
    """Let the errors of each row borrow from other genes."""
    rows = []
    for i, comparison in enumerate(comparisons):
        variance, own_df, at = error[i] ** 2, df[i], average[i]
        if np.nanmin(at, initial=np.inf) >= 0:
            at = np.log(np.maximum(at, _TINY))
        if comparison.pseudobulks is not None:
            plan = comparison.pseudobulks
            alike = plan.pulls @ plan.pulls.T
            variance, own_df = share_arms(variance, own_df, pulls[i], alike, plan.kind, at)
        rows.append(moderate(variance, own_df, at))
    variances, dfs = (np.stack(values) for values in zip(*rows, strict=True))
    return np.sqrt(variances), dfs


def _notes(notes: Sequence[str], problem: np.ndarray, leaks: np.ndarray) -> np.ndarray:
    """Sentences about each row, ``(n_rows, n_genes)``."""
    lookup = np.array(
        [
            [
                ["; ".join(part for part in (refused, what, note) if part) for what in PROBLEMS]
                for refused in ("", _REFUSED)
            ]
            for note in notes
        ],
        dtype=object,
    )
    return lookup[np.arange(len(notes))[:, None], leaks.astype(int), problem]
