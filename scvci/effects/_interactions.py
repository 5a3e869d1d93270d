"""Interactions of combined treatments: what they do beyond the sum of their members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._contrasts import Contrast, weighted_sum
from ._design import Design, make_design
from ._intervals import PROBLEMS, Estimate, adjust_rows, infer
from ._means import means_of
from ._moments import OutcomeSums, gene_chunks, sum_outcomes
from ._table import make_table
from ._validation import check_codes, check_numbers, check_shape, check_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@dataclass(frozen=True)
class _Row:
    """A combination in one group; ``note`` says why there is no contrast, if there is none."""

    treatment: str
    stratum: str
    n_treated: int
    note: str
    contrast: Contrast | None


def interaction_effects(
    outcomes: Any,
    treatment: np.ndarray,
    groups: np.ndarray,
    combinations: Sequence[tuple[int, Sequence[int], int]],
    *,
    treatments: Sequence[str],
    group_names: Sequence[str],
    genes: Sequence[str],
    clusters: np.ndarray | None = None,
    level: float = 0.95,
    min_cells: int = 30,
    min_expressing: int = 10,
    chunk_size: int | None = None,
) -> pd.DataFrame:
    r"""Estimate the interaction in combinations of treatments on every gene, with intervals.

    With means :math:`m` of the cells of an arm in a group, the interaction of a combination c of
    k members is its effect less the sum of the effects of its members,

    .. math:: (m_c - m_0) - \sum_{i=1}^k (m_i - m_0) = m_c - \sum_i m_i + (k - 1)\, m_0,

    and as cells of different arms are independent, its squared standard error is

    .. math:: \frac{s_c^2}{n_c} + \sum_i \frac{s_i^2}{n_i} + (k - 1)^2 \frac{s_0^2}{n_0} .

    On log-normalised expression, 0 means that fold changes multiply. Within a group, treatment is
    assumed to be unconfounded and cells to be independent. An arm in which few cells express a
    gene borrows variance from the others, as in :func:`estimate_effects`.

    With ``clusters``, clusters rather than cells are independent. The influences of a cluster on
    all means are added up before they are squared: what a donor has in common in all arms
    cancels. Where every cluster has all arms this is the t-test of the clusters' interactions. If
    any of the arms has fewer than 10 clusters, clusters count the same in all of them, otherwise
    by their cells. Arms borrow no variance.

    Parameters
    ----------
    outcomes
        Log-normalised expression, sparse or dense, shape ``(n_cells, n_genes)``.
    treatment, groups
        Codes of each cell's arm and group, shape ``(n_cells,)``.
    combinations
        For each combination its code, the codes of the two or more arms that are its members,
        and the code of the control.
    treatments, group_names, genes
        Names, by code or column.
    clusters
        Code of each cell's donor, well or guide, shape ``(n_cells,)``, if cells of one are not
        independent. A cluster may have cells in all arms, in some or in one; each arm needs two
        clusters.
    level
        Coverage of the intervals.
    min_cells
        Fewest cells in each of the arms.
    min_expressing
        Fewest expressing cells in all of the arms together for an interval.
    chunk_size
        Genes that are processed at a time; ``None`` for at most 2²⁴ numbers in any array.

    Returns
    -------
    One row per combination, group and gene, in this order, with columns

    - ``treatment``, ``stratum`` (the group's name), ``gene``;
    - ``effect`` of the combination, ``additive``: sum of the effects of its members,
      ``interaction``: their difference;
    - ``std_error``, ``ci_low``, ``ci_high``, ``p_value`` of the interaction: of Student's t with
      the degrees of freedom of Welch and Satterthwaite;
    - ``q_value``: adjusted over the genes of a combination and group (Benjamini and Hochberg);
    - ``n_treated``: cells with the combination;
    - ``note``: why there is no estimate or interval.

    Raises
    ------
    ValueError
        If a combination has unknown codes, fewer than two members or an arm twice, lengths
        differ, a cell has no cluster, expression is not finite, or a number is out of range.
    """
    check_numbers(
        level=level, min_cells=min_cells, min_expressing=min_expressing, chunk_size=chunk_size
    )
    check_shape(outcomes, genes)
    check_codes(
        outcomes.shape[0],
        treatment=(treatment, len(treatments)),
        groups=(groups, len(group_names)),
        clusters=(clusters, None),
    )
    for combination in combinations:
        _check_combination(combination, treatments)
    arms = sorted(
        {arm for code, members, control in combinations for arm in (code, *members, control)}
    )
    design = make_design(treatment, groups, groups, clusters, arms)
    names = [treatments[arm] for arm in arms]
    rows = [
        _make_row(design, [arms.index(arm) for arm in needed], group, names, name, min_cells)
        for code, members, control in combinations
        for needed in [(code, *members, control)]
        for group, name in enumerate(group_names)
    ]
    found = [Estimate.missing(len(rows), 0 if rows else len(genes))]
    for chunk in gene_chunks(design, len(genes), chunk_size) if rows else []:
        block = outcomes[:, chunk]
        check_values(block, genes[chunk], signed=True, logged=True)
        sums = sum_outcomes(block, design, log=False)
        estimates = [_estimate(row, design, sums, level, min_expressing) for row in rows]
        found.append(Estimate.combine(estimates, np.stack))
    return _table(rows, Estimate.combine(found, np.hstack), genes)


def _check_combination(
    combination: tuple[int, Sequence[int], int], treatments: Sequence[str]
) -> None:
    code, members, control = combination
    arms = [code, *members, control]
    for arm in arms:
        if not 0 <= arm < len(treatments):
            raise ValueError(
                f"Combination {combination} has the code {arm}, but treatments has "
                f"{len(treatments)} names; codes run from 0 to {len(treatments) - 1}."
            )
    name = treatments[code]
    if len(members) < 2:
        raise ValueError(
            f"Combination {name!r} has {len(members)} member(s); an interaction needs at "
            "least two."
        )
    twice = [treatments[arm] for i, arm in enumerate(arms) if arm in arms[:i]]
    if twice:
        raise ValueError(
            f"Combination {name!r} uses the arm {twice[0]!r} twice; combination, members "
            "and control must be different arms."
        )


def _make_row(
    design: Design,
    arms: Sequence[int],
    group: int,
    names: Sequence[str],
    group_name: str,
    min_cells: int,
) -> _Row:
    """Compare the combination, its members and the control in a group, or say why not."""
    units = np.flatnonzero(design.group == group)
    n = design.counts[units].sum(axis=0)[list(arms)]
    reasons = []
    if absent := [repr(names[arm]) for arm, k in zip(arms, n, strict=True) if k == 0]:
        reasons.append(f"no cells with {', '.join(absent)}")
    if few := [
        f"{names[arm]!r} ({k})" for arm, k in zip(arms, n, strict=True) if 0 < k < min_cells
    ]:
        reasons.append(f"fewer than {min_cells} cells with {', '.join(few)}")
    if not reasons and design.n_clusters is not None:
        single = [repr(names[arm]) for arm in arms if design.n_clusters[units[0], arm] < 2]
        reasons += [f"one cluster of cells with {', '.join(single)}"] if single else []
    contrast = None
    if not reasons:
        combination, *members, control = arms
        contrast = Contrast.interaction(design, combination, members, control, int(units[0]))
    note = f"skipped: {'; '.join(reasons)}" if reasons else ""
    return _Row(names[arms[0]], group_name, int(n[0]), note, contrast)


def _estimate(
    row: _Row, design: Design, sums: OutcomeSums, level: float, min_expressing: int
) -> Estimate:
    contrast = row.contrast
    if contrast is None:
        return Estimate.missing(sums.total.shape[2])
    means = means_of(contrast, design, sums)
    effect, interaction = (
        means.value[0] - means.value[-1],
        weighted_sum(contrast.weights, means.value),
    )
    return infer(
        means,
        contrast.weights[:, None],
        estimate=interaction,
        compared=effect,
        baseline=effect - interaction,
        expressing=contrast.count_expressing(sums),
        level=level,
        min_expressing=min_expressing,
    )


def _table(rows: list[_Row], found: Estimate, genes: Sequence[str]) -> pd.DataFrame:
    notes = np.array([row.note for row in rows], dtype=object)[:, None]
    return make_table(
        {
            "treatment": [row.treatment for row in rows],
            "stratum": [row.stratum for row in rows],
            "gene": [list(genes)],
            "effect": found.compared,
            "additive": found.baseline,
            "interaction": found.estimate,
            "std_error": found.std_error,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "p_value": found.p_value,
            "q_value": adjust_rows(found.p_value),
            "n_treated": [row.n_treated for row in rows],
            "note": np.where(notes == "", np.array(PROBLEMS, dtype=object)[found.problem], notes),
        }
    )
