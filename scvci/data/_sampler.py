"""The counterfactual sampler: for each cell a target t′ and real cells of (x, t′)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch.utils.data import Dataset

from . import _constants as keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvci.pooling import Pairs

    from ._cells import Cells
    from ._splitter import Sampler
    from ._statistics import Statistics

#: Share of draws that go to arms without cells in the stratum, where there are such arms.
_UNSUPPORTED_SHARE = 0.2


class CounterfactualSampler:
    """Draw targets and reference cells for whole batches.

    Parameters
    ----------
    cells
        The training cells, those in question; references are drawn from these only.
    statistics
        Moments of the training cells.
    mode
        ``"balanced"``: arms other than the received one, control included, each with the same
        probability among those that have cells in the stratum, and some draws for the others.
        ``"treated"``: the treatment of a random treated training cell, whatever the stratum; never
        the control, possibly the received treatment (the reference implementation).
    n_reference
        Cells of (x, t′) to draw per cell, with replacement; 0 for none.
    uses_size
        Whether reference cells are scaled to the reference size.
    """

    def __init__(
        self,
        cells: Cells,
        statistics: Statistics,
        mode: Literal["balanced", "treated"] = "balanced",
        n_reference: int = 0,
        uses_size: bool = True,
    ) -> None:
        self.cells = cells
        self.statistics = statistics
        self.mode = mode
        self.n_reference = n_reference
        self.uses_size = uses_size
        self._treated = cells.treatment[cells.rows]
        self._treated = self._treated[self._treated != 0]
        self._arms = _ArmOrder.of(statistics.moments.pairs)
        row = statistics.moments.pairs.rows(cells.stratum[cells.rows], cells.treatment[cells.rows])
        # Rows of unknown strata carry −1 and sort first.
        self._by_pair = cells.rows[np.argsort(row, kind="stable")]
        before = np.concatenate([[0], np.cumsum(statistics.moments.count)])[:-1]
        self._start = before + (row < 0).sum()

    def draw_targets(
        self, stratum: np.ndarray, treatment: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw t′ for each cell, shape ``(n_cells,)``."""
        if self.mode == "treated":
            return rng.choice(self._treated, size=len(treatment))
        return self._arms.draw(stratum, treatment, rng)

    def draw_references(
        self, pair: np.ndarray, rng: np.random.Generator, n: int | None = None
    ) -> np.ndarray:
        """Draw rows of AnnData for each pair, by default shape ``(n_cells, n_reference)``.

        Parameters
        ----------
        pair
            Row of the pair in the statistics; −1, for no cells, gets any row; callers mask it.
        rng
            Draws the cells.
        n
            Rows per pair.
        """
        count = self.statistics.moments.count[pair][:, None]
        n = self.n_reference if n is None else n
        offset = np.floor(rng.random((len(pair), n)) * count).astype(np.int64)
        return self._by_pair[self._start[pair][:, None] + offset]

    def draw_batches(
        self, pair: np.ndarray, own: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw a technical batch from the cells of each pair; their own where there are none.

        Counterfactuals then compare with the pair's cells batch for batch, also where treatments
        are spread unevenly over batches.
        """
        assert self.cells.batch is not None
        drawn = self.cells.batch[self.draw_references(pair, rng, 1)[:, 0]]
        return np.where(pair >= 0, drawn, own)

    def __call__(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw everything the module needs besides the factual cells of ``rows``."""
        stratum, treatment = self.cells.stratum[rows], self.cells.treatment[rows]
        target = self.draw_targets(stratum, treatment, rng)
        pair = self.statistics.moments.pairs.rows(stratum, target)
        batch = {
            keys.TARGET_KEY: target[:, None],
            keys.SUPPORTED_KEY: (pair >= 0)[:, None].astype(np.float32),
            keys.REFERENCE_MEAN_KEY: _rows_of(self.statistics.moments.mean, pair),
            keys.REFERENCE_VAR_KEY: _rows_of(self.statistics.moments.variance, pair),
        }
        if self.cells.batch is not None:
            drawn = self.draw_batches(pair, self.cells.batch[rows], rng)
            batch[keys.TARGET_BATCH_KEY] = drawn[:, None]
        if self.n_reference:
            batch[keys.REFERENCE_KEY] = self._reference_cells(self.draw_references(pair, rng))
        return batch

    def _reference_cells(self, rows: np.ndarray) -> np.ndarray:
        """Expression at the reference size, shape ``(n_cells, n_reference, n_genes)``."""
        unique, inverse = np.unique(rows, return_inverse=True)
        block = self.cells.counts(unique)
        if self.uses_size:
            size = self.cells.size(unique, block)
            factor = self.statistics.reference_size / np.where(size > 0, size, 1.0)
            block = sparse.diags(factor).tocsr() @ block
        return block.toarray().astype(np.float32)[inverse.reshape(rows.shape)]


@dataclass(frozen=True)
class _ArmOrder:
    """Arms of each stratum, those with cells first, to draw from by position.

    Attributes
    ----------
    arm
        Arms in order, shape ``(n_strata, n_arms)``.
    position
        Where each arm stands in its stratum's order, same shape.
    n_supported
        Arms with cells, shape ``(n_strata,)``.
    """

    arm: np.ndarray
    position: np.ndarray
    n_supported: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> _ArmOrder:
        """Order the arms.

        Parameters
        ----------
        pairs
            Pairs with cells.
        """
        empty = np.ones((pairs.n_strata, pairs.n_treatments), dtype=bool)
        empty[pairs.stratum, pairs.treatment] = False
        arm = np.argsort(empty, axis=1, kind="stable").astype(np.int32)
        position = np.argsort(arm, axis=1).astype(np.int32)
        return cls(arm, position, (~empty).sum(axis=1))

    def draw(
        self, stratum: np.ndarray, received: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw an arm other than the received one for each cell, shape ``(n_cells,)``.

        Arms with cells share the probability 0.8 equally, those without 0.2; what the received
        arm had is divided among all others in proportion.
        """
        n_arms, n_with = self.arm.shape[1], self.n_supported[stratum]
        own = self.position[stratum, received]
        sizes = np.stack([n_with, n_arms - n_with])
        in_group = np.stack([own < n_with, own >= n_with])
        left = sizes - in_group
        share = np.array([[1 - _UNSUPPORTED_SHARE], [_UNSUPPORTED_SHARE]])
        weight = share * left / np.maximum(sizes, 1)
        group = (rng.random(len(own)) * weight.sum(axis=0) >= weight[0]) & (left[1] > 0)
        group, cell = group.astype(np.int64), np.arange(len(own))
        # Among the others of the group: those at and after the received arm move up by one.
        k = np.floor(rng.random(len(own)) * left[group, cell]).astype(np.int64)
        k += np.where(group == 1, n_with, 0)
        k += in_group[group, cell] & (k >= own)
        # Where there is but one arm, it stays.
        return self.arm[stratum, np.minimum(k, n_arms - 1)].astype(np.int64)


def _rows_of(moment: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Moments of each cell's pair in single precision; zero for pair −1."""
    return np.where((pair >= 0)[:, None], moment[pair], 0).astype(np.float32)


class CounterfactualDataset(Dataset):
    """Factual batches with drawn targets.

    Parameters
    ----------
    indices
        Rows of AnnData to serve.
    sampler
        Has the cells; draws targets and references.
    seed
        If given, the same rows always get the same draws (validation).
    """

    def __init__(self, indices: np.ndarray, sampler: Sampler, seed: int | None = None) -> None:
        super().__init__()
        self.indices = np.sort(indices)
        self.sampler = sampler
        self.seed = seed
        self._rng: tuple[int, np.random.Generator] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def _generator(self, first: int) -> np.random.Generator:
        if self.seed is not None:
            return np.random.default_rng([self.seed, first])
        # Loader workers copy the dataset; torch gives each of them, and each epoch, its own seed.
        torch_seed = torch.initial_seed()
        if self._rng is None or self._rng[0] != torch_seed:
            self._rng = (torch_seed, np.random.default_rng(torch_seed))
        return self._rng[1]

    @property
    def generator_state(self) -> dict[str, Any] | None:
        """State of the generator of fresh draws in this process; ``None`` before the first."""
        return None if self._rng is None else dict(self._rng[1].bit_generator.state)

    @generator_state.setter
    def generator_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            torch_seed = torch.initial_seed()
            self._rng = (torch_seed, np.random.default_rng(torch_seed))
            self._rng[1].bit_generator.state = state

    def __getitem__(self, positions: int | Sequence[int]) -> dict[str, Any]:
        """Fetch a batch; sparse rows are read fastest in ascending order."""
        rows = self.indices[np.sort(np.atleast_1d(positions))]
        drawn = self.sampler(rows, self._generator(int(rows[0])))
        tensors = {name: torch.from_numpy(array) for name, array in drawn.items()}
        return {**self.sampler.cells.tensors(rows), **tensors}
