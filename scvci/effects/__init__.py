"""Effects of treatments and their uncertainty: arrays in, tables out."""

from ._conformal import conformal_threshold, predictive_interval, predictive_score
from ._estimate import estimate_effects
from ._heterogeneity import heterogeneity_test
from ._independence import conditional_independence_test
from ._interactions import interaction_effects
from ._leakage import leakage_test
from ._overlap import overlap_table
from ._propensity import cross_validated_propensity, propensity_strata

__all__ = [
    "conditional_independence_test",
    "conformal_threshold",
    "cross_validated_propensity",
    "estimate_effects",
    "heterogeneity_test",
    "interaction_effects",
    "leakage_test",
    "overlap_table",
    "predictive_interval",
    "predictive_score",
    "propensity_strata",
]
