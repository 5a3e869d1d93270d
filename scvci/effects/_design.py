"""Cells sorted into units of comparison, arms and clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Cells summed over at a time, as far as (unit, arm) sets can be kept whole.
_BATCH = 2048


@dataclass(frozen=True)
class ClusterSets:
    """Cells of one cluster in one unit and arm: the smallest sets whose means are needed.

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

    A unit is a stratum, or one of its batches, within a reported group. Cells are compared within
    units only.

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
        The same in parts: rows of cells, the range of (unit, arm) sets that they make up, and
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
    clusters: ClusterSets | None
    n_clusters: np.ndarray | None


def make_design(
    treatment: np.ndarray,
    stratum: np.ndarray,
    groups: np.ndarray | None,
    clusters: np.ndarray | None,
    arms: Sequence[int],
    batch: np.ndarray | None = None,
) -> Design:
    """Sort cells into units and arms.

    Parameters
    ----------
    treatment, stratum, groups, clusters
        Codes of each cell, shape ``(n_cells,)``.
    arms
        Codes of the treatments that are compared; all others form one more arm, the last.
    batch
        Code of each cell's batch, or ``None``.
    """
    treatment, stratum = (np.asarray(v, dtype=np.int64) for v in (treatment, stratum))
    group, batch = (
        np.zeros_like(stratum) if v is None else np.asarray(v, dtype=np.int64)
        for v in (groups, batch)
    )
    n_arms = len(arms) + 1
    lookup = np.full(max([int(treatment.max(initial=0)), *arms]) + 1, n_arms - 1)
    lookup[list(arms)] = np.arange(len(arms))
    arm = lookup[treatment]
    n_strata, n_batches = (int(v.max(initial=0)) + 1 for v in (stratum, batch))
    units, unit = np.unique((group * n_strata + stratum) * n_batches + batch, return_inverse=True)
    pair = unit * n_arms + arm
    counts = np.bincount(pair, minlength=len(units) * n_arms).reshape(len(units), n_arms)
    sets = n_clusters = None
    if clusters is not None:
        sets = _cluster_sets(np.asarray(clusters), pair, n_arms)
        per_pair = np.bincount(sets.unit * n_arms + sets.arm, minlength=counts.size)
        n_clusters = per_pair.reshape(counts.shape)
    return Design(
        arm=arm,
        counts=counts,
        group=units // (n_strata * n_batches),
        stratum=units // n_batches % n_strata,
        cells=indicator(pair, counts.size),
        batches=_batches(pair, counts.ravel()),
        clusters=sets,
        n_clusters=n_clusters,
    )


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


def _batches(
    pair: np.ndarray, counts: np.ndarray
) -> list[tuple[np.ndarray, slice, sparse.csr_matrix]]:
    """Cells in order of their (unit, arm), cut between these into parts of some thousand."""
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


def _cluster_sets(clusters: np.ndarray, pair: np.ndarray, n_arms: int) -> ClusterSets:
    _, cluster = np.unique(clusters, return_inverse=True)
    n_pairs = int(pair.max(initial=0)) + 1
    keys, member = np.unique(cluster * n_pairs + pair, return_inverse=True)
    return ClusterSets(
        cluster=keys // n_pairs,
        unit=keys % n_pairs // n_arms,
        arm=keys % n_pairs % n_arms,
        size=np.bincount(member, minlength=len(keys)),
        cells=indicator(member, len(keys)),
    )
