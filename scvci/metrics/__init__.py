"""How good predictions are: plain functions on arrays."""

from ._baselines import BASELINES, additive, low_rank_linear, no_change, treatment_mean
from ._individual import ite_corr, pehe, per_cell_mse, top_genes
from ._population import energy_distance, pearson_delta, pseudobulk, r2_delta, r2_means

__all__ = [
    "BASELINES",
    "additive",
    "energy_distance",
    "ite_corr",
    "low_rank_linear",
    "no_change",
    "pearson_delta",
    "pehe",
    "per_cell_mse",
    "pseudobulk",
    "r2_delta",
    "r2_means",
    "top_genes",
    "treatment_mean",
]
