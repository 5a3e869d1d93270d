"""How good predictions are: plain functions on arrays."""

from ._baselines import BASELINES, additive, low_rank_linear, no_change, treatment_mean
from ._individual import ite_corr, pehe, per_cell_mse, top_genes
from ._population import energy_distance, pearson_delta, pseudobulk, r2_delta, r2_means
from ._report import baseline_tables, counterfactual_report, pair_pseudobulks, population_report

__all__ = [
    "BASELINES",
    "additive",
    "baseline_tables",
    "counterfactual_report",
    "energy_distance",
    "ite_corr",
    "low_rank_linear",
    "no_change",
    "pair_pseudobulks",
    "pearson_delta",
    "pehe",
    "per_cell_mse",
    "population_report",
    "pseudobulk",
    "r2_delta",
    "r2_means",
    "top_genes",
    "treatment_mean",
]
