"""Interactions of combined treatments: what a combination does beyond the sum of its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ._clusters import ClusterWeights, arm_difference, weigh_clusters
from ._design import Clusters, Contrast, Design, indicator, make_design
from ._intervals import Components, adjust, student_interval
from ._moments import dense
from ._validation import check_codes, check_numbers, check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Columns that differ by gene, in order.
_MEASURED = ("effect", "additive", "interaction", "std_error", "ci_low", "ci_high", "p_value")
#: Columns of the table, in order.
_COLUMNS = ("treatment", "stratum", "gene", *_MEASURED, "q_value", "n_treated", "note")
#: What may be wrong with a gene, by code.
_PROBLEMS = (
    "",
    "constant in every arm: no interval",
    "too few expressing cells for an interval",
)
_CONSTANT, _SPARSE = 1, 2
#: Numbers of a dense (n_cells, chunk) block.
_BLOCK = 2**24
#: Cells' worth of the other arms' variance that a silent arm borrows.
_N_BORROWED = 5.0
#: Variance relative to the squared mean that is rounding of the sums of squares.
_ROUNDING = 1e-13
#: Error relative to the means of clusters that is rounding of these.
_TINY = 1e-12


@dataclass(frozen=True)
class _Weights:
    """What clusters weigh in an interaction.

    ``pairs`` are the combination and each of its parts, against the control; ``blocks`` are
    clusters that vary alike, sparse ``(n_blocks, n_clusters)``, ``df`` their degrees of freedom.
    """

    pairs: list[ClusterWeights]
    blocks: sparse.csr_matrix
    df: np.ndarray


@dataclass(frozen=True)
class _Row:
    """A combination in one group.

    ``sets`` are the rows of sums of the combination, its parts and the control, in this order;
    ``note`` says why there is no estimate, if there is none; without ``weights`` cells are
    independent.
    """

    treatment: str
    stratum: str
    sets: np.ndarray
    n_treated: int
    note: str
    weights: _Weights | None = None


@dataclass(frozen=True)
class _Moments:
    """Cells of each set ``(n_sets, 1)``; mean, variance, expressing ``(n_sets, n_genes)``.

    ``in_clusters`` are the means of each set's part of each cluster, if cells have clusters.
    """

    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    expressing: np.ndarray
    in_clusters: np.ndarray


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
    k parts is its effect less the sum of the effects of its parts,

    .. math:: (m_c - m_0) - \sum_{i=1}^k (m_i - m_0) = m_c - \sum_i m_i + (k - 1)\, m_0,

    and as cells of different arms are independent, its squared standard error is

    .. math:: \frac{s_c^2}{n_c} + \sum_i \frac{s_i^2}{n_i} + (k - 1)^2 \frac{s_0^2}{n_0} .

    On log-normalised expression, 0 means that fold changes multiply. Arms are compared as they
    are: in a group, treatment is taken to be unconfounded and cells to be independent. An arm in
    which few cells express a gene borrows variance from the others, as in
    :func:`estimate_effects`.

    With ``clusters``, not cells but these are independent. Effects of the combination and of its
    parts are those of :func:`estimate_effects`, and the influences of a cluster on all of them
    are added up before they are squared: what a donor has in common in all arms cancels. Where
    every cluster has all arms this is the t-test of their interactions. Arms borrow nothing.

    Parameters
    ----------
    outcomes
        Log-normalised expression, sparse or dense, shape ``(n_cells, n_genes)``.
    treatment, groups
        Codes of each cell's arm and group, shape ``(n_cells,)``.
    combinations
        For each combination its code, the codes of the two or more arms that are its parts, and
        the code of the control.
    treatments, group_names, genes
        Names, by code or column.
    clusters
        Code of each cell's donor, well or guide, shape ``(n_cells,)``, if cells of one are not
        independent. They may be across arms, across some, or nested in arms; each arm needs two.
    level
        Coverage of the intervals.
    min_cells
        Fewest cells in each of the arms.
    min_expressing
        Fewest expressing cells in all of the arms together for an interval.
    chunk_size
        Genes that are worked on at a time; ``None`` for at most 2²⁴ numbers in any array.

    Returns
    -------
    One row per combination, group and gene, in this order, with columns

    - ``treatment``, ``stratum`` (the group's name), ``gene``;
    - ``effect`` of the combination, ``additive``: sum of the effects of its parts,
      ``interaction``: their difference;
    - ``std_error``, ``ci_low``, ``ci_high``, ``p_value`` of the interaction: of Student's t with
      the degrees of freedom of Welch and Satterthwaite;
    - ``q_value``: adjusted over the genes of a combination and group (Benjamini and Hochberg);
    - ``n_treated``: cells with the combination;
    - ``note``: why there is no estimate or interval.

    Raises
    ------
    ValueError
        If a combination has unknown codes, fewer than two parts or an arm twice, lengths differ,
        a cell has no cluster, expression is not finite, or a number is out of range.
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
        {arm for code, parts, control in combinations for arm in (code, *parts, control)}
    )
    members = _members(np.asarray(treatment), np.asarray(groups), arms, len(group_names))
    n_cells = np.diff(members.indptr)
    rows = [
        _make_row(combination, group, arms, n_cells, treatments, group_names, min_cells)
        for combination in combinations
        for group in range(len(group_names))
    ]
    sets = None
    if clusters is not None and rows:
        design = make_design(treatment, groups, groups, clusters, arms)
        sets = design.clusters
        rows = [_with_clusters(row, design, [treatments[arm] for arm in arms]) for row in rows]
    values = np.full((len(_MEASURED), len(rows), len(genes)), np.nan)
    problem = np.zeros(values.shape[1:], dtype=np.int8)
    size = chunk_size or max(1, _BLOCK // max(members.shape))
    for start in range(0, len(genes), size):
        chunk = slice(start, min(start + size, len(genes)))
        moments = _sum(outcomes[:, chunk], members, sets, genes[chunk])
        for i, row in enumerate(rows):
            if not row.note:
                values[:, i, chunk], problem[i, chunk] = _interaction(
                    row, moments, level, min_expressing
                )
    return _table(rows, values, problem, genes)


def _check_combination(
    combination: tuple[int, Sequence[int], int], treatments: Sequence[str]
) -> None:
    code, parts, control = combination
    arms = [code, *parts, control]
    for arm in arms:
        if not 0 <= arm < len(treatments):
            raise ValueError(
                f"Combination {combination} has the code {arm}, but treatments has "
                f"{len(treatments)} names; codes run from 0 to {len(treatments) - 1}."
            )
    name = treatments[code]
    if len(parts) < 2:
        raise ValueError(
            f"Combination {name!r} has {len(parts)} part(s); what it adds to the sum of its parts "
            "needs two or more."
        )
    twice = [treatments[arm] for i, arm in enumerate(arms) if arm in arms[:i]]
    if twice:
        raise ValueError(
            f"Combination {name!r} uses the arm {twice[0]!r} twice; combination, parts and "
            "control must be different arms."
        )


def _members(
    treatment: np.ndarray, groups: np.ndarray, arms: list[int], n_groups: int
) -> sparse.csr_matrix:
    """Cells of each group and arm that is used, ``(n_groups * n_arms, n_cells)``."""
    wanted = np.asarray(arms, dtype=np.int64)
    # One more set takes the cells of all other arms, and is dropped.
    n_sets = n_groups * len(wanted)
    codes = np.full(len(treatment), n_sets)
    used = np.isin(treatment, wanted)
    codes[used] = groups[used] * len(wanted) + np.searchsorted(wanted, treatment[used])
    return indicator(codes, n_sets + 1)[:n_sets]


def _make_row(
    combination: tuple[int, Sequence[int], int],
    group: int,
    arms: list[int],
    n_cells: np.ndarray,
    treatments: Sequence[str],
    group_names: Sequence[str],
    min_cells: int,
) -> _Row:
    code, parts, control = combination
    needed = np.array([code, *parts, control])
    sets = group * len(arms) + np.searchsorted(arms, needed)
    absent = [treatments[arm] for arm, n in zip(needed, n_cells[sets], strict=True) if n == 0]
    few = [
        f"{treatments[arm]!r} ({n})"
        for arm, n in zip(needed, n_cells[sets], strict=True)
        if 0 < n < min_cells
    ]
    reasons = []
    if absent:
        reasons.append(f"no cells with {', '.join(map(repr, absent))}")
    if few:
        reasons.append(f"fewer than {min_cells} cells with {', '.join(few)}")
    note = f"skipped: {'; '.join(reasons)}" if reasons else ""
    return _Row(treatments[code], group_names[group], sets, int(n_cells[sets[0]]), note)


def _with_clusters(row: _Row, design: Design, arms: Sequence[str]) -> _Row:
    """Add the weights of clusters to a row, or a note where there are too few."""
    if row.note or design.clusters is None or design.n_clusters is None:
        return row
    needed = row.sets % len(arms)
    [unit] = np.flatnonzero(design.group == row.sets[0] // len(arms))
    single = [arms[arm] for arm in needed if design.n_clusters[unit, arm] < 2]
    if single:
        named = ", ".join(map(repr, single))
        return replace(row, note=f"skipped: one cluster of cells with {named}")
    return replace(row, weights=_weigh(design.clusters, int(unit), needed))


def _weigh(clusters: Clusters, unit: int, arms: np.ndarray) -> _Weights:
    """Weights of the clusters of a unit in the arms: a combination, its parts and the control."""
    contrasts = [Contrast(int(arm), 0, np.array([unit]), np.ones(1)) for arm in arms[:-1]]
    # All pairs number the clusters of the unit alike, whichever arms these have.
    pairs = [weigh_clusters(contrast, clusters, int(arms[-1])) for contrast in contrasts]
    of_pair = np.stack([pair.blocks.T @ np.arange(len(pair.df)) for pair in pairs])
    _, block = np.unique(of_pair, axis=1, return_inverse=True)
    block = block.ravel()
    # Of the pairs, the one with the scarcest arm says what a cluster adds to degrees of freedom.
    own = [pair.blocks.T @ (pair.df / np.diff(pair.blocks.indptr)) for pair in pairs]
    df = np.bincount(block, weights=np.min(own, axis=0))
    return _Weights(pairs, indicator(block, len(df)), np.maximum(df, 1.0))


def _sum(
    block: Any, members: sparse.csr_matrix, sets: Clusters | None, genes: Sequence[str]
) -> _Moments:
    if sparse.issparse(block):
        block = sparse.csr_matrix(block, dtype=np.float64)
        square, positive = block.multiply(block), block != 0
    else:
        block = np.asarray(block, dtype=np.float64)
        square, positive = block**2, block != 0
    parts = (block, square, positive.astype(np.float64))
    total, squares, expressing = (dense(members @ part) for part in parts)
    finite = np.isfinite(squares).all(axis=0)
    if not finite.all():
        raise ValueError(
            f"outcomes of gene {genes[int(np.argmin(finite))]!r} are NaN or infinite in some "
            "cells; pass log-normalised expression without missing values."
        )
    n = np.diff(members.indptr)[:, None].astype(np.float64)
    # Sets with no cells or one have no mean or variance; no row uses them.
    mean = total / np.maximum(n, 1)
    scatter = squares - n * mean**2
    scatter[scatter <= _ROUNDING * squares] = 0
    in_clusters = np.zeros((0, len(genes)))
    if sets is not None:
        in_clusters = dense(sets.cells @ block) / sets.size[:, None]
    return _Moments(n, mean, scatter / np.maximum(n - 1, 1), expressing, in_clusters)


def _interaction(
    row: _Row, moments: _Moments, level: float, min_expressing: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of one row and problems of its genes, ``(n_columns, n_genes)``, ``(n_genes,)``."""
    if row.weights is None:
        effect, additive, variance, df = _of_cells(row.sets, moments)
    else:
        effect, additive, variance, df = _of_clusters(row.weights, row.sets, moments)
    problem = np.zeros(len(effect), dtype=np.int8)
    problem[moments.expressing[row.sets].sum(axis=0) < min_expressing] = _SPARSE
    problem[variance == 0] = _CONSTANT
    std_error = np.where(problem == 0, np.sqrt(variance), np.nan)
    interaction = effect - additive
    ends = student_interval(interaction, std_error, df, level)
    return np.stack([effect, additive, interaction, std_error, *ends]), problem


