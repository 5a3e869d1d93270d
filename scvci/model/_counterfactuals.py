"""Counterfactuals of a plan: encoded once, decoded under each arm, gathered in three shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scvci.data import _constants as keys
from scvci.module._coupling import expect_with_residuals, keep_rates, sample_with_residuals
from scvci.module._fixed_totals import sample_with_totals

from ._layers import LayerCollector, require_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributions import Distribution

    from scvci.data import Cells, Condition

    from ._arms import Arm
    from ._base import VCIBase
    from ._layers import Scale


@dataclass(frozen=True)
class Block:
    """Predictions of some cells under one treatment.

    Attributes
    ----------
    treatment
        Name of the treatment; with ``target_key=`` that column.
    rows
        Rows of the AnnData, shape ``(n_cells,)``.
    values
        Shape ``(n_cells, n_genes)``, genes in the model's order; several draws or quantiles come
        first, ``(n_draws, n_cells, n_genes)``.
    """

    treatment: str
    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What is predicted for whom: arms by name, and with a column of targets each cell's own.

    Attributes
    ----------
    model
        A trained model.
    cells
        The cells.
    arms
        Arms by name.
    conditions
        Their conditions, in the same order.
    scale
        What is predicted, and on which scale.
    calibrated
        Whether predictions are calibrated.
    batch_size
        Cells per step.
    in_batch
        Technical batch to predict in; ``None`` for each cell's own.
    target_key, which
        Column of the cells' targets, and the arm of each cell, shape ``(n_obs,)``; ``None`` where
        all cells get all arms.
    """

    model: VCIBase
    cells: Cells
    arms: dict[str, Arm]
    conditions: list[Condition]
    scale: Scale
    calibrated: bool
    batch_size: int
    in_batch: int | None
    target_key: str | None = None
    which: np.ndarray | None = None

    @torch.inference_mode()
    def predictions(
        self, rows: np.ndarray | None = None
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield name, rows and values ``(n_layers, n_cells, n_genes)``.

        Cells are encoded once, and decoded once under the treatment that they received.

        With a column of targets the name is empty, and each cell has its own arm.

        Parameters
        ----------
        rows
            Rows of the cells, by default those in question.
        """
        for batch, tensors in self.cells.batches(self.batch_size, rows):
            if self.in_batch is not None:
                target = torch.full_like(tensors[keys.BATCH_KEY], self.in_batch)
                tensors[keys.TARGET_BATCH_KEY] = target
            on_device = self.model.on_device(tensors)
            z = self.model.latent_states(on_device, self.scale.n_samples)
            if self.which is None:
                factual = self._factual(on_device, z)
                for name, arm in self.arms.items():
                    values = self._values(on_device, z, arm, factual)
                    require_finite(values, self.cells.names, batch)
                    yield name, batch, values
                continue
            arms, parts = list(self.arms.values()), None
            for k in np.unique(self.which[batch]):
                own = np.flatnonzero(self.which[batch] == k)
                at = torch.as_tensor(own, device=z.device)
                cells = {name: tensor[at] for name, tensor in on_device.items()}
                factual = self._factual(cells, z[:, at])
                part = self._values(cells, z[:, at], arms[k], factual)
                if parts is None:
                    parts = np.empty((len(part), len(batch), part.shape[-1]), np.float32)
                parts[:, own] = part
            assert parts is not None
            require_finite(parts, self.cells.names, batch)
            yield "", batch, parts

    def _factual(self, tensors: dict[str, torch.Tensor], z: torch.Tensor) -> Distribution | None:
        """Expression of a batch under the treatments received, where what is kept rests on it."""
        if self.scale.keep == "state":
            return None
        return self.model.reconstruct(tensors, z, calibrated=self.calibrated)

    def _values(
        self,
        tensors: dict[str, torch.Tensor],
        z: torch.Tensor,
        arm: Arm,
        factual: Distribution | None,
    ) -> np.ndarray:
        """Values of a batch under one arm, shape ``(n_layers, n_cells, n_genes)``."""
        model, scale = self.model, self.scale
        size = scale.library_size
        px = model.decode(tensors, arm, z, library_size=size, calibrated=self.calibrated)
        counts, draws = tensors[REGISTRY_KEYS.X_KEY], bool(scale.n_samples)
        if factual is not None and scale.keep == "rates":
            composition = model.module.likelihood.composition
            px = keep_rates(factual, px, counts, draw=draws, composition=composition)
        if factual is not None and scale.keep == "molecules":
            couple = sample_with_residuals if draws else expect_with_residuals
            values = couple(factual, px, counts)
        elif scale.keep_totals:
            totals = counts.sum(dim=-1, keepdim=True)
            values = sample_with_totals(px, totals if size is None else 0 * totals + size)
        else:
            values = px.sample() if draws else px.mean
        values = scale.quantiles_of(values) if scale.quantiles else values
        values = torch.log1p(values) if scale.log1p else values
        return values.cpu().numpy()

    def layers(self) -> dict[str, list[Any]]:
        """Layers of each treatment, aligned with all rows and genes of the AnnData."""
        scale = self.scale
        sparse_layers = bool(scale.n_samples) and not scale.quantiles and self.model.is_count
        rows = np.unique(self.cells.rows)
        names = list(self.arms) if self.which is None else [""]
        collectors = {
            name: LayerCollector(self.cells, rows, len(scale.suffixes()), sparse_layers)
            for name in names
        }
        for name, batch, values in self.predictions(rows):
            collectors[name].add(batch, values)
        return {name: collector.layers() for name, collector in collectors.items()}

    def blocks(self) -> Iterator[Block]:
        """Yield predictions of each treatment and step of cells."""
        for name, rows, values in self.predictions():
            yield Block(
                name or self.target_key or "", rows, values[0] if len(values) == 1 else values
            )

    def means(self) -> AnnData:
        """Mean over the cells of each stratum, a row for each (treatment, stratum)."""
        if len(self.scale.suffixes()) > 1:
            raise ValueError("output='means' takes one prediction of each cell: n_samples=1.")
        if self.which is not None:
            raise ValueError("output='means' needs treatment=; target_key= is for single cells.")
        cells = self.cells.with_new_strata()
        found, inverse = np.unique(cells.stratum[cells.rows], return_inverse=True)
        counts = np.bincount(inverse.ravel())
        position = np.full(cells.n_obs, -1)
        position[cells.rows] = inverse.ravel()
        sums = {name: np.zeros((len(found), len(cells.genes))) for name in self.arms}
        for name, rows, values in self.predictions():
            np.add.at(sums[name], position[rows], values[0])
        obs = pd.DataFrame(
            {
                "treatment": np.repeat(list(self.arms), len(found)),
                "stratum": np.tile([cells.strata[x] for x in found], len(self.arms)),
                "n_cells": np.tile(counts, len(self.arms)),
                "basis": np.repeat([arm.basis for arm in self.arms.values()], len(found)),
            }
        )
        obs.index = [f"{t} | {x}" for t, x in zip(obs["treatment"], obs["stratum"], strict=True)]
        means = np.concatenate([total / counts[:, None] for total in sums.values()])
        result = AnnData(
            means.astype(np.float32), obs=obs, var=pd.DataFrame(index=cells.genes.astype(str))
        )
        scale = self.scale.describe(self.model.is_count)
        result.uns["scvci"] = {
            "X": self.model.describe(
                kind="means of counterfactuals", scale=scale, keep=self.scale.keep
            )
        }
        return result
