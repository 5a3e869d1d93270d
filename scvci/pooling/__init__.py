"""What measured means have in common: the mixed model over strata, and similar treatments."""

from ._levels import pool_levels
from ._means import PairMeans, pair_means
from ._mixed_model import EffectVariances, Forecast, effect_variances, forecast
from ._pairs import Pairs

__all__ = [
    "EffectVariances",
    "Forecast",
    "PairMeans",
    "Pairs",
    "effect_variances",
    "forecast",
    "pair_means",
    "pool_levels",
]
