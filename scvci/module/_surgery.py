"""Weights of a trained module in one that knows more treatments, covariate levels and batches.

What is new is appended to each block of columns; old columns keep their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ._networks import EffectDecoder

if TYPE_CHECKING:
    from torch import Tensor

    from ._module import VCIModule


def transfer_weights(old: VCIModule, new: VCIModule) -> dict[str, Tensor]:
    """Copy weights and buffers.

    The weights of a new covariate level, batch or treatment in a hidden layer start at the mean of
    the known ones; effects of its own start at zero, and keep the prior of the others.

    Parameters
    ----------
    old
        Trained module.
    new
        Module of the same architecture for more data; changed in place.

    Returns
    -------
    For each parameter with new parts a mask of these, of its shape.

    Raises
    ------
    ValueError
        If the architecture has no place for what is new.
    """
    own, given = new.state_dict(), old.state_dict()
    maps = _column_maps(old, new)
    masks = {}
    for name, value in own.items():
        source = given.get(name)
        if name == "treatment_codes" or source is None:
            continue
        if source.shape == value.shape:
            value.copy_(source)
        elif name == "calibration":
            value.zero_()
            value[: source.shape[0], : source.shape[1]] = source
        elif name in maps:
            blocks, fill = maps[name]
            masks[name] = _place(value, source, blocks, fill)
        else:
            raise ValueError(
                f"Parameter {name!r} of this architecture cannot be extended by new treatments, "
                "covariate levels or batches; train a model on all data."
            )
    return {name: masks[name] for name, _ in new.named_parameters() if name in masks}


#: Old columns, new columns of a block of inputs, as slices of the last axis.
type _Blocks = list[tuple[np.ndarray, np.ndarray]]


def _place(value: Tensor, source: Tensor, blocks: _Blocks, fill: str) -> Tensor:
    """Copy blocks of columns; the rest of each block is filled. Returns the mask of the rest."""
    mask = torch.ones_like(value)
    value.zero_()
    for old, new in blocks:
        kept, added = new[: len(old)], new[len(old) :]
        value[..., kept] = source[..., old]
        mask[..., kept] = 0
        if len(old) and len(added):
            typical = source[..., old].mean(dim=-1, keepdim=True)
            value[..., added] = typical if fill == "mean" else torch.zeros_like(typical)
    return mask


def _column_maps(old: VCIModule, new: VCIModule) -> dict[str, tuple[_Blocks, str]]:
    """Blocks of the parameters that grow, and how what is new starts."""
    if not isinstance(new.decoder, EffectDecoder) or not isinstance(old.decoder, EffectDecoder):
        return {}
    n_old, n_new = _sizes(old), _sizes(new)
    covariates = [f"covariate {i}" for i in range(len(old.sizes.n_levels))]
    covariates += ["continuous", "batch"]
    own = covariates if old.config.architecture.decoder_covariates else ["batch"]

    def blocks(*parts: str) -> _Blocks:
        return _lay_out([(n_old[part], n_new[part]) for part in parts])

    first = "fc_layers.Layer 0.0.weight"
    maps = {
        f"encoder.body.{first}": (blocks("genes", "members", "beyond", *covariates), "mean"),
        f"decoder.baseline.{first}": (blocks("latent", *own), "mean"),
        f"decoder.interaction.{first}": (blocks("latent", "members"), "mean"),
        "response.log_ec50": (blocks("members"), "mean"),
        "response.log_slope": (blocks("members"), "mean"),
    }
    effect_blocks = _effect_blocks(old, new)
    maps["decoder.effects.weight"] = (effect_blocks, "zero")
    maps["decoder.prior_variance"] = (effect_blocks, "mean")
    return maps


def _sizes(module: VCIModule) -> dict[str, int]:
    sizes = module.sizes
    n_members = sizes.doses.shape[1]
    return {
        "genes": sizes.n_genes,
        "latent": module.config.architecture.n_latent,
        "members": n_members,
        "beyond": sizes.treatment_codes.shape[1] - n_members,
        "continuous": sizes.n_continuous,
        "batch": sizes.n_batches,
        **{f"covariate {i}": n for i, n in enumerate(sizes.n_levels)},
    }


def _lay_out(sizes: list[tuple[int, int]]) -> _Blocks:
    """Positions of consecutive blocks, before and after."""
    blocks, old, new = [], 0, 0
    for n_old, n_new in sizes:
        blocks.append((np.arange(old, old + n_old), np.arange(new, new + n_new)))
        old, new = old + n_old, new + n_new
    return blocks


def _covariate_positions(old: VCIModule, new: VCIModule) -> np.ndarray:
    """Position among the new covariates of effects of each old one."""
    if not old.config.architecture.decoder_covariates:
        return np.zeros(0, dtype=np.int64)
    widths = list(zip(old.sizes.n_levels, new.sizes.n_levels, strict=True))
    widths.append((old.sizes.n_continuous, new.sizes.n_continuous))
    return np.concatenate([kept[: len(o)] for o, kept in _lay_out(widths)])


def _effect_blocks(old: VCIModule, new: VCIModule) -> _Blocks:
    """Blocks m, a, s, e and r of the mixed model; e is members × covariates."""
    before = _sizes(old)
    x = _covariate_positions(old, new)
    assert isinstance(new.decoder, EffectDecoder)
    n_x = new.decoder.n_covariate
    kept = [
        np.arange(1),
        np.arange(before["members"]),
        x,
        (np.arange(before["members"])[:, None] * n_x + x).ravel(),
        np.arange(before["beyond"]),
    ]
    if not new.decoder.stratum_effects:
        kept = [kept[0][:0], kept[1], kept[2][:0], kept[3][:0], kept[4]]
    blocks, n_before, n_after = [], 0, 0
    for positions, width in zip(kept, new.decoder.blocks, strict=True):
        rest = np.setdiff1d(np.arange(width), positions)
        columns = n_after + np.concatenate([positions, rest]).astype(np.int64)
        blocks.append((np.arange(n_before, n_before + len(positions)), columns))
        n_before, n_after = n_before + len(positions), n_after + width
    return blocks
