"""How the module is optimised."""

from ._plan import VCITrainingPlan

__all__ = ["VCITrainingPlan"]
