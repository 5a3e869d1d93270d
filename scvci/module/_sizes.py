"""Sizes of the data that networks are built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataSizes:
    """Sizes of the data that the networks are built for.

    Attributes
    ----------
    n_genes
        Genes.
    doses
        Dose of each member in each arm as a share of the member's largest dose, shape
        ``(n_arms, n_members)``; all zero for the control.
    control
        Index of the control among the arms.
    n_levels
        Levels of each categorical covariate.
    n_continuous
        Continuous covariates.
    n_batches
        Technical batches, 0 where they are not told apart.
    """

    n_genes: int
    doses: np.ndarray
    control: int
    n_levels: list[int]
    n_continuous: int
    n_batches: int = 0

    @property
    def n_covariate(self) -> int:
        """Width of the covariate code: one-hot levels, continuous covariates and batches."""
        return sum(self.n_levels) + self.n_continuous + self.n_batches
