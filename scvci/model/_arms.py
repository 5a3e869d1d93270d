"""Treatments that were not measured as they are asked for, put together from those that were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvci.data import Treatments
    from scvci.metrics import PairLevels
    from scvci.module import VCIModule


@dataclass(frozen=True)
class NewArm:
    """A condition without an arm of its own.

    Attributes
    ----------
    code
        Treatment code, shape ``(n_code,)``.
    shift
        Calibration in each stratum, shape ``(n_strata, n_genes)``.
    basis
        What it rests on, in words.
    """

    code: torch.Tensor
    shift: torch.Tensor
    basis: str

    def shift_of(self, stratum: torch.Tensor) -> torch.Tensor:
        """Calibration of cells, shape ``(n_cells, n_genes)``; zero for an unknown stratum."""
        known = (stratum >= 0).unsqueeze(-1)
        return self.shift[stratum.clamp(min=0)] * known


@dataclass(frozen=True)
class Similarity:
    """Treatments by features, as weighted sums of those that were measured.

    Attributes
    ----------
    names
        Treatments with features.
    weights
        Weights of the members, shape ``(n_names, n_members)``.
    """

    names: list[str]
    weights: np.ndarray


@torch.inference_mode()
def build_arm(
    condition: Mapping[str, float],
    treatments: Treatments,
    module: VCIModule,
    similarity: Similarity | None = None,
) -> NewArm:
    """Put a condition together.

    Effects of members add up on the scale of the linear predictor. What the decoder leaves to the
    calibration, and what an arm does beyond its members, is taken from the arms of a member alone,
    interpolated between its doses; beyond the largest dose it stays. A member that was not
    measured is the weighted sum of the measured ones that :class:`Similarity` says.

    Parameters
    ----------
    condition
        Members and doses.
    treatments
        The arms.
    module
        A trained module.
    similarity
        Treatments by features.
    """
    n_arms, n_members = treatments.doses.shape
    n_before = module.backbone.codes.members.start
    arms = torch.arange(n_arms, device=module.device)
    codes = module.codes(arms).double().cpu().numpy()[:, n_before:]
    measured, beyond = codes[:, :n_members], codes[:, n_members:]
    strengths, weights = np.zeros(n_members), np.zeros(n_arms)
    bases = []
    for member, dose in condition.items():
        parts = _as_measured(member, treatments, similarity)
        bases.append(_basis(member, dose, treatments))
        for i, share in parts.items():
            relative = dose / treatments.max_dose[i]
            strength = _strength(module, i, relative)
            strengths[i] += share * strength
            weights += share * _interpolated(treatments, i, relative, strength, measured[:, i])
    code = np.concatenate([np.zeros(n_before), strengths, weights @ beyond])
    control = module.sizes.control
    base = module.calibration[:, control]
    w = torch.as_tensor(weights, dtype=base.dtype, device=base.device)
    further = torch.einsum("t,xtg->xg", w, module.calibration) - w.sum() * base
    basis = ", ".join(dict.fromkeys(bases))
    return NewArm(
        code=torch.as_tensor(code, dtype=base.dtype, device=base.device),
        shift=base + further,
        basis=basis if len(condition) == 1 else f"sum of members ({basis})",
    )


def _as_measured(
    member: str, treatments: Treatments, similarity: Similarity | None
) -> dict[int, float]:
    """Member as a weighted sum of members that were measured."""
    if member in treatments.members:
        return {treatments.members.index(member): 1.0}
    assert similarity is not None
    weights = similarity.weights[similarity.names.index(member)]
    return {int(i): float(weights[i]) for i in np.flatnonzero(weights)}


def _basis(member: str, dose: float, treatments: Treatments) -> str:
    if member not in treatments.members:
        return "similar treatments"
    doses = treatments.doses[treatments.alone, treatments.members.index(member)]
    if dose > doses.max(initial=0.0):
        return "extrapolated dose" if doses.any() else "combinations only"
    return "measured" if np.isclose(doses, dose).any() else "interpolated dose"


def _strength(module: VCIModule, member: int, relative: float) -> float:
    """Strength of a member at a relative dose."""
    doses = torch.zeros(module.sizes.doses.shape[1], device=module.device)
    doses[member] = relative
    return float(module.response(doses)[member])


def _interpolated(
    treatments: Treatments, member: int, relative: float, here: float, measured: np.ndarray
) -> np.ndarray:
    """Weights of the arms of a member alone, shape ``(n_arms,)``; what is left is the control.

    ``here`` is the strength to reach, and ``measured`` holds those of the arms.
    """
    weights = np.zeros(len(treatments.names))
    doses = treatments.relative_doses[:, member] * treatments.alone
    arms = np.flatnonzero(doses)
    arms = arms[np.argsort(doses[arms])]
    if len(arms) == 0:
        return weights
    above = int(np.searchsorted(doses[arms], relative * (1 - 1e-9)))
    if above == len(arms):
        weights[arms[-1]] = 1
        return weights
    upper = measured[arms[above]]
    lower = measured[arms[above - 1]] if above else 0.0
    share = np.clip((here - lower) / max(upper - lower, 1e-12), 0, 1)
    weights[arms[above]] = share
    if above:
        weights[arms[above - 1]] = 1 - share
    return weights


def variance_beyond(levels: PairLevels, treatments: Treatments, control: int) -> float:
    """Variance over genes of what arms do beyond their members.

    Expected of an arm is the sum of its members' effects at their largest dose, in proportion to
    dose; the noise of all measurements is taken off the squared differences, averaged over pairs
    and genes.

    Parameters
    ----------
    levels
        Measured levels.
    treatments
        The arms.
    control
        Index of the control.

    Returns
    -------
    0 where no arm can be compared.
    """
    doses = treatments.relative_doses
    largest = _largest_alone(treatments)
    excess = []
    for t in np.flatnonzero(doses.any(axis=1) & ~np.isin(np.arange(len(doses)), largest)):
        members = np.flatnonzero(doses[t])
        parts = largest[members]
        if (parts < 0).any():
            continue
        weights = np.zeros(len(doses))
        weights[t] = 1
        weights[parts] -= doses[t, members]
        weights[control] -= weights.sum()
        used = np.flatnonzero(weights)
        rows = levels.observed[:, used].all(axis=1)
        difference = np.einsum("t,xtg->xg", weights, levels.value[rows])
        noise = np.einsum("t,xtg->xg", weights**2, levels.noise[rows])
        excess.append((difference**2 - noise).ravel())
    return max(float(np.concatenate(excess).mean()), 0.0) if sum(map(len, excess)) else 0.0


def mean_effects(levels: PairLevels, treatments: Treatments, control: int) -> np.ndarray:
    """Effect of each member alone at its largest dose, averaged over strata.

    Parameters
    ----------
    levels
        Measured levels.
    treatments
        The arms.
    control
        Index of the control.

    Returns
    -------
    Shape ``(n_members, n_genes)``; NaN for a member that was not measured alone.
    """
    effects = np.full((len(treatments.members), levels.value.shape[-1]), np.nan)
    for i, t in enumerate(_largest_alone(treatments)):
        rows = levels.observed[:, t] & levels.observed[:, control] & (t >= 0)
        if rows.any():
            effects[i] = (levels.value[rows, t] - levels.value[rows, control]).mean(axis=0)
    return effects


def _largest_alone(treatments: Treatments) -> np.ndarray:
    """Arm of each member alone at its largest dose; −1 if there is none."""
    alone = treatments.alone[:, None] & (treatments.relative_doses == 1)
    return np.where(alone.any(axis=0), alone.argmax(axis=0), -1)
