"""Tables of rows times genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._intervals import PROBLEMS, Estimate, adjust, adjust_rows, student_interval
from ._moderation import moderate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._comparisons import Comparison

#: Columns of the table of effects, in order.
COLUMNS = (
    "treatment",
    "reference",
    "stratum",
    "gene",
    "estimate",
    "std_error",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
    "n_treated",
    "n_reference",
    "propensity",
    "mean_factual",
    "mean_counterfactual",
    "estimator",
    "leakage",
    "note",
)
_REFUSED = "robust refused: predictions depend on the treatment received (leakage)"


def make_table(
    rows: Mapping[str, Sequence],
    values: Mapping[str, np.ndarray],
    genes: Sequence[str],
    columns: Sequence[str],
) -> pd.DataFrame:
    """Write out a table with one row per label and gene.

    Parameters
    ----------
    rows
        Columns that are the same for all genes, each of length ``n_rows``.
    values
        Columns that differ between genes, each of shape ``(n_rows, n_genes)``.
    genes
        Names of the genes.
    columns
        Names of all columns, in order; one is ``gene``.
    """
    [n_rows] = {len(values) for values in rows.values()}
    flat = {name: np.repeat(np.array(of_row), len(genes)) for name, of_row in rows.items()}
    flat |= {name: of_genes.ravel() for name, of_genes in values.items()}
    flat["gene"] = np.tile(np.array(genes), n_rows)
    return pd.DataFrame(flat, columns=list(columns))


def effects_table(
    observed: Estimate,
    robust: Estimate | None,
    leakage_p: np.ndarray,
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
    errors = {name: getattr(found, name) for name in ("std_error", "ci_low", "ci_high", "p_value")}
    if moderated:
        errors = _moderated(found, level)
    rows: dict[str, Sequence] = {
        "treatment": [labels[c.arm] for c in comparisons],
        "reference": [labels[0]] * len(comparisons),
        "stratum": [groups[c.group] for c in comparisons],
        "n_treated": [c.n_treated for c in comparisons],
        "n_reference": [c.n_reference for c in comparisons],
        "propensity": [c.propensity for c in comparisons],
    }
    values = {
        "estimate": found.estimate,
        **errors,
        "q_value": adjust_rows(errors["p_value"]),
        "mean_factual": found.compared,
        "mean_counterfactual": found.baseline,
        "estimator": np.where(leaks, "observed", used),
        "leakage": leaks,
        "note": _notes([c.note for c in comparisons], found.problem, leaks),
    }
    return make_table(rows, values, genes, COLUMNS)


def _moderated(found: Estimate, level: float) -> dict[str, np.ndarray]:
    """Errors, intervals and p-values of each row that borrow from other genes."""
    rows = []
    for estimate, error, own_df in zip(found.estimate, found.std_error, found.df, strict=True):
        variance, df = moderate(error**2, own_df)
        std_error = np.sqrt(variance)
        rows.append((std_error, *student_interval(estimate, std_error, df, level)))
    columns = np.array(rows).swapaxes(0, 1)
    return dict(zip(("std_error", "ci_low", "ci_high", "p_value"), columns, strict=True))


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
