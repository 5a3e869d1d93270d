"""Which cells are compared with which: arms, units of comparison, contrasts and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Arm of the reference; targets are 1, 2, …, and cells with other treatments come last.
REFERENCE = 0
#: Most left-out strata that a note names.
_MAX_NAMED = 5
#: Cells that sums are taken over at a time, as far as pairs can be kept whole.
_BATCH = 2048


@dataclass(frozen=True)
class Clusters:
    """Cells of a cluster in a unit and an arm, the smallest sets whose means are needed.

    Attributes
    ----------
    cluster, unit, arm
        What each set belongs to, shape ``(n_sets,)``.
    size
        Cells of each set, shape ``(n_sets,)``.
    cells
        Indicator of membership, sparse, shape ``(n_sets, n_cells)``.
    """

    cluster: np.ndarray
    unit: np.ndarray
    arm: np.ndarray
    size: np.ndarray
    cells: sparse.csr_matrix


@dataclass(frozen=True)
class Design:
    """Cells by unit and arm.

    A unit is a stratum within a reported group. Cells are compared within units only.

    Attributes
    ----------
    arm
        Arm of each cell, shape ``(n_cells,)``.
    counts
        Cells of each unit in each arm, shape ``(n_units, n_arms)``; the last arm is all others.
    group, stratum
        Group and stratum of each unit, shape ``(n_units,)``.
    cells
        Indicator of membership, sparse, shape ``(n_units * n_arms, n_cells)``.
    batches
        The same in parts: rows of cells, the range of (unit, arm) pairs that they make up, and
        their indicator.
    clusters
        Clusters of cells that are not independent, or ``None``.
    n_clusters
        Clusters with cells in each unit and arm, shape ``(n_units, n_arms)``, or ``None``.
    """

    arm: np.ndarray
    counts: np.ndarray
    group: np.ndarray
    stratum: np.ndarray
    cells: sparse.csr_matrix
    batches: list[tuple[np.ndarray, slice, sparse.csr_matrix]]
    clusters: Clusters | None
    n_clusters: np.ndarray | None


@dataclass(frozen=True)
class Contrast:
    """One effect of every gene: an arm against the reference in a group.

    Attributes
    ----------
    arm, group
        The target's arm, and the group.
    units, weights
        Units that are averaged over and their weights, which sum to one; empty where nothing can
        be estimated from measured cells.
    n_treated, n_reference, propensity
        Cells of the two arms, and the share of cells that received the treatment; in the units
        that are used, or in the group where none is.
    estimator
        How it is estimated; ``"skipped"`` if it is not.
    note
        Units that were left out, or why there is no estimate.
    """

    arm: int
    group: int
    units: np.ndarray
    weights: np.ndarray
    n_treated: int = 0
    n_reference: int = 0
    propensity: float = float("nan")
    estimator: str = ""
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """What a unit needs to take part, and what is asked for."""

    estimand: str
    estimator: str | None
    has_predictions: bool
    min_cells: int
    min_propensity: float


def make_design(
    treatment: np.ndarray,
    stratum: np.ndarray,
    groups: np.ndarray | None,
    clusters: np.ndarray | None,
    arms: Sequence[int],
) -> Design:
    """Sort cells into units and arms.

    Parameters
    ----------
    treatment, stratum, groups, clusters
        Codes of each cell, shape ``(n_cells,)``.
    arms
        Codes of the treatments compared, the reference first.
    """
    treatment, stratum = np.asarray(treatment), np.asarray(stratum)
    n_arms = len(arms) + 1
    lookup = np.full(max(int(treatment.max(initial=0)), *arms) + 1, n_arms - 1)
    lookup[list(arms)] = np.arange(len(arms))
    arm = lookup[treatment]
    group = np.zeros_like(stratum) if groups is None else np.asarray(groups)
    both, unit = np.unique(np.stack([group, stratum]), axis=1, return_inverse=True)
    unit = unit.ravel()
    pair = unit * n_arms + arm
    n_units = both.shape[1]
    counts = np.bincount(pair, minlength=n_units * n_arms).reshape(n_units, n_arms)
    sets = None if clusters is None else _sets(np.asarray(clusters), unit, arm)
    n_clusters = None
    if sets is not None:
        per_pair = np.bincount(sets.unit * n_arms + sets.arm, minlength=counts.size)
        n_clusters = per_pair.reshape(counts.shape)
    return Design(
        arm=arm,
        counts=counts,
        group=both[0],
        stratum=both[1],
        cells=indicator(pair, n_units * n_arms),
        batches=_batches(pair, counts.ravel()),
        clusters=sets,
        n_clusters=n_clusters,
    )


def _batches(
    pair: np.ndarray, counts: np.ndarray
) -> list[tuple[np.ndarray, slice, sparse.csr_matrix]]:
    """Cells in order of their pairs, cut between pairs into parts of some thousand."""
    order = np.argsort(pair, kind="stable")
    ends = np.cumsum(counts)
    part = (ends - counts) // _BATCH
    first = np.flatnonzero(np.diff(part, prepend=-1))
    batches = []
    for start, stop in zip(first, [*first[1:], len(counts)], strict=True):
        rows = order[ends[start] - counts[start] : ends[stop - 1]]
        if len(rows):
            own = indicator(pair[rows] - start, stop - start)
            batches.append((rows, slice(int(start), int(stop)), own))
    return batches


def indicator(codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """Membership of cells in ``n`` sets, sparse, shape ``(n, n_cells)``.

    Parameters
    ----------
    codes
        Set of each cell, shape ``(n_cells,)``.
    n
        Number of sets.
    """
    shape = (n, len(codes))
    return sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=shape)


def _sets(clusters: np.ndarray, unit: np.ndarray, arm: np.ndarray) -> Clusters:
    _, cluster = np.unique(clusters, return_inverse=True)
    keys, member = np.unique(np.stack([cluster, unit, arm]), axis=1, return_inverse=True)
    member = member.ravel()
    return Clusters(
        cluster=keys[0],
        unit=keys[1],
        arm=keys[2],
        size=np.bincount(member, minlength=keys.shape[1]),
        cells=indicator(member, keys.shape[1]),
    )


def make_contrasts(
    design: Design, n_targets: int, n_groups: int, strata: Sequence[str], rules: Rules
) -> list[Contrast]:
    """Choose units, weights and the estimator of every (target, group).

    Parameters
    ----------
    design
        Cells by unit and arm.
    n_targets, n_groups
        Their numbers.
    strata
        Names of the strata, for the notes.
    rules
        What a unit needs to take part.
    """
    return [
        _contrast(design, arm, group, strata, rules)
        for arm in range(1, n_targets + 1)
        for group in range(n_groups)
    ]


def _contrast(
    design: Design, arm: int, group: int, strata: Sequence[str], rules: Rules
) -> Contrast:
    units = np.flatnonzero(design.group == group)
    counts = design.counts[units]
    if rules.estimator == "plugin":
        return _model_based("plugin", design, arm, group, units, rules, "model-based")
    reasons = [_unsupported(design, int(u), arm, rules) for u in units]
    supported = np.array([not reason for reason in reasons], dtype=bool)
    if not supported.any():
        why = _why_none(strata, design.stratum[units], reasons)
        if rules.has_predictions and rules.estimator != "observed":
            return _model_based("extrapolation", design, arm, group, units, rules, why)
        return _skipped(design, arm, group, units, why)
    size = counts[:, arm] if rules.estimand == "att" else counts.sum(axis=1)
    kept = counts[supported]
    return Contrast(
        arm=arm,
        group=group,
        units=units[supported],
        weights=size[supported] / size[supported].sum(),
        n_treated=int(kept[:, arm].sum()),
        n_reference=int(kept[:, REFERENCE].sum()),
        propensity=float(kept[:, arm].sum() / kept.sum()),
        estimator=rules.estimator or "observed",
        note=_left_out(strata, design.stratum[units], reasons, size),
    )


def _model_based(
    estimator: str,
    design: Design,
    arm: int,
    group: int,
    units: np.ndarray,
    rules: Rules,
    why: str,
) -> Contrast:
    """Average predictions over the cells of the estimand, without an interval."""
    counts = design.counts[units]
    size = counts[:, arm] if rules.estimand == "att" else counts.sum(axis=1)
    if not size.sum():
        reason = "no cell received the treatment: there is no effect on the treated"
        return _skipped(design, arm, group, units, reason if counts.sum() else "no cells")
    own = {"extrapolation": "mean of predictions where too little was measured", "plugin": ""}
    parts = [why, own[estimator], "no design-based interval"]
    return replace(
        _skipped(design, arm, group, units, "; ".join(part for part in parts if part)),
        units=units,
        weights=size / size.sum(),
        estimator=estimator,
    )


def _skipped(design: Design, arm: int, group: int, units: np.ndarray, why: str) -> Contrast:
    counts = design.counts[units]
    n = counts.sum()
    return Contrast(
        arm=arm,
        group=group,
        units=units[:0],
        weights=np.zeros(0),
        n_treated=int(counts[:, arm].sum()),
        n_reference=int(counts[:, REFERENCE].sum()),
        propensity=float(counts[:, arm].sum() / n) if n else float("nan"),
        estimator="skipped",
        note=why,
    )


def _unsupported(design: Design, unit: int, arm: int, rules: Rules) -> str:
    """Why a unit cannot take part; empty if it can."""
    counts = design.counts[unit]
    for which, name in ((arm, "treated"), (REFERENCE, "reference")):
        n = counts[which]
        if n < rules.min_cells:
            return f"{n} {name} cells (min_cells={rules.min_cells})" if n else f"no {name} cells"
        share = n / counts.sum()
        if share < rules.min_propensity:
            return f"{share:.2g} of cells are {name} (min_propensity={rules.min_propensity:g})"
        if design.n_clusters is not None and design.n_clusters[unit, which] < 2:
            return f"one cluster of {name} cells"
    return ""


def _why_none(strata: Sequence[str], stratum: np.ndarray, reasons: list[str]) -> str:
    if not reasons:
        return "no cells"
    if len(reasons) == 1:
        return reasons[0]
    listed = _listed([strata[x] for x in stratum], reasons)
    return f"no stratum with enough cells ({listed})"


def _left_out(
    strata: Sequence[str], stratum: np.ndarray, reasons: list[str], size: np.ndarray
) -> str:
    """Name the strata that an average leaves out, and their share of the estimand's cells."""
    out = [i for i, reason in enumerate(reasons) if reason and size[i]]
    if not out:
        return ""
    listed = _listed([strata[stratum[i]] for i in out], [reasons[i] for i in out])
    return f"without {size[out].sum() / size.sum():.0%} of cells ({listed})"


def _listed(names: list[str], reasons: list[str]) -> str:
    """Name the first few strata with their reasons, and count the others."""
    named = [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True)]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return ", ".join(named[:_MAX_NAMED]) + more
