"""Marginal calibration: mean predictions of stratum x under t′ made to match the real cells."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.module._constants import MODULE_KEYS
from torch.nn.functional import one_hot

from scvci.metrics import PairLevels, effect_variances, forecast_levels, pair_levels

if TYPE_CHECKING:
    from scvci.data import CellReader, Statistics
    from scvci.metrics import EffectVariances
    from scvci.module import VCIModule

#: Cells per stratum that are enough to know a stratum's mean prediction.
_MAX_CELLS = 1000
#: Passes of the fixed point; each one cell's predictions stay a composition.
_N_PASSES = 4
_TINY = 1e-12
#: Weight of noiseless forecasts for pairs without cells, and for pairs with cells.
_SHARE = (1 / 3, 1 / 2)


@torch.inference_mode()
def fit_calibration(
    module: VCIModule,
    reader: CellReader,
    indices: np.ndarray,
    statistics: Statistics,
    levels: PairLevels,
    rng: np.random.Generator,
    carried: np.ndarray | None = None,
) -> np.ndarray:
    r"""Shift of the linear predictor for each (stratum, treatment) and gene.

    If treatment is unconfounded given x, the mean counterfactual of *all* cells of stratum x under
    t′ equals the mean of the real cells of (x, t′). The shift first closes the gap, shrunk towards
    zero by an empirical-Bayes factor :math:`\tau^2 / (\tau^2 + s_g^2)`, with :math:`s_g^2` the
    sampling variance of the real mean and :math:`\tau^2` the variance of the true gaps over genes.
    A pair without real cells gets the control's shift of its stratum plus the mean further shift
    of the treatment in the other strata.

    Then each mean, the control's too, is averaged with the forecast of a mixed model of all
    measured means (:func:`scvci.metrics.forecast_levels`), which knows the noise of each and how
    far effects carry over between strata. Where many arms show a level that the control does not,
    the difference is taken for the control's noise. The errors of the two have little in common,
    and with nothing measured to weigh them by, a plain average is hard to beat (Bates and Granger,
    1969). Where a pair has no cells, the model also knows how its latent states differ from those
    of other strata, and counts twice. But the model is fitted to measured means with their noise,
    which the forecast takes off: where measured effects are a share ρ noise, the forecast's share
    is :math:`s + (1 - s) \rho` with s = 1/2, or 1/3 for a pair without cells.

    Parameters
    ----------
    module
        A trained module.
    reader, indices
        The training cells.
    statistics
        Moments of these cells.
    levels
        Levels of all measured pairs, those of a reference included.
    rng
        Picks cells of large strata.
    carried
        Pairs whose shift comes from a reference and stays, shape ``(n_strata, n_treatments)``. New
        strata start from the reference's mean shifts.

    Returns
    -------
    Shape ``(n_strata, n_treatments, n_genes)``.
    """
    shape, control = module.calibration.shape, module.sizes.control
    kept = np.zeros(shape[:2], dtype=bool) if carried is None else carried
    strata = []
    for x in range(shape[0]):
        rows = indices[reader.stratum[indices] == x]
        needed = len(rows) > 0 and not kept[x].all()
        strata.append(_encode_stratum(module, reader, rows, rng) if needed else None)
    variances = effect_variances(levels, control)
    forecast = forecast_levels(levels, variances, control)
    start = _mean_shift(module, kept)
    shift = _fit_gaps(module, strata, statistics, kept, start)
    observed = np.isfinite(shift).all(axis=-1)
    # Cells without a single count have a shift, but no level.
    comparable = observed & levels.observed & levels.observed[:, [control]]
    base = np.where(observed[:, [control]], shift[:, control], start[control])
    borrowed = [
        (shift - base[:, None])[rows, t].mean(axis=0) if rows.any() else start[t] - start[control]
        for t, rows in enumerate(comparable.T)
    ]
    for x, t in zip(*np.nonzero(~kept), strict=True):
        if not observed[x, t]:
            shift[x, t] = base[x] + borrowed[t]
        cells = strata[x]
        if cells is None or not (levels.observed[x, control] and comparable[:, t].any()):
            continue
        own = _mean_prediction(module, cells, t, shift[x, t])
        share = _forecast_share(levels, variances, t, control, _SHARE[bool(observed[x, t])])
        pooled = (1 - share) * _stabilised(module, own) + share * forecast[x, t]
        target = _destabilised(module, pooled, own.sum())
        shift[x, t] += _solve(module, cells, t, shift[x, t], target)
    return shift


def to_arrays(levels: PairLevels) -> dict[str, np.ndarray]:
    """Levels as they are saved with a model."""
    return {
        "value": levels.value.astype(np.float32),
        "noise": levels.noise.astype(np.float32),
        "observed": levels.observed,
    }


def _mean_shift(module: VCIModule, carried: np.ndarray) -> np.ndarray:
    """Mean over the reference's strata of each treatment's shift; zero without a reference."""
    shift = module.calibration.cpu().numpy()
    rows = carried[:, module.sizes.control]
    if not rows.any():
        return np.zeros_like(shift[0])
    mean = shift[rows].mean(axis=0)
    return np.where(carried[rows][0][:, None], mean, mean[module.sizes.control])


def merge_levels(
    reference: PairLevels, own: PairLevels, carried: np.ndarray, control: int
) -> PairLevels:
    """Levels of a reference's pairs beside those of new cells, on the scale of the latter.

    Where both know a stratum's control, the reference's levels move with it: effects carry over
    to another batch or laboratory, levels do not.

    Parameters
    ----------
    reference
        Levels of the reference, of the new shape.
    own
        Levels of the new cells.
    carried
        Pairs that the reference knows, shape ``(n_strata, n_treatments)``.
    control
        Index of the control.
    """
    kept = (carried & reference.observed)[..., None]
    both = kept[:, control] & own.observed[:, [control]]
    moved = np.where(both, own.value[:, control] - reference.value[:, control], 0)
    noise = np.where(kept, reference.noise, own.noise)
    noise[:, control] = np.where(both, own.noise[:, control], noise[:, control])
    return PairLevels(
        np.where(kept, reference.value + moved[:, None], own.value),
        noise,
        kept[..., 0] | own.observed,
    )


def _forecast_share(
    levels: PairLevels, variances: EffectVariances, treatment: int, control: int, least: float
) -> float:
    """Weight of the forecast beside the model: at least that, and more where effects are noise."""
    measured = levels.observed[:, treatment] & levels.observed[:, control]
    noise = (levels.noise[measured, treatment] + levels.noise[measured, control]).mean()
    return least + (1 - least) * noise / (noise + sum(astuple(variances)) + _TINY)


def measured_levels(module: VCIModule, statistics: Statistics) -> PairLevels:
    """Levels of all pairs on the scale on which effects add up."""
    shape = module.calibration.shape
    return pair_levels(
        statistics.pair_mean.reshape(shape),
        statistics.pair_var.reshape(shape),
        statistics.pair_count.reshape(shape[:2]),
        is_count=module.likelihood.is_count,
    )


def _fit_gaps(
    module: VCIModule,
    strata: list[dict[str, torch.Tensor] | None],
    statistics: Statistics,
    carried: np.ndarray,
    start: np.ndarray,
) -> np.ndarray:
    """Shifts that close the shrunk gaps of pairs with cells; NaN for the others."""
    shape, control = module.calibration.shape, module.sizes.control
    count = statistics.pair_count.reshape(shape[:2])
    shift = np.full(shape, np.nan, dtype=np.float32)
    shift[carried] = module.calibration.cpu().numpy()[carried]
    # The control comes first: its shift is part of the other treatments'.
    order = sorted(range(shape[1]), key=lambda t: t != control)
    for x, cells in enumerate(strata):
        for t in (t for t in order if count[x, t] > 0 and not carried[x, t]):
            assert cells is not None
            own = np.where(np.isnan(shift[x, control]), start[control], shift[x, control])
            own = own + start[t] - start[control]
            shift[x, t] = own + _gap_shift(module, cells, statistics, (x, t), own)
    return shift


def _gap_shift(
    module: VCIModule,
    cells: dict[str, torch.Tensor],
    statistics: Statistics,
    pair: tuple[int, int],
    start: np.ndarray,
) -> np.ndarray:
    """Shift beyond ``start`` that closes the shrunk gap of a (stratum, treatment) with cells."""
    shape, (x, t) = module.calibration.shape, pair
    mean, variance = (
        moment.reshape(shape)[x, t] for moment in (statistics.pair_mean, statistics.pair_var)
    )
    count = statistics.pair_count.reshape(shape[:2])[x, t]
    predicted = _mean_prediction(module, cells, t, start)
    gap = _shrunk_gap(module, mean, variance, count, predicted)
    return _solve(module, cells, t, start, _moved(module, predicted, gap))


def _encode_stratum(
    module: VCIModule, reader: CellReader, rows: np.ndarray, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Latent means, covariates and batches to predict in, of (a sample of) a stratum's cells."""
    sample = rows
    if len(rows) > _MAX_CELLS:
        sample = rng.choice(rows, _MAX_CELLS, replace=False)
    tensors = {k: v.to(module.device) for k, v in reader.tensors(np.sort(sample)).items()}
    inputs = module._get_inference_input(tensors)
    qz = module.inference(**inputs, n_samples=0)[MODULE_KEYS.QZ_KEY]
    cells = {"z": qz.loc, "covariates": inputs["covariates"]}
    if reader.batch is not None:
        n_treatments = module.calibration.shape[1]
        drawn = _draw_batches(
            reader.batch, reader.treatment, rows, (n_treatments, len(sample)), rng
        )
        cells["batch"] = torch.as_tensor(drawn, device=module.device)
    return cells


