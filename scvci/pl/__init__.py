"""Plots, in scanpy's conventions."""

from ._plots import counterfactual_shift, effect_scatter, training_curves

__all__ = ["counterfactual_shift", "effect_scatter", "training_curves"]
