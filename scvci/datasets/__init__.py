"""Data sets with known counterfactuals, and preparation of public ones."""

from ._imaging import simulate_imaging_screen
from ._marson import download_marson, prepare_marson
from ._morpho_mnist import morpho_mnist
from ._plant import plant_effects
from ._preparation import CellFilter
from ._sciplex import download_sciplex, prepare_sciplex
from ._screen import simulate_screen
from ._simulate import Departures, simulate_perturbation
from ._simulate_raw import simulate_marson_raw, simulate_sciplex_raw
from ._strokes import measure_intensity, measure_thickness, set_attributes

__all__ = [
    "CellFilter",
    "Departures",
    "download_marson",
    "download_sciplex",
    "measure_intensity",
    "measure_thickness",
    "morpho_mnist",
    "plant_effects",
    "prepare_marson",
    "prepare_sciplex",
    "set_attributes",
    "simulate_imaging_screen",
    "simulate_marson_raw",
    "simulate_perturbation",
    "simulate_sciplex_raw",
    "simulate_screen",
]
