"""Plots, in scanpy's conventions."""

from ._diagnostics import disentanglement, overlap
from ._plots import counterfactual_shift, effect_scatter, training_curves

__all__ = [
    "counterfactual_shift",
    "disentanglement",
    "effect_scatter",
    "overlap",
    "training_curves",
]
