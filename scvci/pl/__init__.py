"""Plots, in scanpy's conventions."""

from ._diagnostics import disentanglement, overlap
from ._doses import dose_response
from ._effect_checks import interval_calibration, leakage
from ._effects import effect_embedding, forest, volcano
from ._plots import counterfactual_shift, effect_scatter, training_curves

__all__ = [
    "counterfactual_shift",
    "disentanglement",
    "dose_response",
    "effect_embedding",
    "effect_scatter",
    "forest",
    "interval_calibration",
    "leakage",
    "overlap",
    "training_curves",
    "volcano",
]