def _of_cells(sets: np.ndarray, moments: _Moments) -> tuple[np.ndarray, ...]:
    """Effect, sum of effects, variance of their difference and degrees of freedom, by gene."""
    n, mean = moments.n[sets], moments.mean[sets]
    n_parts = len(sets) - 2
    effect = mean[0] - mean[-1]
    additive = (mean[1:-1] - mean[-1]).sum(axis=0)
    weight = np.array([1.0, *[-1.0] * n_parts, n_parts - 1.0])[:, None]
    variance = _with_borrowed(moments.variance[sets], n, moments.expressing[sets])
    by_arm = weight**2 * variance / n
    total = by_arm.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return effect, additive, total, total**2 / (by_arm**2 / (n - 1)).sum(axis=0)


def _of_clusters(weights: _Weights, sets: np.ndarray, moments: _Moments) -> tuple[np.ndarray, ...]:
    """Compute the same as :func:`_of_cells` where clusters, not cells, are independent."""
    found = [
        arm_difference(pair.treated, pair.reference, moments.in_clusters) for pair in weights.pairs
    ]
    effect, additive = found[0][0], np.sum([value for value, _ in found[1:]], axis=0)
    influence = found[0][1] - np.sum([of_part for _, of_part in found[1:]], axis=0)
    by_block = (weights.blocks @ influence**2)[:, None, None]
    components = Components((effect - additive)[None], by_block, weights.df)
    variance, df = components.variance(np.ones((1, 1)))
    variance[variance <= (_TINY * np.abs(moments.mean[sets]).max(axis=0)) ** 2] = 0
    return effect, additive, variance, df


