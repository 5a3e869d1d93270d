"""Latent states of some cells of each stratum, to know the stratum's mean predictions by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.module._constants import MODULE_KEYS

from scvci.data import _constants as keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scvci.data import Cells
    from scvci.module import VCIModule
    from scvci.pooling import Pairs

#: Fewest and most cells per stratum that its mean prediction is known by, and most in all.
_MIN_CELLS, _MAX_CELLS, _MAX_TOTAL = 64, 1000, 100_000
#: Cells to predict under all arms, in units of the training cells: so that what follows training
#: costs about as much as an epoch.
_N_PASSES_OVER_CELLS = 4
#: Numbers in the largest array while arms are decoded together, so that some ten of them fit.
_MAX_NUMBERS = 2_000_000
#: Cells that are encoded together.
_N_ENCODED = 4096
#: Names of latent means and of sizes among the values of cells.
LATENT, SIZE = "z", "size"


@dataclass(frozen=True)
class StratumCells:
    """Cells in the order of their strata.

    Attributes
    ----------
    start
        Position of each stratum's first cell, and the number of cells, shape ``(n_strata + 1,)``.
    values
        Latent means ``"z"``, sizes ``"size"`` (1 for log data), and codes and values of the
        covariates under the names that the module reads, each of shape ``(n_cells, ...)``.
        Batches are in the stratum's proportions.
    """

    start: np.ndarray
    values: Mapping[str, np.ndarray]

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of each stratum, shape ``(n_strata,)``."""
        return np.diff(self.start)

    def of(self, stratum: int) -> dict[str, torch.Tensor]:
        """Latent means, sizes and covariates of a stratum's cells."""
        own = slice(self.start[stratum], self.start[stratum + 1])
        return {name: torch.as_tensor(array[own]) for name, array in self.values.items()}

    def weight(self, stratum: int) -> torch.Tensor:
        """Weights of a stratum's cells in its pseudobulk, of mean 1, shape ``(n_cells,)``."""
        size = self.of(stratum)[SIZE].squeeze(-1)
        return size / size.mean() if size.sum() > 0 else torch.ones_like(size)

    def keep(self, strata: np.ndarray) -> StratumCells:
        """Forget the cells of all strata but the given ones, a mask of shape ``(n_strata,)``."""
        kept = np.repeat(strata, self.n_cells)
        start = np.concatenate([[0], np.cumsum(np.where(strata, self.n_cells, 0))])
        return StratumCells(start, {name: array[kept] for name, array in self.values.items()})

    def chunks(self, module: VCIModule, stratum: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield strata and the positions of some of their pairs, few enough to decode at once.

        Parameters
        ----------
        module
            The module to decode with.
        stratum
            Strata of the pairs, shape ``(n_pairs,)``.
        """
        n_code = module.treatment_codes.shape[1]
        n_covariate = sum(module.sizes.n_levels) + module.sizes.n_continuous
        n_out = module.sizes.n_genes * module.likelihood.n_heads
        width = max(n_out, n_code * (1 + n_covariate))
        order = np.argsort(stratum, kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
            if len(own):
                x = int(stratum[own[0]])
                n = max(1, _MAX_NUMBERS // (int(self.n_cells[x]) * width))
                yield from ((x, own[i : i + n]) for i in range(0, len(own), n))

    def linear_predictor(
        self,
        module: VCIModule,
        stratum: int,
        treatment: np.ndarray,
        batch: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Decode a stratum's cells under several treatments.

        Parameters
        ----------
        module
            The trained module.
        stratum
            Index of the stratum.
        treatment
            Indices of the treatments, shape ``(n_arms,)``.
        batch
            Batches to predict in, shape ``(n_arms, n_cells)``, by default those of the cells.

        Returns
        -------
        Shape ``(n_arms, n_cells, n_heads, n_genes)``.
        """
        n_arms, n = len(treatment), int(self.n_cells[stratum])
        tensors = {
            name: value.to(module.device).repeat(n_arms, 1)
            for name, value in self.of(stratum).items()
        }
        if batch is not None:
            tensors[keys.BATCH_KEY] = torch.as_tensor(batch, device=module.device).reshape(-1, 1)
        arms = torch.as_tensor(treatment, device=module.device).repeat_interleave(n)
        covariates = module.covariate_codes(tensors)
        return module.linear_predictor(tensors[LATENT], arms, covariates).unflatten(0, (-1, n))


@dataclass(frozen=True)
class PairBatches:
    """Technical batches of the cells of each pair, to predict in.

    Attributes
    ----------
    batch
        Batches of all cells in the order of their pairs.
    start, count
        Position of each pair's first cell, and its number of cells, shape ``(n_pairs,)``.
    """

    batch: np.ndarray
    start: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, cells: Cells, pairs: Pairs) -> PairBatches | None:
        """Gather the batches; ``None`` for data without.

        Parameters
        ----------
        cells
            The training cells, those in question.
        pairs
            Their pairs.
        """
        if cells.batch is None:
            return None
        row = pairs.rows(cells.stratum[cells.rows], cells.treatment[cells.rows])
        batch, row = cells.batch[cells.rows][row >= 0], row[row >= 0]
        count = np.bincount(row, minlength=len(pairs))
        return cls(batch[np.lexsort((batch, row))], np.cumsum(count) - count, count)

    def draw(self, rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw batches in the proportions of each pair's cells, as the means to meet have them.

        Parameters
        ----------
        rows
            Rows of the pairs, shape ``(n_pairs,)``.
        n
            Number to draw for each.
        rng
            Says which cell is predicted in which batch.

        Returns
        -------
        Shape ``(n_pairs, n)``.
        """
        spread = np.arange(n) * self.count[rows, None] // n
        return rng.permuted(self.batch[self.start[rows, None] + spread], axis=1)


def n_cells_per_stratum(n_cells: int, n_pairs: int, n_strata: int) -> int:
    """Cells of each stratum to predict under all of its arms.

    Parameters
    ----------
    n_cells, n_pairs, n_strata
        Training cells, their pairs and their strata.
    """
    n = np.clip(_N_PASSES_OVER_CELLS * n_cells // max(n_pairs, 1), _MIN_CELLS, _MAX_CELLS)
    return max(1, min(int(n), _MAX_TOTAL // max(n_strata, 1)))


@torch.inference_mode()
def encode_cells(
    module: VCIModule,
    cells: Cells,
    strata: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> StratumCells:
    """Encode some of each stratum's cells.

    Parameters
    ----------
    module
        A trained module.
    cells
        The training cells, those in question.
    strata
        Strata to encode cells of, a mask of shape ``(n_strata,)``.
    n
        Most cells of each stratum.
    rng
        Picks the cells.
    """
    rows = rng.permutation(cells.rows)
    rows = rows[cells.stratum[rows] >= 0]
    rows = rows[strata[cells.stratum[rows]]]
    rows = rows[np.argsort(cells.stratum[rows], kind="stable")]
    stratum = cells.stratum[rows]
    count = np.bincount(stratum, minlength=len(strata))
    first = np.cumsum(count) - count
    rank = np.arange(len(rows)) - first[stratum]
    chosen = rank < n
    kept = np.minimum(count, n)
    values = _encode(module, cells, rows[chosen])
    if cells.batch is not None:
        own = cells.batch[rows]
        x = stratum[chosen]
        spread = first[x] + rank[chosen] * count[x] // kept[x]
        values[keys.BATCH_KEY] = own[np.lexsort((own, stratum))][spread, None]
    return StratumCells(np.concatenate([[0], np.cumsum(kept)]), values)


def _encode(module: VCIModule, cells: Cells, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Latent means, sizes and covariates of cells in the given order."""
    latent = [np.zeros((0, module.config.architecture.n_latent), dtype=np.float32)]
    size = [np.zeros((0, 1), dtype=np.float32)]
    for _, tensors in cells.batches(_N_ENCODED, rows):
        on_device = {name: value.to(module.device) for name, value in tensors.items()}
        inputs = module._get_inference_input(on_device)
        qz = module.inference(**inputs, n_samples=0)
        latent.append(qz[MODULE_KEYS.QZ_KEY].loc.cpu().numpy())
        own = inputs["size"] if module.likelihood.uses_size else torch.ones_like(inputs["size"])
        size.append(own.cpu().numpy())
    values = {
        LATENT: np.concatenate(latent),
        SIZE: np.concatenate(size),
        keys.COVARIATES_KEY: cells.covariates[rows],
    }
    if cells.continuous is not None:
        values[keys.CONTINUOUS_KEY] = cells.continuous[rows].astype(np.float32)
    return values
