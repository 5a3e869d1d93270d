"""Variational causal inference for single-cell perturbation data."""

from . import data, datasets, effects, metrics, model, module, pl, pooling, tl, train
from ._version import __version__

__all__ = [
    "__version__",
    "data",
    "datasets",
    "effects",
    "metrics",
    "model",
    "module",
    "pl",
    "pooling",
    "tl",
    "train",
]
