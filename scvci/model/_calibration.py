"""Shifts of the linear predictor that calibrate mean predictions, for pairs measured or not."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvci.pooling import EffectVariances, Forecast, PairMeans, Pairs

from ._file_checks import check_array, check_calibration
from ._shift_solver import DecodedArms
from ._stratum_cells import StratumCells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvci.module import VCIModule

#: Weight of noiseless forecasts for pairs without cells.
_LEAST_WEIGHT = 1 / 3
#: Treatments whose shifts are remembered.
_MAX_REMEMBERED = 256


@dataclass(frozen=True)
class Calibration:
    """Shifts of the linear predictor for each (stratum, treatment) and gene.

    Attributes
    ----------
    pairs
        Measured pairs, a reference's included.
    shift
        Their shifts, shape ``(n_pairs, n_genes)``.
    forecast
        Mixed model of the measured means, with the controls' pooled levels.
    controls
        Measured means of the controls, before they were pooled.
    base
        Shift of each stratum's control that closes the gap, shape ``(n_strata, n_genes)``.
    further
        Mean further shift of each treatment that closes gaps, ``(n_treatments, n_genes)``.
    cells
        Latent states to predict the mean of pairs without cells with.
    reference
        Calibration of the model that this one was carried over from: its shifts for its own
        strata and treatments stay.
    """

    pairs: Pairs
    shift: np.ndarray
    forecast: Forecast
    controls: PairMeans
    base: np.ndarray
    further: np.ndarray
    cells: StratumCells
    reference: Calibration | None = None
    _remembered: dict[int, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def means(self) -> PairMeans:
        """Measured means on the scale on which effects add up."""
        pooled, own = self.forecast.means, self.controls
        row = pooled.pairs.rows(own.pairs.stratum, own.pairs.treatment)
        value, noise = pooled.value.copy(), pooled.noise.copy()
        value[row], noise[row] = own.value, own.noise
        return PairMeans(pooled.pairs, value, noise)

    def shift_of(self, module: VCIModule, treatment: int) -> np.ndarray:
        """Shift of a treatment in each stratum, shape ``(n_strata, n_genes)``.

        Parameters
        ----------
        module
            The trained module.
        treatment
            Index of the treatment.
        """
        if treatment not in self._remembered:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            strata = np.arange(self.pairs.n_strata)
            self._remembered[treatment] = self.at(module, strata, np.full_like(strata, treatment))
        return self._remembered[treatment]

    def shift_of_cells(
        self, module: VCIModule, stratum: torch.Tensor, treatment: torch.Tensor
    ) -> torch.Tensor:
        """Shift of each cell, shape ``(n_cells, n_genes)``; zero for an unknown stratum.

        Parameters
        ----------
        module
            The trained module.
        stratum, treatment
            Codes of the cells, shape ``(n_cells,)``.
        """
        x, t = (codes.long().cpu().numpy() for codes in (stratum, treatment))
        x = np.where(x < self.pairs.n_strata, x, -1)
        row = self.pairs.rows(x, t)
        shift = np.zeros((len(x), self.shift.shape[1]), dtype=np.float32)
        shift[row >= 0] = self.shift[row[row >= 0]]
        other = (row < 0) & (x >= 0)
        for code in np.unique(t[other]):
            own = other & (t == code)
            shift[own] = self.shift_of(module, int(code))[x[own]]
        return torch.as_tensor(shift, device=module.device)

    @torch.inference_mode()
    def at(self, module: VCIModule, stratum: np.ndarray, treatment: np.ndarray) -> np.ndarray:
        """Shifts of pairs, measured or not, shape ``(n, n_genes)``.

        A measured pair's is known, and so is that of a reference for its own strata and
        treatments. The others start from the control's shift and the treatment's mean further
        shift in the strata that show it, which is averaged with the forecast.

        Parameters
        ----------
        module
            The trained module.
        stratum, treatment
            Codes of the pairs, shape ``(n,)``.
        """
        row = self.pairs.rows(stratum, treatment)
        shift = self.base[stratum] + self.further[treatment]
        shift[row >= 0] = self.shift[row[row >= 0]]
        carried = (row < 0) & is_carried(self.reference, stratum, treatment)
        if self.reference is not None and carried.any():
            shift[carried] = self.reference.at(module, stratum[carried], treatment[carried])
        fitted = self.forecast
        useful = (fitted.means.rows_of(fitted.control) >= 0) & (self.cells.n_cells > 0)
        useful = useful[stratum] & np.isfinite(fitted.noise_share)[treatment]
        missing = np.flatnonzero((row < 0) & ~carried & useful)
        for x, chunk in self.cells.chunks(module, stratum[missing]):
            own = missing[chunk]
            t = treatment[own]
            arms = DecodedArms.of(module, self.cells, x, t)
            forecast = fitted.at(stratum[own], t)
            shift[own] = arms.pool(shift[own], forecast, fitted.noise_share[t], _LEAST_WEIGHT)
        return shift

    def to_arrays(self) -> dict[str, Any]:
        """Return everything as plain arrays and numbers, to save."""
        fitted = self.forecast
        return {
            "pairs": _pairs_to_arrays(self.pairs),
            "shift": self.shift,
            "controls": _means_to_arrays(self.controls),
            "forecast": {
                "means": _means_to_arrays(fitted.means),
                "variances": list(astuple(fitted.variances)),
                "control": fitted.control,
                "common": fitted.common,
                "treatment": fitted.treatment,
                "stratum": fitted.stratum,
            },
            "base": self.base,
            "further": self.further,
            "cells": {"start": self.cells.start, "values": dict(self.cells.values)},
            "reference": None if self.reference is None else self.reference.to_arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_arrays`.

        Parameters
        ----------
        arrays
            What :meth:`to_arrays` returned.
        """
        fitted, reference = arrays["forecast"], arrays["reference"]
        return cls(
            pairs=Pairs(**arrays["pairs"]),
            shift=arrays["shift"],
            forecast=Forecast(
                means=_means_from_arrays(fitted["means"]),
                variances=EffectVariances(*fitted["variances"]),
                control=fitted["control"],
                common=fitted["common"],
                treatment=fitted["treatment"],
                stratum=fitted["stratum"],
            ),
            controls=_means_from_arrays(arrays["controls"]),
            base=arrays["base"],
            further=arrays["further"],
            cells=StratumCells(**arrays["cells"]),
            reference=None if reference is None else cls.from_arrays(reference),
        )


