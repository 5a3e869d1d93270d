"""Data sets with known counterfactuals."""

from ._morpho_mnist import morpho_mnist
from ._plant import plant_effects
from ._screen import simulate_screen
from ._simulate import Departures, simulate_perturbation
from ._strokes import measure_intensity, measure_thickness, set_attributes

__all__ = [
    "Departures",
    "measure_intensity",
    "measure_thickness",
    "morpho_mnist",
    "plant_effects",
    "set_attributes",
    "simulate_perturbation",
    "simulate_screen",
]
