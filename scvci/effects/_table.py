"""The table of effects: one row per treatment, group and gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._effect import PROBLEMS
from ._intervals import adjust, student_interval
from ._moderation import moderate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._design import Contrast
    from ._effect import Effects

#: Columns of the table, in order.
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


def effects_table(
    chunks: list[Effects],
    contrasts: list[Contrast],
    labels: Sequence[str],
    groups: Sequence[str],
    genes: Sequence[str],
    leakage_level: float,
    level: float,
    moderated: bool,
) -> pd.DataFrame:
    """Put chunks of genes together, decide on leakage, adjust p-values and add names.

    Parameters
    ----------
    chunks
        Effects of chunks of genes.
    contrasts
        What the rows of the chunks are.
    labels, groups, genes
        Names of the arms (the reference first), groups and genes.
    leakage_level
        False discovery rate of the test of leakage.
    level
        Coverage of the intervals.
    moderated
        Whether variances borrow from other genes.
    """
    columns, problem = _join(chunks)
    leaks = np.zeros(problem.shape, dtype=bool)
    wanted = np.array([c.estimator == "robust" for c in contrasts])
    by_robust = [c.robust for c in chunks if c.robust is not None]
    if by_robust:
        p_value = np.concatenate([c.leakage_p for c in chunks], axis=2)
        with np.errstate(invalid="ignore"):
            leaks = (adjust(p_value) <= leakage_level).any(axis=0)
        other_columns, other_problem = _join(by_robust)
        robust = wanted[:, None] & ~leaks
        columns = {n: np.where(robust, other_columns[n], v) for n, v in columns.items()}
        problem = np.where(robust, other_problem, problem)
    if moderated:
        _moderate(columns, level)
    columns["q_value"] = np.stack([adjust(p) for p in columns["p_value"]])
    of_contrast = {
        "treatment": [labels[c.arm] for c in contrasts],
        "reference": [labels[0]] * len(contrasts),
        "stratum": [groups[c.group] for c in contrasts],
        "n_treated": [c.n_treated for c in contrasts],
        "n_reference": [c.n_reference for c in contrasts],
        "propensity": [c.propensity for c in contrasts],
    }
    flat = {name: values.ravel() for name, values in columns.items()}
    flat |= {name: np.repeat(np.array(v), len(genes)) for name, v in of_contrast.items()}
    flat["gene"] = np.tile(np.array(genes), len(contrasts))
    used = np.array([c.estimator for c in contrasts])[:, None]
    flat["estimator"] = np.where(leaks, "observed", used).ravel()
    flat["leakage"] = leaks.ravel()
    flat["note"] = _notes(contrasts, problem, leaks).ravel()
    return pd.DataFrame(flat, columns=list(COLUMNS))


def _moderate(columns: dict[str, np.ndarray], level: float) -> None:
    """Replace errors, intervals and p-values of each contrast by moderated ones."""
    for row in range(len(columns["estimate"])):
        variance, df = moderate(columns["std_error"][row] ** 2, columns["df"][row])
        std_error = columns["std_error"][row] = np.sqrt(variance)
        ends = student_interval(columns["estimate"][row], std_error, df, level)
        for name, values in zip(("ci_low", "ci_high", "p_value"), ends, strict=True):
            columns[name][row] = values


def _join(chunks: list[Effects]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns and problems of all genes."""
    names = chunks[0].columns
    columns = {n: np.concatenate([c.columns[n] for c in chunks], axis=1) for n in names}
    return columns, np.concatenate([c.problem for c in chunks], axis=1)


def _notes(contrasts: list[Contrast], problem: np.ndarray, leaks: np.ndarray) -> np.ndarray:
    """Sentences about each row, ``(n_contrasts, n_genes)``."""
    lookup = np.array(
        [
            [
                ["; ".join(part for part in (refused, what, c.note) if part) for what in PROBLEMS]
                for refused in ("", _REFUSED)
            ]
            for c in contrasts
        ],
        dtype=object,
    )
    rows = np.arange(len(contrasts))[:, None]
    return lookup[rows, leaks.astype(int), problem]
