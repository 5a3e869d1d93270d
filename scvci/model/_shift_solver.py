"""Shifts of the linear predictor at which the mean predictions of a stratum's cells meet means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scvci.module import Likelihood, ShiftedMeans, VCIModule

    from ._stratum_cells import StratumCells

#: Passes of the fixed point; after each, a cell's predictions are still a composition.
_N_PASSES = 4
_TINY = 1e-12


@dataclass(frozen=True)
class DecodedArms:
    """Arms of a stratum, decoded once: their mean predictions at any shift.

    Shifts and means have the shape ``(n_arms, n_genes)``.

    Attributes
    ----------
    means
        Mean expression at the reference size as a function of the shift; molecules count alike.
    likelihood
        The likelihood.
    device
        Where the cells are decoded.
    """

    means: ShiftedMeans
    likelihood: Likelihood
    device: torch.device

    @classmethod
    def of(
        cls,
        module: VCIModule,
        cells: StratumCells,
        stratum: int,
        treatment: np.ndarray,
        batch: np.ndarray | None = None,
    ) -> DecodedArms:
        """Decode arms of a stratum.

        Parameters
        ----------
        module
            A trained module.
        cells
            Cells to take means of.
        stratum, treatment, batch
            See :meth:`StratumCells.linear_predictor`.
        """
        heads = cells.linear_predictor(module, stratum, treatment, batch)
        weight = cells.weight(stratum).to(heads.device)
        means = module.likelihood.shifted_means(heads, module.reference_size, weight)
        return cls(means, module.likelihood, heads.device)

    def mean(self, shift: np.ndarray) -> np.ndarray:
        """Mean predictions."""
        return self.means.at(torch.as_tensor(shift, device=self.device)).double().cpu().numpy()

    def close_gap(
        self, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        """Move shifts so that the shrunk gaps between predictions and real cells close.

        Parameters
        ----------
        shift
            Where to start.
        mean, variance
            Moments of the real cells.
        count
            Number of real cells of each arm, shape ``(n_arms,)``.
        """
        predicted = self.mean(shift)
        gap = self._shrunk_gap(mean, variance, count[:, None], predicted)
        return self._solve(shift, predicted, self._moved(predicted, gap))

    def pool(
        self, shift: np.ndarray, forecast: np.ndarray, noise_share: np.ndarray, least: float
    ) -> np.ndarray:
        """Move shifts so that predictions are averages of themselves and a forecast.

        Parameters
        ----------
        shift
            Where to start. It stays where there is no forecast, or nothing is known of the noise.
        forecast
            Forecast means, on the scale on which effects add up.
        noise_share
            Share of noise in the measured effects of each arm, shape ``(n_arms,)``.
        least
            Weight of the forecast where effects are measured without noise.
        """
        own = self.mean(shift)
        weight = _forecast_weight(noise_share, least)[:, None]
        pooled = (1 - weight) * self._stabilised(own) + weight * forecast
        target = self._destabilised(pooled, own.sum(axis=1, keepdims=True))
        usable = np.isfinite(noise_share)[:, None] & np.isfinite(forecast)
        return np.where(usable, self._solve(shift, own, target), shift)

    def _solve(self, shift: np.ndarray, predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Shift at which the mean prediction, now ``predicted``, equals ``target``."""
        if not self.likelihood.is_count:
            return shift + (target - predicted).astype(shift.dtype)
        for i in range(_N_PASSES):
            predicted = self.mean(shift) if i else predicted
            shift = shift + np.log((target + _TINY) / (predicted + _TINY)).astype(shift.dtype)
        return shift

    def _shrunk_gap(
        self, mean: np.ndarray, variance: np.ndarray, n: np.ndarray, predicted: np.ndarray
    ) -> np.ndarray:
        """Gap between real and predicted means on the linear predictor's scale, shrunk."""
        if self.likelihood.is_count:
            floor = 0.5 / n
            gap = np.log((mean + floor) / (predicted + floor))
            # Counts vary at least as much as a Poisson variable does.
            spread = np.maximum(variance, predicted)
            noise = spread / n / (np.maximum(mean, predicted) + floor) ** 2
        else:
            gap = mean - predicted
            noise = variance / n
        # Genes with little noise say most about how large true gaps are.
        weight = 1 / (noise + np.median(noise, axis=1, keepdims=True) + _TINY)
        excess = (weight * (gap**2 - noise)).sum(axis=1, keepdims=True)
        tau2 = np.maximum(excess / weight.sum(axis=1, keepdims=True), 0)
        return gap * tau2 / (tau2 + noise + _TINY)

    def _moved(self, predicted: np.ndarray, gap: np.ndarray) -> np.ndarray:
        """Target of the mean prediction: the prediction moved by the shrunk gap."""
        if not self.likelihood.is_count:
            return predicted + gap
        target = predicted * np.exp(gap)
        if self.likelihood.composition:
            target *= predicted.sum(axis=1, keepdims=True) / target.sum(axis=1, keepdims=True)
        return target

    def _stabilised(self, mean: np.ndarray) -> np.ndarray:
        """Means on the scale on which effects add up: log1p per 10,000 for counts."""
        if not self.likelihood.is_count:
            return mean
        return np.log1p(1e4 * mean / mean.sum(axis=1, keepdims=True))

    def _destabilised(self, value: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`_stabilised`, for means with the given totals."""
        if not self.likelihood.is_count:
            return value
        # A sum of effects can be below zero, a mean cannot.
        mean = np.expm1(np.maximum(value, 0)) + _TINY
        return mean * total / mean.sum(axis=1, keepdims=True)


def _forecast_weight(noise_share: np.ndarray, least: float) -> np.ndarray:
    """Weight of the forecast beside the model: at least that, and more where effects are noise."""
    return least + (1 - least) * noise_share