def _draw_batches(
    batch: np.ndarray,
    treatment: np.ndarray,
    rows: np.ndarray,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Batches in which to predict for each treatment, shape ``(n_treatments, n_cells)``.

    They are in the proportions of the pair's real cells, as the means to meet are; for a pair
    without cells, in those of the stratum.
    """
    drawn = np.zeros(shape, dtype=np.int64)
    n = shape[1]
    for t in range(shape[0]):
        own = batch[rows[treatment[rows] == t]]
        own = np.sort(own if len(own) else batch[rows])
        drawn[t] = rng.permutation(own[np.arange(n) * len(own) // max(n, 1)])
    return drawn


def _mean_prediction(
    module: VCIModule, cells: dict[str, torch.Tensor], treatment: int, shift: np.ndarray
) -> np.ndarray:
    """Mean expected expression at the reference size, shape ``(n_genes,)``."""
    n = len(cells["z"])
    covariates = cells["covariates"]
    if "batch" in cells:
        own = one_hot(cells["batch"][treatment], module.sizes.n_batches).to(covariates.dtype)
        covariates = torch.cat([covariates[:, : -module.sizes.n_batches], own], dim=-1)
    outputs = module.generative(
        z=cells["z"],
        covariates=covariates,
        size=module.reference_size.expand(n, 1),
        treatment=torch.full((n,), treatment, device=module.device),
        shift=torch.as_tensor(shift, device=module.device).expand(n, -1),
    )
    return outputs[MODULE_KEYS.PX_KEY].mean.mean(0).double().cpu().numpy()


def _shrunk_gap(
    module: VCIModule, mean: np.ndarray, variance: np.ndarray, n: int, predicted: np.ndarray
) -> np.ndarray:
    """Gap between real and predicted means on the linear predictor's scale, shrunk."""
    if module.likelihood.is_count:
        floor = 0.5 / n
        gap = np.log((mean + floor) / (predicted + floor))
        # Counts vary at least as much as a Poisson variable does.
        noise = np.maximum(variance, predicted) / n / (np.maximum(mean, predicted) + floor) ** 2
    else:
        gap = mean - predicted
        noise = variance / n
    # Genes with little noise say most about how large true gaps are.
    weight = 1 / (noise + np.median(noise) + 1e-12)
    tau2 = max(float(np.average(gap**2 - noise, weights=weight)), 0.0)
    return gap * tau2 / (tau2 + noise + 1e-12)


def _moved(module: VCIModule, predicted: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Target of the mean prediction: the prediction moved by the shrunk gap."""
    if not module.likelihood.is_count:
        return predicted + gap
    target = predicted * np.exp(gap)
    if module.likelihood.composition:
        target *= predicted.sum() / target.sum()
    return target


def _stabilised(module: VCIModule, mean: np.ndarray) -> np.ndarray:
    """Means on the scale on which effects add up: log1p per 10,000 for counts."""
    if not module.likelihood.is_count:
        return mean
    return np.log1p(1e4 * mean / mean.sum(axis=-1, keepdims=True))


def _destabilised(module: VCIModule, value: np.ndarray, total: float) -> np.ndarray:
    """Inverse of :func:`_stabilised`, for a mean with the given total."""
    if not module.likelihood.is_count:
        return value
    # A sum of effects can be below zero, a mean cannot.
    mean = np.expm1(np.maximum(value, 0)) + _TINY
    return mean * total / mean.sum()


def _solve(
    module: VCIModule,
    cells: dict[str, torch.Tensor],
    treatment: int,
    start: np.ndarray,
    target: np.ndarray,
) -> np.ndarray:
    """Shift (beyond ``start``) at which the mean prediction equals ``target``."""
    shift = np.zeros_like(start)
    for _ in range(_N_PASSES if module.likelihood.is_count else 1):
        predicted = _mean_prediction(module, cells, treatment, start + shift)
        if module.likelihood.is_count:
            ratio = (target + _TINY) / (predicted + _TINY)
            shift = shift + np.log(ratio).astype(shift.dtype)
        else:
            shift = shift + (target - predicted).astype(shift.dtype)
    return shift
