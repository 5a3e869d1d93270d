"""How the module is optimised."""

from ._finite import NotFiniteError
from ._plan import VCITrainingPlan

__all__ = ["NotFiniteError", "VCITrainingPlan"]
