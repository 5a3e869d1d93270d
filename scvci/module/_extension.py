"""Weights of a trained module in one with more treatments, covariate levels and batches.

What is new is appended to each block of columns; old columns keep their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Size, Tensor

    from ._growth import Growth
    from ._module import VCIModule


def extend_weights(old: VCIModule, new: VCIModule) -> dict[str, Tensor]:
    """Copy weights and buffers to a module of more data.

    Where a parameter grows, its backbone says how what is new starts, see
    :meth:`scvci.module.Backbone.growth`.

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
    growth = new.backbone.growth(old.backbone)
    masks = {}
    for name, value in own.items():
        source = given.get(name)
        if name == "treatment_codes" or source is None:
            continue
        if source.shape == value.shape:
            value.copy_(source)
        elif name in growth:
            extended, masks[name] = _extend(source, value.shape, growth[name])
            value.copy_(extended)
        else:
            raise ValueError(
                f"Parameter {name!r} of this architecture cannot be extended by new treatments, "
                "covariate levels or batches; train a model on all data."
            )
    return {name: masks[name] for name, _ in new.named_parameters() if name in masks}


def _extend(source: Tensor, shape: Size, growth: Growth) -> tuple[Tensor, Tensor]:
    """Weights of the given shape, and a mask of those that are new."""
    value, mask = source.new_zeros(shape), source.new_ones(shape)
    for old, new in growth.columns:
        kept, added = new[: len(old)], new[len(old) :]
        value[..., kept] = source[..., old]
        mask[..., kept] = 0
        if growth.fill == "mean" and len(old) and len(added):
            value[..., added] = source[..., old].mean(dim=-1, keepdim=True)
    return value, mask
