"""Marginal calibration: mean predictions of stratum x under t′ made to match the real cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.utils import track

from scvci.pooling import effect_variances, forecast, pair_means, pool_levels
from scvci.pooling._means import merge_means

from ._calibration import Calibration, is_carried
from ._shift_solver import DecodedArms
from ._stratum_cells import PairBatches, encode_cells, n_cells_per_stratum

if TYPE_CHECKING:
    from scvci.data import Cells
    from scvci.data._statistics import PairMoments
    from scvci.module import VCIModule
    from scvci.pooling import Forecast, PairMeans, Pairs

    from ._stratum_cells import StratumCells

#: Weight of noiseless forecasts for pairs with cells.
_LEAST_WEIGHT = 1 / 2
#: Decoded cells from which on there is a progress bar.
_MANY_DECODED = 200_000


@torch.inference_mode()
def fit_calibration(
    module: VCIModule,
    cells: Cells,
    moments: PairMoments,
    rng: np.random.Generator,
    reference: Calibration | None = None,
    show_progress: bool = False,
) -> Calibration:
    r"""Shift of the linear predictor for each measured (stratum, treatment) and gene.

    If treatment is unconfounded given x, the mean counterfactual of *all* cells of stratum x under
    t′ equals the mean of the real cells of (x, t′). Both are pseudobulks, in which molecules count
    alike: sums of predictions at each cell's own size. The shift first closes the gap, shrunk
    towards zero by an empirical-Bayes factor :math:`\tau^2 / (\tau^2 + s_g^2)`, with :math:`s_g^2`
    the sampling variance of the real mean and :math:`\tau^2` the variance of the true gaps over
    genes. A pair without real cells gets the control's shift of its stratum plus the mean further
    shift of the treatment in the other strata (:meth:`Calibration.at`).

    Then each mean, the control's too, is averaged with the forecast of a mixed model of all
    measured means (:func:`scvci.pooling.forecast`), which weighs the noise of each and how far
    effects carry over between strata, from levels of the controls that are pooled where strata do
    not differ (:func:`scvci.pooling.pool_levels`). Where many arms show a mean that the control
    does not, the difference is taken for the control's noise. The errors of the two have little in
    common, and with nothing measured to weigh them by, a plain average is hard to beat (Bates and
    Granger, 1969). Where a pair has no cells, the prediction also uses how its latent states
    differ from those of other strata, and counts twice. But the model is fitted to measured means
    with their noise, which the forecast takes off: where measured effects are a share ρ noise, the
    forecast's share is :math:`s + (1 - s) \rho` with s = 1/2, or 1/3 for a pair without cells.

    Parameters
    ----------
    module
        A trained module.
    cells
        The training cells, those in question.
    moments
        Pseudobulks of these cells.
    rng
        Picks cells of large strata, and batches.
    reference
        Calibration of the model that this one was carried over from. Its strata and treatments
        keep their shifts; new strata start from its mean shifts.
    show_progress
        Whether to show a progress bar where it takes long.
    """
    control = module.sizes.control
    fitted, controls = _fit_forecast(module, moments, reference)
    pairs = moments.pairs
    if reference is not None:
        pairs = pairs.union(_resized(reference.pairs, pairs))
    carried = is_carried(reference, pairs.stratum, pairs.treatment)
    new = pairs.take(~carried)
    states = _encode(module, cells, new, reference, rng)
    fit = _Fit(module, moments, fitted, states, PairBatches.of(cells, moments.pairs), rng)
    start = _start(module, fitted, new, reference)
    base = _known_base(module, pairs, start[control], reference)
    gap = np.zeros((len(pairs), base.shape[1]), dtype=np.float32)
    if reference is not None:
        gap[carried] = reference.at(module, pairs.stratum[carried], pairs.treatment[carried])
    shift = gap.copy()
    # The controls come first: their shifts are part of the other treatments'.
    of_control = pairs.treatment == control
    for rows in (np.flatnonzero(~carried & of_control), np.flatnonzero(~carried & ~of_control)):
        x = pairs.stratum[rows]
        first = base[x] + start[pairs.treatment[rows]] - start[control]
        gap[rows], shift[rows] = fit.shifts(pairs.take(rows), first, show_progress)
        is_control = of_control[rows]
        base[x[is_control]] = gap[rows[is_control]]
    further = _mean_further(fitted, pairs, gap - base[pairs.stratum], start)
    states = states.keep(_n_missing(pairs, carried, reference) > 0)
    return Calibration(pairs, shift, fitted, controls, base, further, states, reference)


def measured_means(module: VCIModule, moments: PairMoments) -> PairMeans:
    """Means of all pairs with cells on the scale on which effects add up.

    Parameters
    ----------
    module
        The module.
    moments
        Moments of the cells.
    """
    return pair_means(
        moments.pairs,
        moments.mean,
        moments.variance,
        moments.count,
        is_count=module.likelihood.is_count,
    )


@dataclass(frozen=True)
class _Fit:
    """What shifts of measured pairs are fitted with; see :func:`fit_calibration`."""

    module: VCIModule
    moments: PairMoments
    forecast: Forecast
    cells: StratumCells
    batches: PairBatches | None
    rng: np.random.Generator

    def shifts(
        self, pairs: Pairs, start: np.ndarray, show_progress: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shifts that close the gaps, and those of the averages with the forecasts.

        Parameters
        ----------
        pairs
            Pairs to fit, all with cells.
        start
            Shifts to start from, shape ``(n_pairs, n_genes)``.
        show_progress
            Whether to show a progress bar where it takes long.
        """
        gap, shift = np.zeros_like(start), np.zeros_like(start)
        n_cells = self.cells.n_cells
        long = int(n_cells[pairs.stratum].sum()) > _MANY_DECODED
        chunks = list(self.cells.chunks(self.module, pairs.stratum))
        for x, rows in track(
            chunks, description="Calibrating", disable=not (show_progress and long)
        ):
            gap[rows], shift[rows] = self._shifts_of_arms(x, pairs.treatment[rows], start[rows])
        return gap, shift

    def _shifts_of_arms(
        self, stratum: int, treatment: np.ndarray, start: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shifts of some arms of a stratum, each decoded once."""
        moments, fitted = self.moments, self.forecast
        row, batch = moments.pairs.rows(stratum, treatment), None
        if self.batches is not None:
            batch = self.batches.draw(row, int(self.cells.n_cells[stratum]), self.rng)
        arms = DecodedArms.of(self.module, self.cells, stratum, treatment, batch)
        gap = arms.close_gap(start, moments.mean[row], moments.variance[row], moments.count[row])
        guess = fitted.at(np.full(len(treatment), stratum), treatment)
        return gap, arms.pool(gap, guess, fitted.noise_share[treatment], _LEAST_WEIGHT)


def _fit_forecast(
    module: VCIModule, moments: PairMoments, reference: Calibration | None
) -> tuple[Forecast, PairMeans]:
    """Mixed model of all measured means, a reference's included, and the controls' own means.

    In single precision, as they are kept.
    """
    control, means = module.sizes.control, measured_means(module, moments)
    if reference is not None:
        known = replace(reference.means, pairs=_resized(reference.means.pairs, means.pairs))
        means = merge_means(known, means, control)
    pooled = pool_levels(means, control)
    fitted = forecast(pooled, effect_variances(pooled, control), control)
    single = {
        name: vars(fitted)[name].astype(np.float32) for name in ("common", "treatment", "stratum")
    }
    controls = means.take(means.pairs.treatment == control)
    return replace(fitted, means=_single(pooled), **single), _single(controls)


def _single(means: PairMeans) -> PairMeans:
    value, noise = (array.astype(np.float32) for array in (means.value, means.noise))
    return replace(means, value=value, noise=noise)


def _encode(
    module: VCIModule,
    cells: Cells,
    pairs: Pairs,
    reference: Calibration | None,
    rng: np.random.Generator,
) -> StratumCells:
    """Cells of the strata that have a pair whose shift does not come from the reference."""
    is_open = np.ones(pairs.n_strata, dtype=bool)
    if reference is not None and reference.pairs.n_treatments == pairs.n_treatments:
        is_open = np.arange(pairs.n_strata) >= reference.pairs.n_strata
    n = n_cells_per_stratum(len(cells.rows), len(pairs), int(is_open.sum()))
    return encode_cells(module, cells, is_open, n, rng)


def _resized(pairs: Pairs, like: Pairs) -> Pairs:
    return pairs.resized(like.n_strata, like.n_treatments)


def _start(
    module: VCIModule, fitted: Forecast, new: Pairs, reference: Calibration | None
) -> np.ndarray:
    """Where shifts of new pairs start: at the reference's means over its strata.

    Treatments that are not needed, and those that the reference does not have, get the control's;
    zero without a reference. Shape ``(n_treatments, n_genes)``.
    """
    shape = (new.n_treatments, fitted.means.value.shape[1])
    if reference is None:
        return np.zeros(shape, dtype=np.float32)
    needed = np.union1d(new.treatment, np.flatnonzero(np.isnan(fitted.noise_share)))
    needed = np.union1d(needed[needed < reference.pairs.n_treatments], fitted.control)
    n_strata = reference.pairs.n_strata
    shift = reference.at(
        module, np.tile(np.arange(n_strata), len(needed)), np.repeat(needed, n_strata)
    )
    mean = shift.reshape(len(needed), n_strata, -1).mean(axis=1)
    start = np.repeat(mean[needed == fitted.control], shape[0], axis=0)
    start[needed] = mean
    return start


def _known_base(
    module: VCIModule, pairs: Pairs, start: np.ndarray, reference: Calibration | None
) -> np.ndarray:
    """Shift of each stratum's control before there are cells: the reference's, or ``start``."""
    base = np.repeat(start[None], pairs.n_strata, axis=0)
    if reference is not None:
        known = np.arange(reference.pairs.n_strata)
        control = np.full_like(known, module.sizes.control)
        base[known] = reference.at(module, known, control)
    return base


def _mean_further(
    fitted: Forecast, pairs: Pairs, further: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Mean over strata of each treatment's shift beyond the control's, where both have means."""
    measured = fitted.means.pairs
    shown = measured.rows(pairs.stratum, pairs.treatment) >= 0
    shown &= measured.rows(pairs.stratum, fitted.control) >= 0
    n = np.bincount(pairs.treatment[shown], minlength=pairs.n_treatments)[:, None]
    mean = pairs.take(shown).sum_by_treatment(further[shown]) / np.maximum(n, 1)
    return np.where(n > 0, mean, start - start[fitted.control]).astype(np.float32)


def _n_missing(pairs: Pairs, carried: np.ndarray, reference: Calibration | None) -> np.ndarray:
    """Pairs of each stratum that have neither cells nor a shift of the reference."""
    n = pairs.n_treatments - np.bincount(pairs.stratum[~carried], minlength=pairs.n_strata)
    if reference is not None:
        n[: reference.pairs.n_strata] -= reference.pairs.n_treatments
    return n
