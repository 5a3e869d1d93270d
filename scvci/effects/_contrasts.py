"""Contrasts: weights over the means of arms, and where these means come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._clusters import ClusterWeights, weigh_clusters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._design import Design
    from ._moments import OutcomeSums
    from ._validation import Scale

#: Weights of the means of a treatment and the reference.
DIFFERENCE = np.array([1.0, -1.0])


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of arms, each averaged over the same units.

    Attributes
    ----------
    arms, weights
        Arms of the design and what the mean of each counts, shape ``(n_arms,)``.
    units, unit_weights
        Units that are averaged over and their weights, which sum to one, shape ``(n_units,)``.
    n_cells
        Cells of each arm in the units, shape ``(n_arms,)``.
    clusters
        Weights of the clusters where these, not cells, are independent; otherwise ``None``.
    """

    arms: np.ndarray
    weights: np.ndarray
    units: np.ndarray
    unit_weights: np.ndarray
    n_cells: np.ndarray
    clusters: ClusterWeights | None = None

    @classmethod
    def difference(
        cls,
        design: Design,
        arm: int,
        reference: int,
        units: np.ndarray,
        unit_weights: np.ndarray,
        with_everyone: bool = False,
    ) -> Contrast:
        """Subtract the reference from an arm, :math:`m_t - m_0`.

        Parameters
        ----------
        design
            Cells by unit and arm.
        arm, reference
            The arms.
        units, unit_weights
            Units and their weights: shares of all cells for the average effect (ATE), of the
            treated ones for the effect on these (ATT).
        with_everyone
            Whether means over all cells of the units are needed, for corrections.
        """
        arms, clusters = np.array([arm, reference]), None
        if design.clusters is not None:
            clusters = weigh_clusters(design.clusters, arms, units, unit_weights, with_everyone)
        n_cells = design.counts[units[:, None], arms].sum(axis=0)
        return cls(arms, DIFFERENCE, units, unit_weights, n_cells, clusters)

    @classmethod
    def interaction(
        cls, design: Design, arm: int, members: Sequence[int], control: int, unit: int
    ) -> Contrast:
        r"""Compare a combination with its members, :math:`m_c - \sum_i m_i + (k - 1) m_0`.

        Parameters
        ----------
        design
            Cells by unit and arm.
        arm, members, control
            Arms: the combination, its k members alone, and the control.
        unit
            The unit that arms are compared in.
        """
        k = len(members)
        arms = np.array([arm, *members, control])
        weights = np.array([1.0, *[-1.0] * k, k - 1.0])
        units, unit_weights = np.array([unit]), np.ones(1)
        clusters = None
        if design.clusters is not None:
            clusters = weigh_clusters(design.clusters, arms, units, unit_weights)
        return cls(arms, weights, units, unit_weights, design.counts[unit, arms], clusters)

    def count_expressing(self, outcomes: OutcomeSums) -> np.ndarray:
        """Count the expressing cells of all arms, shape ``(n_genes,)``.

        Parameters
        ----------
        outcomes
            Sums of a chunk of genes.
        """
        return outcomes.expressing[self.units, self.arms[:, None]].sum(axis=(0, 1))


def weighted_sum(weights: np.ndarray, means: np.ndarray, scale: Scale = "counts") -> np.ndarray:
    """Contrast of means, or for ``"lfc"`` of their log2, shape ``(n_genes,)``.

    Parameters
    ----------
    weights
        Weight of each mean, shape ``(n_arms,)``.
    means
        Shape ``(n_arms, n_genes)``; the result is NaN where a logarithm does not exist.
    scale
        Scale of effects.
    """
    if scale == "lfc":
        means = np.log2(np.where(means > 0, means, np.nan))
    return weights @ means


def derivative(weights: np.ndarray, means: np.ndarray, scale: Scale = "counts") -> np.ndarray:
    """Differentiate :func:`weighted_sum` by each mean, shape ``(n_arms, n_genes)``.

    Parameters
    ----------
    weights, means, scale
        See :func:`weighted_sum`.
    """
    if scale == "lfc":
        return weights[:, None] / (np.log(2) * np.where(means > 0, means, np.nan))
    return np.broadcast_to(weights[:, None], means.shape)
