"""Encoder, decoder, likelihoods and the three terms of the objective."""

from ._config import PRESETS, Architecture, ModuleConfig, Objective, build_config
from ._covariate_terms import COVARIATE_TERMS, Cells, Counterfactual, get_covariate_term
from ._likelihoods import LIKELIHOODS, get_likelihood
from ._module import DataSizes, VCIModule
from ._terms import individual_term, latent_divergence

__all__ = [
    "COVARIATE_TERMS",
    "LIKELIHOODS",
    "PRESETS",
    "Architecture",
    "Cells",
    "Counterfactual",
    "DataSizes",
    "ModuleConfig",
    "Objective",
    "VCIModule",
    "build_config",
    "get_covariate_term",
    "get_likelihood",
    "individual_term",
    "latent_divergence",
]
