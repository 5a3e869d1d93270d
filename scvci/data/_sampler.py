"""The counterfactual sampler: for each cell a target t′ and real cells of (x, t′)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch.utils.data import Dataset

from . import _constants as keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._statistics import Cohort, Statistics

#: Share of draws that go to arms without cells in the stratum, where there are such arms.
_UNSUPPORTED_SHARE = 0.2


class CounterfactualSampler:
    """Draw targets and reference cells for whole batches.

    Parameters
    ----------
    cohort
        The training cells; references are drawn from these only.
    statistics
        Moments of the training cells.
    mode
        ``"balanced"``: arms other than the received one, control included, each with the same
        probability among those that have cells in the stratum, and some draws for the others.
        ``"paper"``: the treatment of a random treated training cell, whatever the stratum; never
        the control, possibly the received treatment (the reference implementation).
    n_reference
        Cells of (x, t′) to draw per cell, with replacement; 0 for none.
    """

    def __init__(
        self,
        cohort: Cohort,
        statistics: Statistics,
        mode: Literal["balanced", "paper"] = "balanced",
        n_reference: int = 0,
        uses_size: bool = True,
        control: int = 0,
    ) -> None:
        self.cohort = cohort
        self.statistics = statistics
        self.mode = mode
        self.n_reference = n_reference
        self.uses_size = uses_size
        shape = (cohort.n_strata, cohort.n_treatments)
        self.supported = statistics.pair_count.reshape(shape) > 0
        self._log_weight = self._arm_weights()
        self._treated = cohort.treatment[cohort.indices]
        self._treated = self._treated[self._treated != control]
        order = np.argsort(cohort.pair[cohort.indices], kind="stable")
        self._by_pair = np.asarray(cohort.indices)[order]
        self._start = np.concatenate([[0], np.cumsum(statistics.pair_count)])
        # Rows of unknown strata carry −1 and sort first.
        self._start = self._start + (len(order) - statistics.pair_count.sum())

    def _arm_weights(self) -> np.ndarray:
        n_supported = self.supported.sum(axis=1, keepdims=True)
        n_unsupported = self.supported.shape[1] - n_supported
        weight = np.where(
            self.supported,
            (1 - _UNSUPPORTED_SHARE) / np.maximum(n_supported, 1),
            _UNSUPPORTED_SHARE / np.maximum(n_unsupported, 1),
        )
        return np.log(weight)

    def draw_targets(
        self, stratum: np.ndarray, treatment: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw t′ for each cell, shape ``(n_cells,)``."""
        if self.mode == "paper":
            return rng.choice(self._treated, size=len(treatment))
        # The Gumbel trick draws from a categorical per row at once.
        score = self._log_weight[stratum]
        score = score + rng.gumbel(size=score.shape)
        score[np.arange(len(treatment)), treatment] = -np.inf
        return score.argmax(axis=1)

    def draw_references(
        self, pair: np.ndarray, rng: np.random.Generator, n: int | None = None
    ) -> np.ndarray:
        """Draw rows of AnnData for each pair, by default shape ``(n_cells, n_reference)``.

        A pair without cells gets row 0; callers mask it.
        """
        count = self.statistics.pair_count[pair][:, None]
        n = self.n_reference if n is None else n
        offset = np.floor(rng.random((len(pair), n)) * count).astype(np.int64)
        position = np.where(count > 0, self._start[pair][:, None] + offset, 0)
        return self._by_pair[position]

    def draw_batches(
        self, pair: np.ndarray, own: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw a technical batch from the cells of each pair; their own where there are none.

        Counterfactuals then compare with the pair's cells batch for batch, also where treatments
        are spread unevenly over batches.
        """
        assert self.cohort.batch is not None
        drawn = self.cohort.batch[self.draw_references(pair, rng, 1)[:, 0]]
        return np.where(self.statistics.pair_count[pair] > 0, drawn, own)

    def __call__(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw everything the module needs besides the factual cells of ``rows``."""
        stratum, treatment = self.cohort.stratum[rows], self.cohort.treatment[rows]
        target = self.draw_targets(stratum, treatment, rng)
        pair = stratum * self.cohort.n_treatments + target
        batch = {
            keys.TARGET_KEY: target[:, None],
            keys.SUPPORTED_KEY: self.supported[stratum, target][:, None].astype(np.float32),
            keys.REFERENCE_MEAN_KEY: self.statistics.pair_mean[pair].astype(np.float32),
            keys.REFERENCE_VAR_KEY: self.statistics.pair_var[pair].astype(np.float32),
        }
        if self.cohort.batch is not None:
            drawn = self.draw_batches(pair, self.cohort.batch[rows], rng)
            batch[keys.TARGET_BATCH_KEY] = drawn[:, None]
        if self.n_reference:
            batch[keys.REFERENCE_KEY] = self._reference_cells(self.draw_references(pair, rng))
        return batch

    def _reference_cells(self, rows: np.ndarray) -> np.ndarray:
        """Expression at the reference size, shape ``(n_cells, n_reference, n_genes)``."""
        unique, inverse = np.unique(rows, return_inverse=True)
        block = self.cohort.expression(unique)
        if self.uses_size:
            size = self.cohort.size(unique, block)
            factor = self.statistics.reference_size / np.where(size > 0, size, 1.0)
            block = sparse.diags(factor).tocsr() @ block
        return block.toarray().astype(np.float32)[inverse.reshape(rows.shape)]


class CounterfactualDataset(Dataset):
    """Factual batches with drawn targets.

    Parameters
    ----------
    base
        Dataset of factual cells, indexed by rows of AnnData.
    indices
        Rows of AnnData to serve.
    sampler
        Draws targets and references.
    seed
        If given, the same rows always get the same draws (validation).
    """

    def __init__(
        self,
        base: Dataset,
        indices: np.ndarray,
        sampler: CounterfactualSampler,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.base = base
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

    def __getitem__(self, positions: int | Sequence[int]) -> dict[str, Any]:
        """Fetch a batch.

        Rows come in ascending order: a backed AnnData would silently return them so.
        """
        rows = self.indices[np.sort(np.atleast_1d(positions))]
        batch = dict(self.base[rows])
        batch[keys.STRATUM_KEY] = self.sampler.cohort.stratum[rows, None]
        batch.update(self.sampler(rows, self._generator(int(rows[0]))))
        return batch
