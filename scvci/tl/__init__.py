"""What a user asks: effects, overlap, leakage, heterogeneity, intervals, ranking, evaluation."""

from ._disentanglement import disentanglement_test
from ._effects import estimate_effects, leakage_test
from ._evaluation import evaluate
from ._heterogeneity import heterogeneity_test
from ._interactions import estimate_interactions
from ._intervals import predict_interval
from ._overlap import check_overlap
from ._ranking import rank_genes_counterfactual
from ._scores import effect_scores

__all__ = [
    "check_overlap",
    "disentanglement_test",
    "effect_scores",
    "estimate_effects",
    "estimate_interactions",
    "evaluate",
    "heterogeneity_test",
    "leakage_test",
    "predict_interval",
    "rank_genes_counterfactual",
]
