"""Predictive distributions of counterfactual expression, as draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scvci.data import _constants as keys
from scvci.data import pair_counts
from scvci.effects import predictive_interval, predictive_score

from ._layers import LayerCollector, Scale
from ._training import Seeded

if TYPE_CHECKING:
    from scvci.data import CellReader

#: Training cells of a stratum whose latent states stand for it.
_MAX_DONORS = 1000


@dataclass(frozen=True)
class Predictive:
    """Draw cells under a treatment, score outcomes by the draws, and turn scores into bounds.

    Attributes
    ----------
    model
        The trained model, with its cells.
    donors
        Latent means and standard deviations of each stratum's training cells, from which a cell's
        latent state is drawn; ``None`` draws it from the cell's own posterior.
    sources
        Cells of each stratum and treatment that training saw, shape
        ``(n_strata, n_treatments)``.
    n_samples
        Draws per cell.
    seed
        Seed of the draws.
    batch_size
        Cells per step.
    """

    model: Any
    donors: list[tuple[torch.Tensor, torch.Tensor]] | None
    sources: np.ndarray
    n_samples: int
    seed: int
    batch_size: int

    @classmethod
    def of(
        cls, model: Any, by_stratum: bool, n_samples: int, seed: int, batch_size: int
    ) -> Predictive:
        """Gather what the draws need from a model.

        Parameters
        ----------
        model
            A trained model that holds its cells.
        by_stratum
            Whether latent states are those of the stratum, or else each cell's own.
        n_samples, seed, batch_size
            See the attributes.
        """
        treatment, stratum = model._codes()
        train = np.asarray(model.train_indices, dtype=np.int64)
        sources = pair_counts(
            treatment[train], stratum[train], len(model.treatments), len(model.strata)
        )
        donors = None
        if by_stratum:
            rng = np.random.default_rng(seed)
            rows = [train[stratum[train] == x] for x in range(len(model.strata))]
            donors = [_latent_states(model, _at_most(r, _MAX_DONORS, rng)) for r in rows]
        return cls(model, donors, np.asarray(sources), n_samples, seed, batch_size)

    @torch.inference_mode()
    def scores(self, reader: CellReader, rows: np.ndarray, code: int) -> np.ndarray:
        """Scores of cells that received the treatment, shape ``(n_cells, n_genes)``.

        A cell's own latent state has seen its outcome. In its place stands that of a draw of what
        the cell would have been under another treatment.
        """
        model = self.model
        scores = [np.zeros((0, len(model.gene_names_)))]
        rng = np.random.default_rng(self.seed)
        with Seeded(self.seed):
            for _, tensors in reader.batches(rows, self.batch_size):
                outcome = tensors[REGISTRY_KEYS.X_KEY].numpy()
                cells = model._on_device(tensors)
                if self.donors is None:
                    cells = self._translated(cells, code, rng)
                draws = self._draws(cells, code)
                scores.append(predictive_score(draws, outcome, model.module.likelihood.is_count))
        return np.concatenate(scores)

    @torch.inference_mode()
    def bounds(
        self, reader: CellReader, rows: np.ndarray, code: int, threshold: np.ndarray
    ) -> list[np.ndarray]:
        """Low and high layer aligned with all rows and genes of the AnnData.

        Thresholds have the shape ``(n_strata + 1, n_genes)``; a combination of levels that
        training did not see has the stratum -1, which is the last row.
        """
        model = self.model
        collector = LayerCollector(reader, rows, 2)
        with Seeded(self.seed + 1):
            for batch, tensors in reader.batches(rows, self.batch_size):
                draws = self._draws(model._on_device(tensors), code)
                ends = predictive_interval(
                    draws, threshold[reader.stratum[batch]], model.module.likelihood.is_count
                )
                collector.add(batch, np.stack(ends).astype(np.float32))
        return collector.layers()

    def _draws(self, cells: dict[str, torch.Tensor], code: int) -> np.ndarray:
        """Draw expression of a batch, shape ``(n_samples, n_cells, n_genes)``."""
        z = None
        if self.donors is not None:
            z = _stratum_states(self.donors, cells[keys.STRATUM_KEY].squeeze(-1), self.n_samples)
        scale = Scale(None, False, self.n_samples)
        return self.model._decode(cells, code, scale, True, z=z).sample().cpu().numpy()

    def _translated(
        self, cells: dict[str, torch.Tensor], code: int, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """Draw what the cells would have been under other treatments of their stratum.

        These are drawn by their shares of the stratum, as the cells to predict have them.
        """
        shares = self.sources.astype(float)
        shares[:, code] = 0
        shares[shares.sum(axis=1) == 0, code] = 1
        cumulative = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
        stratum = cells[keys.STRATUM_KEY].squeeze(-1).cpu().numpy()
        drawn = (rng.random((len(stratum), 1)) >= cumulative[stratum, :-1]).sum(axis=1)
        source = torch.as_tensor(drawn, device=self.model.module.device)
        px = self.model._decode(cells, source, Scale(None, False, 1), True)
        return {
            **cells,
            REGISTRY_KEYS.X_KEY: px.sample()[0],
            keys.TREATMENT_KEY: source[:, None],
        }


def _at_most(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(rows, n, replace=False)) if len(rows) > n else rows


def _latent_states(model: Any, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations, shape ``(n_cells, n_latent)``."""
    mean, variance = model.get_latent_representation(model.adata, rows, return_dist=True)
    device = model.module.device
    return torch.tensor(mean, device=device), torch.tensor(np.sqrt(variance), device=device)


def _stratum_states(
    donors: list[tuple[torch.Tensor, torch.Tensor]], stratum: torch.Tensor, n_samples: int
) -> torch.Tensor:
    """Latent states of random training cells of each cell's stratum; zero where there are none."""
    n_latent = donors[0][0].shape[1]
    z = torch.zeros(n_samples, len(stratum), n_latent, device=stratum.device)
    for x, (mean, sd) in enumerate(donors):
        cells = (stratum == x).nonzero().squeeze(-1)
        if len(mean) and len(cells):
            drawn = torch.randint(len(mean), (n_samples, len(cells)), device=stratum.device)
            z[:, cells] = torch.normal(mean[drawn], sd[drawn])
    return z