def _with_borrowed(variance: np.ndarray, n: np.ndarray, expressing: np.ndarray) -> np.ndarray:
    """Variances of cells, raised in arms that seem to vary less as few cells express the gene.

    An arm's variance is at least the average of its own, counted by its expressing cells, and
    the one of all arms, counted as five cells times its share of silent ones. An arm whose cells
    all express the gene borrows nothing.
    """
    pooled = ((n - 1) * variance).sum(axis=0) / (n - 1).sum()
    silent = _N_BORROWED * (1 - expressing / n)
    weight = np.maximum(expressing + silent, 1)
    return np.maximum(variance, (expressing * variance + silent * pooled) / weight)


def _table(
    rows: list[_Row], values: np.ndarray, problem: np.ndarray, genes: Sequence[str]
) -> pd.DataFrame:
    flat = {name: of_rows.ravel() for name, of_rows in zip(_MEASURED, values, strict=True)}
    p_value = values[_MEASURED.index("p_value")]
    flat["q_value"] = np.array([adjust(p) for p in p_value]).ravel()
    for name in ("treatment", "stratum", "n_treated"):
        flat[name] = np.repeat([getattr(row, name) for row in rows], len(genes))
    flat["gene"] = np.tile(np.asarray(genes), len(rows))
    skipped = np.repeat(np.array([row.note for row in rows], dtype=object), len(genes))
    flat["note"] = np.where(
        skipped == "", np.array(_PROBLEMS, dtype=object)[problem.ravel()], skipped
    )
    return pd.DataFrame(flat, columns=list(_COLUMNS))
