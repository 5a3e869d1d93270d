r"""Means of the arms of a contrast, and how they vary where cells come in clusters.

Cells of a donor, well or guide are not independent; clusters are. A mean over an arm is the mean
of its clusters' means, and the influence of cluster c on it :math:`f (\bar Y_c - \bar Y) / C` with
:math:`f^2 = C / (C - 1)` for the C clusters of the arm. Influences on all arms are added up within
clusters before they are squared: what a donor has in common in all arms cancels. Where every
cluster has both arms of a difference this is the paired t-test of cluster means, and where none
has, Welch's t-test of them. It serves sums of several means, interactions and corrections by
predictions; plain effects are those of :mod:`scvci.effects._pseudobulks`.
Arms borrow no variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from ._design import ClusterSets, indicator
from ._intervals import Means

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._moments import BothPredictions, OutcomeSums, PredictionSums
    from ._validation import Estimand

    #: A mean, ``(n_genes,)``, and the influence of each cluster on it, ``(n_clusters, n_genes)``.
    MeanAndInfluence = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ArmMap:
    """How a mean over an arm, averaged over units, is made up of means of sets of cells.

    Attributes
    ----------
    sets
        The sets that belong to the arm and the units, shape ``(k,)``.
    gather
        From means of these sets to means of (cluster, unit) pairs, sparse ``(n_pairs, k)``.
    average
        From these to the means of units, sparse ``(n_units, n_pairs)``.
    unit
        Unit of each pair, shape ``(n_pairs,)``.
    add_up
        From pairs' deviations from their unit to influences of clusters, sparse
        ``(n_clusters, n_pairs)``.
    unit_weights
        Weights of the units, shape ``(n_units,)``.
    """

    sets: np.ndarray
    gather: sparse.csr_matrix
    average: sparse.csr_matrix
    unit: np.ndarray
    add_up: sparse.csr_matrix
    unit_weights: np.ndarray

    def apply(self, means: np.ndarray) -> MeanAndInfluence:
        """Average means of sets over clusters and units.

        Parameters
        ----------
        means
            Means of all sets, shape ``(n_sets, n_genes)``.
        """
        of_pairs = self.gather @ means[self.sets]
        of_units = self.average @ of_pairs
        return self.unit_weights @ of_units, self.add_up @ (of_pairs - of_units[self.unit])


@dataclass(frozen=True)
class ClusterWeights:
    """Maps from means of sets to the means of arms, and clusters that vary alike.

    Attributes
    ----------
    arms
        Maps to the means over the contrast's arms.
    everyone
        Map to the mean over all cells, if it is needed.
    blocks
        Which clusters form a block of variance, sparse ``(n_blocks, n_clusters)``.
    df
        Degrees of freedom of each block, shape ``(n_blocks,)``.
    """

    arms: list[ArmMap]
    everyone: ArmMap | None
    blocks: sparse.csr_matrix
    df: np.ndarray


def weigh_clusters(
    clusters: ClusterSets,
    arms: np.ndarray,
    units: np.ndarray,
    unit_weights: np.ndarray,
    with_everyone: bool = False,
) -> ClusterWeights:
    """Weights of clusters in the means of arms, and blocks of clusters that vary alike.

    Parameters
    ----------
    clusters
        Cells of each cluster in each unit and arm.
    arms
        The arms of a contrast.
    units, unit_weights
        Units and their weights.
    with_everyone
        Whether means over all cells are needed.
    """
    position = np.full(int(clusters.unit.max()) + 1, -1)
    position[units] = np.arange(len(units))
    used = np.flatnonzero(position[clusters.unit] >= 0)
    unit, size = position[clusters.unit[used]], clusters.size[used]
    names, cluster = np.unique(clusters.cluster[used], return_inverse=True)
    inside = [clusters.arm[used] == arm for arm in arms]
    present = [np.unique(cluster[mask]) for mask in inside]

    def arm_map(mask: np.ndarray | slice) -> ArmMap:
        some = used[mask], cluster[mask], unit[mask], size[mask]
        return _arm_map(*some, unit_weights, len(names))

    label, df = _blocks(cluster, unit, present)
    return ClusterWeights(
        arms=[arm_map(mask) for mask in inside],
        everyone=arm_map(slice(None)) if with_everyone else None,
        blocks=indicator(label, len(df)),
        df=df,
    )


def _arm_map(
    sets: np.ndarray,
    cluster: np.ndarray,
    unit: np.ndarray,
    size: np.ndarray,
    unit_weights: np.ndarray,
    n_clusters: int,
) -> ArmMap:
    n_units = len(unit_weights)
    # Sets of several arms make up a cluster's mean over a unit in proportion to their cells.
    pairs, member = np.unique(cluster * n_units + unit, return_inverse=True)
    cells = np.bincount(member, weights=size)
    of_unit, of_cluster, order = pairs % n_units, pairs // n_units, np.arange(len(pairs))
    count = np.bincount(of_unit, minlength=n_units)[of_unit]
    share = 1 / count
    scale = unit_weights[of_unit] * np.sqrt(count / np.maximum(count - 1, 1)) * share
    inside, columns = size / cells[member], np.arange(len(sets))
    return ArmMap(
        sets=sets,
        gather=sparse.csr_matrix((inside, (member, columns)), shape=(len(pairs), len(sets))),
        average=sparse.csr_matrix((share, (of_unit, order)), shape=(n_units, len(pairs))),
        unit=of_unit,
        add_up=sparse.csr_matrix((scale, (of_cluster, order)), shape=(n_clusters, len(pairs))),
        unit_weights=unit_weights,
    )


def _blocks(
    cluster: np.ndarray, unit: np.ndarray, present: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Block of each cluster and the degrees of freedom of each block.

    Clusters vary differently if they have different arms. The mean of an arm costs a degree of
    freedom, shared by its C clusters: one cluster has 1 − 1 / C of them, where C is that of the
    scarcest of its arms. Units that share no cluster have means of their own.
    """
    n_clusters = int(cluster.max()) + 1
    size = n_clusters + int(unit.max()) + 1
    graph = sparse.csr_matrix(
        (np.ones(len(cluster)), (cluster, n_clusters + unit)), shape=(size, size)
    )
    _, part = csgraph.connected_components(graph, directed=False)
    part = part[:n_clusters]
    has_arm = np.stack([np.isin(np.arange(n_clusters), p) for p in present])
    in_part = np.stack([np.bincount(part, weights=has, minlength=size)[part] for has in has_arm])
    # Of clusters with none of the arms, all of the part count.
    own = np.bincount(part, minlength=size)[part]
    scarcest = np.where(has_arm, in_part, own).min(axis=0)
    _, block = np.unique(np.vstack([part, has_arm]), axis=1, return_inverse=True)
    df = np.bincount(block.ravel(), weights=1 - 1 / scarcest)
    return block.ravel(), np.maximum(df, 1.0)


