"""What measured means have in common: the mixed model over strata, and similar treatments."""

from ._means import PairMeans, merge_means, pair_means
from ._mixed_model import EffectVariances, Forecast, effect_variances, forecast
from ._pairs import Pairs
from ._similarity import similarity_weights

__all__ = [
    "EffectVariances",
    "Forecast",
    "PairMeans",
    "Pairs",
    "effect_variances",
    "forecast",
    "merge_means",
    "pair_means",
    "similarity_weights",
]
