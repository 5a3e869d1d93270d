"""Encoder, decoder, likelihoods and the three terms of the objective."""

from ._config import PRESETS, Architecture, ModuleConfig, Objective, build_config
from ._covariate_terms import COVARIATE_TERMS, Cells, Counterfactual, get_covariate_term
from ._doses import DOSE_RESPONSES, DoseResponse, get_dose_response
from ._likelihoods import LIKELIHOODS, get_likelihood
from ._module import VCIModule
from ._residuals import expect_with_residuals, sample_with_residuals
from ._sizes import DataSizes
from ._surgery import transfer_weights
from ._terms import individual_term, latent_divergence
from ._totals import sample_with_totals

__all__ = [
    "COVARIATE_TERMS",
    "DOSE_RESPONSES",
    "LIKELIHOODS",
    "PRESETS",
    "Architecture",
    "Cells",
    "Counterfactual",
    "DataSizes",
    "DoseResponse",
    "ModuleConfig",
    "Objective",
    "VCIModule",
    "build_config",
    "expect_with_residuals",
    "get_covariate_term",
    "get_dose_response",
    "get_likelihood",
    "individual_term",
    "latent_divergence",
    "sample_with_residuals",
    "sample_with_totals",
    "transfer_weights",
]
