"""How the module is optimised."""

from ._callbacks import RestoreBest
from ._plan import VCITrainingPlan

__all__ = ["RestoreBest", "VCITrainingPlan"]
