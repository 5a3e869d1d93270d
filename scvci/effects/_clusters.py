r"""Parts of an effect and their covariances where cells come in clusters.

Cells of a donor, well or guide are not independent; clusters are. A mean over an arm is a weighted
mean of its clusters' means, and the influence of cluster c on it
:math:`f a_c (\bar Y_c - \bar Y)`, with weights :math:`a_c` and :math:`f^2 = C / (C - 1)` for the
C clusters of the arm. Influences on both arms are added up within clusters before they are
squared. Where every cluster has both arms this is the paired t-test of cluster means, and where
none has, Welch's t-test of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from ._design import REFERENCE, Clusters, Contrast, indicator
from ._intervals import Components

if TYPE_CHECKING:
    from ._components import Products
    from ._moments import Outcomes, Predictions

#: With fewer clusters of an arm each counts as one observation, whatever its number of cells.
FEW_CLUSTERS = 10


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
    weights
        Weights of the units, shape ``(n_units,)``.
    """

    sets: np.ndarray
    gather: sparse.csr_matrix
    average: sparse.csr_matrix
    unit: np.ndarray
    add_up: sparse.csr_matrix
    weights: np.ndarray

    def apply(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average means of sets over clusters and units.

        Parameters
        ----------
        means
            Means of all sets, shape ``(n_sets, n_genes)``.

        Returns
        -------
        The mean, shape ``(n_genes,)``, and the influence of each cluster on it, shape
        ``(n_clusters, n_genes)``.
        """
        of_pairs = self.gather @ means[self.sets]
        of_units = self.average @ of_pairs
        return self.weights @ of_units, self.add_up @ (of_pairs - of_units[self.unit])


@dataclass(frozen=True)
class ClusterWeights:
    """Maps from means of sets to a contrast's means, and clusters that vary alike.

    Attributes
    ----------
    treated, reference, everyone
        Maps to the means over both arms and over all cells; the last only if asked for.
    blocks
        Which clusters form a block of variance, sparse ``(n_blocks, n_clusters)``.
    df
        Degrees of freedom of each block, shape ``(n_blocks,)``.
    """

    treated: ArmMap
    reference: ArmMap
    everyone: ArmMap | None
    blocks: sparse.csr_matrix
    df: np.ndarray


def weigh_clusters(
    contrast: Contrast,
    clusters: Clusters,
    reference: int | None = REFERENCE,
    with_everyone: bool = False,
) -> ClusterWeights:
    """Weights of clusters in a contrast, and blocks of clusters that vary alike.

    Parameters
    ----------
    contrast
        Arms, units and weights.
    clusters
        Cells of each cluster in each unit and arm.
    reference
        The arm to compare with; ``None`` for all others.
    with_everyone
        Whether means over all cells are needed.
    """
    position = np.full(int(clusters.unit.max()) + 1, -1)
    position[contrast.units] = np.arange(len(contrast.units))
    used = np.flatnonzero(position[clusters.unit] >= 0)
    unit, arm, size = position[clusters.unit[used]], clusters.arm[used], clusters.size[used]
    names, cluster = np.unique(clusters.cluster[used], return_inverse=True)
    treated = arm == contrast.arm
    masks = [treated, ~treated if reference is None else arm == reference]
    present = [np.unique(cluster[mask]) for mask in masks]
    equal = min(len(p) for p in present) < FEW_CLUSTERS
    masks += [np.ones_like(treated)] if with_everyone else []
    maps = [
        _arm_map(contrast, used[m], cluster[m], unit[m], size[m], equal, len(names)) for m in masks
    ]
    label, df = _blocks(cluster, unit, present)
    return ClusterWeights(
        treated=maps[0],
        reference=maps[1],
        everyone=maps[2] if with_everyone else None,
        blocks=indicator(label, len(df)),
        df=df,
    )


def _arm_map(
    contrast: Contrast,
    sets: np.ndarray,
    cluster: np.ndarray,
    unit: np.ndarray,
    size: np.ndarray,
    equal: bool,
    n_clusters: int,
) -> ArmMap:
    n_units = len(contrast.units)
    # Sets of several arms make up a cluster's mean over a unit in proportion to their cells.
    pairs, member = np.unique(cluster * n_units + unit, return_inverse=True)
    cells = np.bincount(member, weights=size)
    of_unit, of_cluster, order = pairs % n_units, pairs // n_units, np.arange(len(pairs))
    share = np.ones(len(pairs)) if equal else cells
    share = share / np.bincount(of_unit, weights=share, minlength=n_units)[of_unit]
    count = np.bincount(of_unit, minlength=n_units)[of_unit]
    scale = contrast.weights[of_unit] * np.sqrt(count / np.maximum(count - 1, 1)) * share
    inside, columns = size / cells[member], np.arange(len(sets))
    return ArmMap(
        sets=sets,
        gather=sparse.csr_matrix((inside, (member, columns)), shape=(len(pairs), len(sets))),
        average=sparse.csr_matrix((share, (of_unit, order)), shape=(n_units, len(pairs))),
        unit=of_unit,
        add_up=sparse.csr_matrix((scale, (of_cluster, order)), shape=(n_clusters, len(pairs))),
        weights=contrast.weights,
    )


def _blocks(
    cluster: np.ndarray, unit: np.ndarray, present: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Block of each cluster and the degrees of freedom of each block.

    Clusters with both arms, with one of them and with none vary differently. The mean of an arm
    costs a degree of freedom, shared by its C clusters: one cluster has 1 − 1 / C of them. Units
    that share no cluster have means of their own.
    """
    n_clusters = int(cluster.max()) + 1
    size = n_clusters + int(unit.max()) + 1
    graph = sparse.csr_matrix(
        (np.ones(len(cluster)), (cluster, n_clusters + unit)), shape=(size, size)
    )
    _, component = csgraph.connected_components(graph, directed=False)
    kind = np.zeros(n_clusters, dtype=int)
    kind[present[0]] += 1
    kind[present[1]] += 2
    component = component[:n_clusters]
    per_arm = [np.bincount(component[p], minlength=size)[component] for p in present]
    # Of clusters without either arm, the number in the component counts.
    own = np.bincount(component, minlength=size)[component]
    smaller = np.choose(kind, [own, per_arm[0], per_arm[1], np.minimum(*per_arm)])
    _, block = np.unique(component * 4 + kind, return_inverse=True)
    df = np.bincount(block, weights=1 - 1 / np.maximum(smaller, 1))
    return block, np.maximum(df, 1.0)


def cluster_components(
    weights: ClusterWeights, outcomes: Outcomes, products: Products | None, estimand: str
) -> Components:
    """Parts of a contrast whose clusters are independent.

    Parameters
    ----------
    weights
        Weights of the clusters.
    outcomes, products
        Sums of a chunk of genes; without predictions there are no corrections.
    estimand
        ``"ate"`` or ``"att"``.
    """
    parts = [weights.treated.apply(outcomes.by_set), weights.reference.apply(outcomes.by_set)]
    if products is not None:
        under_t, under_0 = products.treated.by_set, products.reference.by_set
        if estimand == "ate" and weights.everyone is not None:
            parts.append(arm_difference(weights.everyone, weights.treated, under_t))
            parts.append(arm_difference(weights.everyone, weights.reference, under_0))
        else:
            parts.append((np.zeros_like(parts[0][0]), np.zeros_like(parts[0][1])))
            parts.append(arm_difference(weights.treated, weights.reference, under_0))
    n_parts, n_genes = len(parts), len(parts[0][0])
    covariance = np.empty((len(weights.df), n_parts, n_parts, n_genes))
    for i, (_, one) in enumerate(parts):
        for j, (_, other) in enumerate(parts[: i + 1]):
            covariance[:, i, j] = covariance[:, j, i] = weights.blocks @ (one * other)
    return Components(np.stack([value for value, _ in parts]), covariance, weights.df)


def cluster_correction(weights: ClusterWeights, predictions: Predictions) -> Components:
    """Correction of the treated mean alone, where clusters are independent.

    Parameters
    ----------
    weights
        Weights of the clusters, with those of all cells.
    predictions
        Predictions under the target.
    """
    if weights.everyone is None:
        raise ValueError("Weights of all cells are needed; weigh_clusters with_everyone=True.")
    value, influence = arm_difference(weights.everyone, weights.treated, predictions.by_set)
    return Components(value[None], (weights.blocks @ influence**2)[:, None, None], weights.df)


def arm_difference(one: ArmMap, other: ArmMap, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of two means and the clusters' influences on it."""
    (value, influence), (less, its_influence) = one.apply(means), other.apply(means)
    return value - less, influence - its_influence
