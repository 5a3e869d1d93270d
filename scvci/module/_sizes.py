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
    treatment_codes
        Code of each treatment, shape ``(n_treatments, n_code)``: the relative doses of its
        members, and columns for what arms do beyond their members.
    control
        Index of the control among the treatments.
    n_levels
        Levels of each categorical covariate.
    n_continuous
        Continuous covariates.
    n_strata
        Observed combinations of covariate levels.
    n_batches
        Technical batches, 0 where they are not told apart.
    n_members
        Columns that are doses of members, by default all.
    """

    n_genes: int
    treatment_codes: np.ndarray
    control: int
    n_levels: list[int]
    n_continuous: int
    n_strata: int
    n_members: int | None = None
    n_batches: int = 0

    @property
    def doses(self) -> np.ndarray:
        """Relative dose of each member in each treatment, shape ``(n_treatments, n_members)``."""
        return self.treatment_codes[:, : self.n_members]
