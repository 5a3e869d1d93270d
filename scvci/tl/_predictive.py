"""Predictive distributions of a stratum's expression under a treatment, as draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from sklearn.covariance import LedoitWolf

from scvci.data import _constants as keys
from scvci.effects import predictive_interval, predictive_score
from scvci.model._layers import LayerCollector
from scvci.model._seeded import Seeded

if TYPE_CHECKING:
    from scvci.data import Cells
    from scvci.model import VCI
    from scvci.model._arms import Arm

#: Training cells of a stratum whose latent states stand for it.
_MAX_CELLS = 1000
#: Share of a stratum's cells, those with the latent states closest to its centre, that are not at
#: its edge.
INNER_SHARE = 0.8


@dataclass(frozen=True)
class Predictive:
    """Draw cells under a treatment, score outcomes by the draws, and turn scores into bounds.

    Attributes
    ----------
    model
        The trained model, with its cells.
    states
        Latent means and standard deviations of each stratum's training cells, from which latent
        states are drawn.
    edge
        Tells which cells lie at the edge of their stratum's latent states.
    level
        Share of outcomes that bounds are to hold.
    n_samples
        Draws per cell.
    seed
        Seed of the draws.
    batch_size
        Cells per step.
    """

    model: VCI
    states: list[tuple[torch.Tensor, torch.Tensor]]
    edge: _Edge
    level: float
    n_samples: int
    seed: int
    batch_size: int

    @classmethod
    def of(
        cls, model: VCI, cells: Cells, level: float, n_samples: int, seed: int, batch_size: int
    ) -> Predictive:
        """Gather the latent states of a model's training cells.

        Parameters
        ----------
        model
            A trained model that holds its cells.
        cells
            These cells.
        level, n_samples, seed, batch_size
            See the attributes.
        """
        train, rng = model.train_indices, np.random.default_rng(seed)
        states = []
        for x in range(cells.n_strata):
            rows = train[cells.stratum[train] == x]
            if len(rows) > _MAX_CELLS:
                rows = np.sort(rng.choice(rows, _MAX_CELLS, replace=False))
            states.append(_latent_states(model, rows))
        edge = _Edge.of([mean.cpu().numpy() for mean, _ in states])
        return cls(model, states, edge, level, n_samples, seed, batch_size)

    @property
    def is_empty(self) -> list[bool]:
        """Whether a stratum has no training cells."""
        return [not len(mean) for mean, _ in self.states]

    @torch.inference_mode()
    def scores(self, cells: Cells, rows: np.ndarray, arm: Arm) -> np.ndarray:
        """Scores of cells that received the treatment, shape ``(n_cells, n_genes)``."""
        scores = [np.zeros((0, len(cells.genes)))]
        with Seeded(self.seed):
            for _, tensors in cells.batches(self.batch_size, rows):
                outcome = tensors[REGISTRY_KEYS.X_KEY].numpy()
                draws = self._draws(self.model.on_device(tensors), arm)
                scores.append(predictive_score(draws, outcome, self.model.is_count))
        return np.concatenate(scores)

    @torch.inference_mode()
    def bounds(self, cells: Cells, arm: Arm, threshold: np.ndarray) -> list[np.ndarray]:
        """Low and high layer aligned with all rows and genes of the AnnData.

        Thresholds have the shape ``(n_strata + 1, n_genes)``; a combination of levels that
        training did not see has the stratum -1, which is the last row. At the edge of a stratum
        bounds are no narrower than the quantiles of the cell's own draws.
        """
        rows = np.unique(cells.rows)
        collector = LayerCollector(cells, rows, 2)
        with Seeded(self.seed + 1):
            for batch, tensors in cells.batches(self.batch_size, rows):
                stratum, tensors = cells.stratum[batch], self.model.on_device(tensors)
                draws, is_count = self._draws(tensors, arm), self.model.is_count
                low, high = predictive_interval(draws, threshold[stratum], is_count)
                z = self.model.latent_states(tensors)[0].cpu().numpy()
                far = np.flatnonzero(self.edge.holds(z, stratum))
                if len(far):
                    own = predictive_interval(
                        self._own_draws({k: t[far] for k, t in tensors.items()}, arm),
                        self.level / 2,
                        is_count,
                    )
                    low[far] = np.minimum(low[far], own[0])
                    high[far] = np.maximum(high[far], own[1])
                collector.add(batch, np.stack([low, high]).astype(np.float32))
        return collector.layers()

    def _draws(self, tensors: dict[str, torch.Tensor], arm: Arm) -> np.ndarray:
        """Draw expression of a batch, shape ``(n_samples, n_cells, n_genes)``."""
        z = self._states(tensors[keys.STRATUM_KEY].squeeze(-1))
        return self.model.decode(tensors, arm, z).sample().cpu().numpy()

    def _own_draws(self, tensors: dict[str, torch.Tensor], arm: Arm) -> np.ndarray:
        """Draw expression from each cell's own latent states, shaped as :meth:`_draws`."""
        # The other cells' draws stay what they are without these.
        with Seeded(self.seed + 2):
            z = self.model.latent_states(tensors, self.n_samples)
            return self.model.decode(tensors, arm, z).sample().cpu().numpy()

    def _states(self, stratum: torch.Tensor) -> torch.Tensor:
        """Latent states of random training cells of each cell's stratum; zero without any."""
        n_latent = self.states[0][0].shape[1]
        z = torch.zeros(self.n_samples, len(stratum), n_latent, device=stratum.device)
        for x, (mean, sd) in enumerate(self.states):
            own = (stratum == x).nonzero().squeeze(-1)
            if len(mean) and len(own):
                drawn = torch.randint(len(mean), (self.n_samples, len(own)), device=stratum.device)
                z[:, own] = torch.normal(mean[drawn], sd[drawn])
        return z


@dataclass(frozen=True)
class _Edge:
    """Which cells are far from the centre of their stratum, in latent standard deviations."""

    centres: np.ndarray
    covariance: LedoitWolf
    #: Largest distance that is not at the edge, by stratum; infinite where there are no cells.
    limits: np.ndarray

    @classmethod
    def of(cls, states: list[np.ndarray]) -> _Edge:
        """Read centres and distances off the latent means of each stratum's training cells."""
        centres = np.stack([z.mean(axis=0) if len(z) else np.zeros(z.shape[1]) for z in states])
        inner = [z - centre for z, centre in zip(states, centres, strict=True)]
        covariance = LedoitWolf(assume_centered=True).fit(np.concatenate(inner))
        limits = [
            np.quantile(covariance.mahalanobis(z), INNER_SHARE) if len(z) else np.inf
            for z in inner
        ]
        return cls(centres, covariance, np.asarray(limits))

    def holds(self, z: np.ndarray, stratum: np.ndarray) -> np.ndarray:
        """Whether cells with latent states ``(n_cells, n_latent)`` lie at the edge."""
        far = self.covariance.mahalanobis(z - self.centres[stratum]) > self.limits[stratum]
        return far & (stratum >= 0)


def _latent_states(model: VCI, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations, shape ``(n_cells, n_latent)``."""
    mean, variance = model.get_latent_representation(model.adata, rows, return_dist=True)
    device = model.module.device
    return torch.tensor(mean, device=device), torch.tensor(np.sqrt(variance), device=device)
