"""Settings of the module, grouped and documented in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: Names by which users choose; the tables of kinds hold what is behind them.
BackboneName = Literal["effect", "paper"]
CovariateTermName = Literal["moments", "kernel", "energy", "discriminator", "classifier"]
DoseResponseName = Literal["linear", "log", "monotone"]
LikelihoodName = Literal["nb", "zinb", "poisson", "normal"]
ImageLikelihoodName = Literal["bernoulli", "normal"]
ImageTermName = Literal["discriminator", "classifier"]
PresetName = Literal["default", "paper"]


@dataclass(frozen=True)
class Architecture:
    """Sizes and inputs of the networks.

    Attributes
    ----------
    kind
        Backbone, see :data:`scvci.module.BACKBONES`. ``"effect"``: the decoder is a baseline plus
        a treatment effect, zero for the control, that is a mixed model over strata. ``"paper"``:
        the networks of the reference implementation (z and the treatment code concatenated, batch
        normalisation, rectified latent heads).
    n_latent
        Dimensions of the latent state z.
    n_hidden
        Width of the hidden layers.
    n_layers
        Hidden layers of the encoder and of the decoder's baseline.
    dropout
        Dropout rate of the encoder's hidden layers.
    interaction
        Whether the effect of a treatment may depend on the latent state.
    decoder_covariates
        Whether the decoder's baseline sees the covariates besides the latent state.
    dose_response
        How an effect grows with dose: ``"linear"``, ``"log"``, or ``"monotone"`` for a learned
        Hill curve of each treatment.
    """

    kind: BackboneName = "effect"
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.1
    interaction: bool = True
    decoder_covariates: bool = True
    dose_response: DoseResponseName = "monotone"


@dataclass(frozen=True)
class Objective:
    """Weights and arithmetic of the three terms of the objective.

    Attributes
    ----------
    individual, covariate, divergence
        Weights of the individual-specific likelihood, of the covariate-specific likelihood of the
        counterfactual, and of the latent divergence. In the bound all three are 1; a heavier
        divergence predicts pairs without cells better.
    covariate_term
        Kind of the covariate-specific term, see :data:`scvci.module.COVARIATE_TERMS`.
    n_samples
        Latent draws per cell for the individual-specific likelihood (S).
    n_reference
        Real cells of (x, t′) drawn per cell (K), for kinds that compare with single cells.
    reduction
        ``"sum"``: likelihoods are summed over genes, the units of the bound (nats per cell).
        ``"mean"``: averaged over genes, as in the reference implementation.
    kl
        ``"exact"`` Kullback-Leibler divergence, or the ``"paper"`` form of the reference
        implementation, which does not divide the squared difference of the means by the variance.
    prior
        What q(z | y, x, t) is held against by the divergence: the ``"counterfactual"``
        q(z | y′, x, t′), or the ``"standard"`` normal distribution. With the latter and without
        the covariate term (weight 0) the model is a conditional variational autoencoder of the
        same networks, trained on factual cells alone.

    Raises
    ------
    ValueError
        If the prior is unknown.
    """

    individual: float = 1.0
    covariate: float = 1.0
    divergence: float = 3.0
    covariate_term: CovariateTermName = "moments"
    n_samples: int = 1
    n_reference: int = 8
    reduction: Literal["sum", "mean"] = "sum"
    kl: Literal["exact", "paper"] = "exact"
    prior: Literal["counterfactual", "standard"] = "counterfactual"

    @property
    def in_words(self) -> str:
        """The weighted sum, for people."""
        return (
            f"{self.individual:g} individual + {self.covariate:g} covariate "
            f"({self.covariate_term}) + {self.divergence:g} divergence"
        )

    def __post_init__(self) -> None:
        for name in ("individual", "covariate", "divergence"):
            weight = getattr(self, name)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights[{name!r}]={weight} must be finite and at least 0.")
        if self.prior not in ("counterfactual", "standard"):
            raise ValueError(
                f"prior must be 'counterfactual' or 'standard' (normal); got {self.prior!r}."
            )


@dataclass(frozen=True)
class ModuleConfig:
    """Everything that defines the module besides the sizes of the data.

    Attributes
    ----------
    likelihood
        Name of the likelihood p(y | z, t).
    architecture, objective
        Networks, and the terms of the objective.
    target_sampling
        How targets t′ are drawn: ``"balanced"`` with equal probability among the other arms that
        have cells in the stratum, control included; ``"treated"`` as the treatment of a random
        treated cell of any stratum.
    """

    likelihood: LikelihoodName = "nb"
    architecture: Architecture = field(default_factory=Architecture)
    objective: Objective = field(default_factory=Objective)
    target_sampling: Literal["balanced", "treated"] = "balanced"


@dataclass(frozen=True)
class ImageArchitecture:
    """Sizes of the networks for images.

    Attributes
    ----------
    n_latent
        Dimensions of the latent vector of the whole image.
    n_maps
        Channels of each latent map.
    n_scales
        Latent scales: 1 is the vector alone, a plain convolutional autoencoder; 2 adds a map at
        the coarsest resolution (sides of at most 8), 3 another at twice that, and so on, the
        hierarchical model.
    width
        Channels at the finest resolution, half the image's; each coarser one has twice as many.
    depth
        Residual blocks at each resolution but the finest, which has one.
    n_condition
        Features of the treatment and covariate codes.
    """

    n_latent: int = 32
    n_maps: int = 8
    n_scales: int = 2
    width: int = 16
    depth: int = 2
    n_condition: int = 64

    def __post_init__(self) -> None:
        for name in ("n_latent", "n_maps", "n_scales", "width", "depth", "n_condition"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True)
class ImageConfig:
    """Everything that defines the module for images besides the sizes of the data.

    Attributes
    ----------
    likelihood
        Name of the likelihood of a pixel.
    architecture, objective
        Networks, and the terms of the objective.
    """

    likelihood: ImageLikelihoodName = "bernoulli"
    architecture: ImageArchitecture = field(default_factory=ImageArchitecture)
    objective: Objective = field(
        default_factory=lambda: Objective(
            covariate=3.0, divergence=0.3, covariate_term="discriminator"
        )
    )
