"""Data sets with known counterfactuals."""

from ._plant import plant_effects
from ._screen import simulate_screen
from ._simulate import Departures, simulate_perturbation

__all__ = ["Departures", "plant_effects", "simulate_perturbation", "simulate_screen"]