@dataclass(frozen=True)
class ReferenceState:
    """What a model was carried over from.

    Attributes
    ----------
    calibration
        The reference's pairs, shifts and means.
    new_weights
        Parts of parameters that the reference does not have, as masks by name.
    """

    calibration: Calibration
    new_weights: dict[str, np.ndarray]

    def freeze(self, module: VCIModule) -> None:
        """Leave only what is new to training.

        Parameters
        ----------
        module
            The extended module, changed in place.
        """
        for name, parameter in module.named_parameters():
            if name in self.new_weights:
                mask = torch.as_tensor(self.new_weights[name])
                parameter.register_hook(lambda grad, mask=mask: grad * mask.to(grad))
            else:
                parameter.requires_grad_(False)

    def check(self, module: VCIModule, n_strata: int) -> None:
        """Raise if this is of another module, which may be without memory.

        Parameters
        ----------
        module
            The extended module.
        n_strata
            Strata of the model.
        """
        check_calibration(self.calibration, module, n_strata, is_whole=False)
        parameters = dict(module.named_parameters())
        for name, mask in self.new_weights.items():
            if name not in parameters:
                raise ValueError(f"weight {name!r} is unknown")
            check_array(name, mask, tuple(parameters[name].shape), "b")


def is_carried(
    reference: Calibration | None, stratum: np.ndarray, treatment: np.ndarray
) -> np.ndarray:
    """Which pairs are of a stratum and a treatment of the reference."""
    if reference is None:
        return np.zeros(len(stratum), dtype=bool)
    known = reference.pairs
    return (stratum < known.n_strata) & (treatment < known.n_treatments)


def _pairs_to_arrays(pairs: Pairs) -> dict[str, Any]:
    return {
        "stratum": pairs.stratum,
        "treatment": pairs.treatment,
        "n_strata": pairs.n_strata,
        "n_treatments": pairs.n_treatments,
    }


def _means_to_arrays(means: PairMeans) -> dict[str, Any]:
    return {
        "pairs": _pairs_to_arrays(means.pairs),
        "value": means.value,
        "noise": means.noise,
    }


def _means_from_arrays(arrays: Mapping[str, Any]) -> PairMeans:
    return PairMeans(Pairs(**arrays["pairs"]), arrays["value"], arrays["noise"])
