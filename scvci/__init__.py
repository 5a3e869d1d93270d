"""Variational causal inference for single-cell perturbation data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from types import ModuleType

    from . import data, datasets, effects, metrics, model, module, pl, pooling, tl, train

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


def __getattr__(name: str) -> ModuleType:
    """Import a folder when it is first used, so that the command line answers at once."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
