"""How good predictions are: functions on arrays, and one table of scores from AnnData."""

from ._baselines import BASELINES, additive, low_rank_linear, no_change, treatment_mean
from ._de import (
    de_jaccard,
    differential_expression,
    direction_match,
    logfc_spearman,
    top_k_overlap,
)
from ._discrimination import centroid_accuracy, perturbation_discrimination
from ._distributions import covariance_error, energy_distance, mmd
from ._evaluate import evaluate
from ._images import composition, effectiveness, image_mse, reversibility
from ._individual import ite_corr, pehe, per_cell_mse
from ._population import (
    cosine_logfc,
    l2_top_expressed,
    pearson_delta,
    pseudobulk,
    r2_delta,
    r2_means,
    r2_variances,
    systema_reference,
)
from ._scoring import METRICS
from ._tables import log_normalise, pair_pseudobulks
from ._verdict import summarize, verdict

__all__ = [
    "BASELINES",
    "METRICS",
    "additive",
    "centroid_accuracy",
    "composition",
    "cosine_logfc",
    "covariance_error",
    "de_jaccard",
    "differential_expression",
    "direction_match",
    "effectiveness",
    "energy_distance",
    "evaluate",
    "image_mse",
    "ite_corr",
    "l2_top_expressed",
    "log_normalise",
    "logfc_spearman",
    "low_rank_linear",
    "mmd",
    "no_change",
    "pair_pseudobulks",
    "pearson_delta",
    "pehe",
    "per_cell_mse",
    "perturbation_discrimination",
    "pseudobulk",
    "r2_delta",
    "r2_means",
    "r2_variances",
    "reversibility",
    "summarize",
    "systema_reference",
    "top_k_overlap",
    "treatment_mean",
    "verdict",
]
