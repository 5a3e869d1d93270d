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


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of the data that networks for images are built for.

    Attributes
    ----------
    shape
        Channels, height and width.
    n_values
        Levels of each attribute that is a category, and 0 for each that is a number.
    n_levels
        Levels of each categorical covariate.
    """

    shape: tuple[int, int, int]
    n_values: list[int]
    n_levels: list[int]

    @property
    def n_pixels(self) -> int:
        """Width of a flat image."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def n_treatment(self) -> int:
        """Width of the treatment code: one-hot levels, and standardised numbers."""
        return sum(n or 1 for n in self.n_values)

    @property
    def n_covariate(self) -> int:
        """Width of the covariate code."""
        return sum(self.n_levels)
