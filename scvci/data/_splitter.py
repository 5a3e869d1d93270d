"""Training, validation and test cells, and the loaders over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import lightning.pytorch as pl
import numpy as np
import torch
from scvi import settings
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from ._sampler import CounterfactualDataset

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch import Tensor


class CellTable(Protocol):
    """What training asks of a table of cells."""

    @property
    def adata(self) -> AnnData:
        """Source of the cells."""

    @property
    def names(self) -> pd.Index:
        """Names of all cells of the AnnData."""

    @property
    def group(self) -> np.ndarray:
        """Code of the group of each cell within which splits are drawn, shape ``(n_obs,)``."""

    def take(self, rows: np.ndarray) -> Self:
        """Put other cells in question."""

    def tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Tensors of rows, under the names that the module reads."""


class Sampler(Protocol):
    """What draws targets and references for factual cells."""

    @property
    def cells(self) -> CellTable:
        """The table of cells."""

    def __call__(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw everything the module needs besides the factual cells of ``rows``."""


def split_cells(
    group: np.ndarray,
    train_size: float = 0.9,
    validation_size: float | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split cells at random within groups.

    Every group gives about the same share to each part, and keeps at least one training cell.

    Parameters
    ----------
    group
        Group of each cell, here its (stratum, treatment), shape ``(n_cells,)``.
    train_size, validation_size
        Shares; what is left is the test part. ``None`` gives all that is left to validation.
    rng
        Generator; ``None`` splits in the order of the cells.

    Returns
    -------
    Rows of the training, validation and test parts, each in ascending order.

    Raises
    ------
    ValueError
        If ``train_size`` is not in (0, 1], ``validation_size`` not in [0, 1), or their sum
        exceeds 1.
    """
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size={train_size} must be in (0, 1].")
    validation_size = 1 - train_size if validation_size is None else validation_size
    if not 0 <= validation_size < 1:
        raise ValueError(f"validation_size={validation_size} must be in [0, 1).")
    if train_size + validation_size > 1 + 1e-9:
        raise ValueError(
            f"train_size + validation_size = {train_size + validation_size:g} must not exceed 1."
        )
    n = len(group)
    key = np.arange(n) if rng is None else rng.permutation(n)
    order = np.lexsort((key, group))
    _, start, inverse, count = np.unique(
        group[order], return_index=True, return_inverse=True, return_counts=True
    )
    offset = np.full(len(start), 0.5) if rng is None else rng.random(len(start))
    quantile = (np.arange(n) - start[inverse] + offset[inverse]) / count[inverse]
    part = np.searchsorted([train_size, train_size + validation_size - 1e-9], quantile, "right")
    if train_size + validation_size > 1 - 1e-9:
        part = np.minimum(part, 1)
    # The first cell of each group has the smallest quantile, so this only adds what was missing.
    part[start] = 0
    return tuple(np.sort(order[part == i]) for i in range(3))


class CounterfactualSplitter(pl.LightningDataModule):
    """Loaders of factual cells with drawn targets.

    Parameters
    ----------
    sampler
        Draws targets and references from the training cells.
    parts
        Rows of the training, validation and test cells.
    batch_size
        Cells per batch.
    seed
        Seed of the validation draws.
    """

    def __init__(
        self,
        sampler: Sampler,
        parts: tuple[np.ndarray, np.ndarray, np.ndarray],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train_idx, self.val_idx, self.test_idx = parts
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self._train_set = CounterfactualDataset(self.train_idx, sampler)
        self._restored: dict[str, Any] = {}

    def _loader(self, dataset: CounterfactualDataset, train: bool = False) -> DataLoader:
        order = RandomSampler(dataset) if train else SequentialSampler(dataset)
        # A batch is one item: a block of sparse rows is read and drawn for at once.
        return DataLoader(
            dataset,
            sampler=BatchSampler(order, self.batch_size, drop_last=False),
            batch_size=None,
            num_workers=settings.dl_num_workers,
            persistent_workers=settings.dl_persistent_workers,
        )

    def _validation_loader(self, rows: np.ndarray) -> DataLoader | None:
        if not len(rows):
            return None
        return self._loader(CounterfactualDataset(rows, self.sampler, seed=self.seed))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches with fresh draws."""
        if self._restored:
            # As late as this, for nothing draws between here and the first batch.
            self._restore_generators()
        return self._loader(self._train_set, train=True)

    def val_dataloader(self) -> DataLoader | None:
        """Batches that are the same in every epoch."""
        return self._validation_loader(self.val_idx)

    def test_dataloader(self) -> DataLoader | None:
        """Batches of the cells that neither training nor validation saw."""
        return self._validation_loader(self.test_idx)

    # -- going on from a checkpoint ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """States of all generators that training draws from."""
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "targets": self._train_set.generator_state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of a checkpoint; they are set when training cells are next asked for."""
        self._restored = state_dict

    def _restore_generators(self) -> None:
        state, self._restored = self._restored, {}
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        self._train_set.generator_state = state["targets"]
