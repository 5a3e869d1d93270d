"""Simulators with known counterfactuals."""

from ._simulate import simulate_perturbation

__all__ = ["simulate_perturbation"]