def means_by_clusters(
    weights: ClusterWeights,
    outcomes: OutcomeSums,
    predictions: BothPredictions | None,
    estimand: Estimand,
) -> Means:
    """Means and corrections of a contrast whose clusters are independent.

    Parameters
    ----------
    weights
        Weights of the clusters.
    outcomes, predictions
        Sums of a chunk of genes; without predictions there are no corrections.
    estimand
        ``"ate"`` or ``"att"``.
    """
    found = [arm.apply(outcomes.by_set) for arm in weights.arms]
    if predictions is not None:
        treated, reference = weights.arms
        under_t, under_0 = predictions.treated.by_set, predictions.reference.by_set
        if estimand == "ate":
            found.append(_difference(weights.everyone, treated, under_t))
            found.append(_difference(weights.everyone, reference, under_0))
        else:
            found.append(_difference(treated, treated, under_t))
            found.append(_difference(treated, reference, under_0))
    return _joint(found, weights)


def correction_by_clusters(weights: ClusterWeights, predictions: PredictionSums) -> Means:
    """Correction of the first arm's mean alone, where clusters are independent.

    Parameters
    ----------
    weights
        Weights of the clusters, with those of all cells.
    predictions
        Predictions under the first arm's treatment.
    """
    return _joint([_difference(weights.everyone, weights.arms[0], predictions.by_set)], weights)


def _difference(one: ArmMap | None, other: ArmMap, means: np.ndarray) -> MeanAndInfluence:
    """Difference of two means and the clusters' influences on it."""
    if one is None:
        raise ValueError("Means over all cells are needed; pass with_everyone=True.")
    (value, influence), (less, its_influence) = one.apply(means), other.apply(means)
    return value - less, influence - its_influence


def _joint(found: Sequence[MeanAndInfluence], weights: ClusterWeights) -> Means:
    """Several means and their covariance, from influences of the same clusters."""
    n, n_genes = len(found), len(found[0][0])
    covariance = np.empty((len(weights.df), n, n, n_genes))
    for i, (_, one) in enumerate(found):
        for j, (_, other) in enumerate(found[: i + 1]):
            covariance[:, i, j] = covariance[:, j, i] = weights.blocks @ (one * other)
    return Means(np.stack([value for value, _ in found]), covariance, weights.df)
