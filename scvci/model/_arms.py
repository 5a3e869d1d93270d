"""Arms as they are decoded: measured ones, and conditions put together from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

if TYPE_CHECKING:
    from scvci.data import Condition, Treatments
    from scvci.module import VCIModule
    from scvci.pooling import PairMeans

    from ._calibration import Calibration


@dataclass(frozen=True)
class Arm:
    """What cells are decoded under.

    Attributes
    ----------
    treatment
        Index of a measured arm, a scalar, or the code of another condition, shape ``(n_code,)``.
    shift
        Calibration in each stratum, shape ``(n_strata, n_genes)``.
    basis
        What it rests on, in words.
    """

    treatment: torch.Tensor
    shift: torch.Tensor
    basis: str

    def treatment_of(self, n_cells: int) -> torch.Tensor:
        """Index or code for each cell, shape ``(n_cells,)`` or ``(n_cells, n_code)``."""
        return self.treatment.expand(n_cells, *self.treatment.shape)

    def shift_of(self, stratum: torch.Tensor) -> torch.Tensor:
        """Calibration of cells, shape ``(n_cells, n_genes)``; zero for an unknown stratum."""
        n_strata = len(self.shift)
        known = ((stratum >= 0) & (stratum < n_strata)).unsqueeze(-1)
        return self.shift[stratum.clamp(0, n_strata - 1)] * known


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

    names: tuple[str, ...]
    weights: np.ndarray


def measured_arm(index: int, module: VCIModule, calibration: Calibration) -> Arm:
    """Arm that was measured, in some stratum at least.

    Parameters
    ----------
    index
        Its index.
    module
        A trained module.
    calibration
        Its calibration.
    """
    shift = calibration.shift_of(module, index)
    return Arm(
        treatment=torch.tensor(index, device=module.device),
        shift=torch.as_tensor(shift, device=module.device),
        basis="measured",
    )


@torch.inference_mode()
def build_arm(
    condition: Condition,
    treatments: Treatments,
    module: VCIModule,
    calibration: Calibration,
    similarity: Similarity | None = None,
) -> Arm:
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
    calibration
        Its calibration.
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
        bases.append(_basis(member, dose, treatments))
        for i, share in _as_measured(member, treatments, similarity).items():
            relative = dose / treatments.max_dose[i]
            strength = _strength(module, i, relative)
            strengths[i] += share * strength
            weights += share * _interpolated(treatments, i, relative, strength, measured[:, i])
    code = np.concatenate([np.zeros(n_before), strengths, weights @ beyond])
    basis = ", ".join(dict.fromkeys(bases))
    return Arm(
        treatment=torch.as_tensor(code, dtype=torch.float32, device=module.device),
        shift=torch.as_tensor(_summed_shift(module, calibration, weights), device=module.device),
        basis=basis if len(bases) == 1 else f"sum of members ({basis})",
    )


def _summed_shift(module: VCIModule, calibration: Calibration, weights: np.ndarray) -> np.ndarray:
    """Add arms' weighted further shifts to the control's, ``(n_strata, n_genes)``."""
    base = calibration.shift_of(module, 0)
    arms = np.flatnonzero(weights)
    w = weights[arms]
    # One stratum at a time, as thousands of arms may have a weight.
    summed = [w @ calibration.at(module, np.full_like(arms, x), arms) for x in range(len(base))]
    return (base + np.stack(summed) - w.sum() * base).astype(np.float32)


def _as_measured(
    member: str, treatments: Treatments, similarity: Similarity | None
) -> dict[int, float]:
    """Member as a weighted sum of members that were measured."""
    if member in treatments.member_index:
        return {treatments.member_index[member]: 1.0}
    assert similarity is not None
    weights = similarity.weights[similarity.names.index(member)]
    return {int(i): float(weights[i]) for i in np.flatnonzero(weights)}


def _basis(member: str, dose: float, treatments: Treatments) -> str:
    if member not in treatments.member_index:
        return "similar treatments"
    _, doses = treatments.doses_alone(member)
    if not len(doses):
        return "combinations only"
    if dose > doses[-1]:
        return "extrapolated dose"
    return "measured" if np.isclose(doses, dose, rtol=1e-9, atol=0).any() else "interpolated dose"


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
    weights = np.zeros(len(treatments))
    arms, doses = treatments.doses_alone(treatments.members[member])
    if len(arms) == 0:
        return weights
    doses = doses / treatments.max_dose[member]
    above = int(np.searchsorted(doses, relative * (1 - 1e-9)))
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


def variance_beyond(means: PairMeans, treatments: Treatments) -> float:
    """Variance over genes of what arms do beyond their members.

    Expected of an arm is the sum of its members' effects at their largest dose, in proportion to
    dose; the noise of all measurements is taken off the squared differences, averaged over pairs
    and genes.

    Parameters
    ----------
    means
        Measured means.
    treatments
        The arms.

    Returns
    -------
    0 where no arm can be compared.
    """
    weights = _beyond_weights(means, treatments)
    if weights.shape[0] == 0:
        return 0.0
    excess = (weights @ means.value) ** 2 - weights.multiply(weights) @ means.noise
    return max(float(excess.mean()), 0.0)


def _beyond_weights(means: PairMeans, treatments: Treatments) -> sparse.csr_matrix:
    """Weights of measured means that add up to what a pair shows beyond its members.

    Returns
    -------
    Shape ``(n_compared, n_pairs)``: a row for each pair whose arm is more than a member alone at
    its largest dose, and whose members and control were measured in its stratum.
    """
    pairs, doses = means.pairs, treatments.relative_doses
    largest = _largest_alone(treatments)
    is_more = np.diff(doses.indptr) > 0
    is_more[largest[largest >= 0]] = False
    rows = np.flatnonzero(is_more[pairs.treatment])
    x, own = pairs.stratum[rows], doses[pairs.treatment[rows]].tocoo()
    which, member, share = own.row, own.col, own.data
    rest = np.bincount(which, share, len(rows)) - 1
    # Each row: the pair itself, its members, and the control, which may cancel out.
    row = np.concatenate([np.arange(len(rows)), which, np.flatnonzero(rest)])
    column = np.concatenate(
        [rows, pairs.rows(x[which], largest[member]), pairs.rows(x, 0)[rest != 0]]
    )
    value = np.concatenate([np.ones(len(rows)), -share, rest[rest != 0]])
    complete = np.ones(len(rows), dtype=bool)
    complete[row[column < 0]] = False
    shape = (len(rows), len(pairs))
    used = column >= 0
    return sparse.csr_matrix((value[used], (row[used], column[used])), shape=shape)[complete]


def mean_effects(means: PairMeans, treatments: Treatments) -> np.ndarray:
    """Effect of each member alone at its largest dose, averaged over strata.

    Parameters
    ----------
    means
        Measured means.
    treatments
        The arms.

    Returns
    -------
    Shape ``(n_members, n_genes)``; NaN for a member that was not measured alone.
    """
    pairs = means.pairs
    base = pairs.rows(pairs.stratum, 0)
    compared = means.take(base >= 0)
    effect = compared.value - means.value[base[base >= 0]]
    n = np.bincount(compared.pairs.treatment, minlength=pairs.n_treatments)[:, None]
    mean = np.where(n > 0, compared.pairs.sum_by_treatment(effect) / np.maximum(n, 1), np.nan)
    arms = _largest_alone(treatments)
    return np.where((arms >= 0)[:, None], mean[arms], np.nan)


def _largest_alone(treatments: Treatments) -> np.ndarray:
    """Arm of each member alone at its largest dose; −1 if there is none."""
    doses = treatments.relative_doses.tocoo()
    found = treatments.alone[doses.row] & (doses.data == 1)
    arms = np.full(len(treatments.members), -1, dtype=np.int64)
    arms[doses.col[found]] = doses.row[found]
    return arms
