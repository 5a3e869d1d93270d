"""Encoder, decoder, likelihoods and the three terms of the objective."""

from ._backbone import ArmCodes, Backbone, Decoder, TrainingDefaults
from ._backbones import BACKBONES
from ._config import Architecture, ImageArchitecture, ModuleConfig, Objective
from ._covariate_terms import COVARIATE_TERMS, Counterfactuals, CovariateTerm, TermInputs
from ._doses import DOSE_RESPONSES, DoseResponse
from ._growth import Growth
from ._image_module import ImageModule
from ._likelihoods import LIKELIHOODS, Likelihood, ShiftedMeans
from ._module import VCIModule
from ._sizes import DataSizes, ImageSizes
from ._terms import individual_term, latent_divergence

__all__ = [
    "BACKBONES",
    "COVARIATE_TERMS",
    "DOSE_RESPONSES",
    "LIKELIHOODS",
    "Architecture",
    "ArmCodes",
    "Backbone",
    "Counterfactuals",
    "CovariateTerm",
    "DataSizes",
    "Decoder",
    "DoseResponse",
    "Growth",
    "ImageArchitecture",
    "ImageModule",
    "ImageSizes",
    "Likelihood",
    "ModuleConfig",
    "Objective",
    "ShiftedMeans",
    "TermInputs",
    "TrainingDefaults",
    "VCIModule",
    "individual_term",
    "latent_divergence",
]
