"""Encoder, decoder, likelihoods and the three terms of the objective."""

from ._backbone import ArmCodes, Backbone, Decoder, TrainingDefaults
from ._backbones import BACKBONES, get_backbone
from ._config import Architecture, ModuleConfig, Objective
from ._coupling import expect_with_residuals, sample_with_residuals
from ._covariate_terms import COVARIATE_TERMS, Counterfactuals, TermInputs, get_covariate_term
from ._doses import DOSE_RESPONSES, DoseResponse, get_dose_response
from ._extension import extend_weights
from ._likelihoods import LIKELIHOODS, Likelihood, ShiftedMeans
from ._module import VCIModule
from ._presets import PRESETS, build_config
from ._sizes import DataSizes
from ._terms import individual_term, latent_divergence
from ._fixed_totals import sample_with_totals

__all__ = [
    "BACKBONES",
    "COVARIATE_TERMS",
    "DOSE_RESPONSES",
    "LIKELIHOODS",
    "PRESETS",
    "Architecture",
    "ArmCodes",
    "Backbone",
    "Counterfactuals",
    "DataSizes",
    "Decoder",
    "DoseResponse",
    "Likelihood",
    "ModuleConfig",
    "Objective",
    "ShiftedMeans",
    "TermInputs",
    "TrainingDefaults",
    "VCIModule",
    "build_config",
    "expect_with_residuals",
    "extend_weights",
    "get_backbone",
    "get_covariate_term",
    "get_dose_response",
    "individual_term",
    "latent_divergence",
    "sample_with_residuals",
    "sample_with_totals",
]
