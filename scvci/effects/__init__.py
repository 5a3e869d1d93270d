"""Effects of treatments and their uncertainty: arrays in, tables out."""

from ._combinations import interaction_effects
from ._conformal import (
    conformal_rank,
    conformal_threshold,
    least_calibration_cells,
    predictive_interval,
    predictive_score,
)
from ._estimate import estimate_effects
from ._heterogeneity import heterogeneity_test
from ._leakage import leakage_test
from ._moderation import moderate
from ._propensity import propensity_strata

__all__ = [
    "conformal_rank",
    "conformal_threshold",
    "estimate_effects",
    "heterogeneity_test",
    "interaction_effects",
    "leakage_test",
    "least_calibration_cells",
    "moderate",
    "predictive_interval",
    "predictive_score",
    "propensity_strata",
]
