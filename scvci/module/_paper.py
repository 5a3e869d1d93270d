"""The reference implementation's gene model, for comparisons and tests of parity.

Everything that is particular to it is here: its settings, its networks, its likelihoods, its
treatment code and how it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, Normal
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from ._backbone import ArmCodes, Backbone, Decoder, TrainingDefaults
from ._config import Architecture, ModuleConfig, Objective
from ._likelihoods import LIKELIHOODS, AddedMeans, Likelihood
from ._networks import latent_normal

if TYPE_CHECKING:
    from torch.distributions import Distribution

    from ._likelihoods import ShiftedMeans

#: Settings of the gene model: weights 1, 1.7 and 0.1 on means over genes, S = 30, K = 20.
PAPER = ModuleConfig(
    likelihood="normal",
    architecture=Architecture(kind="paper", n_latent=128, n_hidden=128, n_layers=2),
    objective=Objective(
        individual=1.0,
        covariate=1.7,
        divergence=0.1,
        covariate_term="kernel",
        n_samples=30,
        n_reference=20,
        reduction="mean",
        kl="paper",
    ),
    target_sampling="treated",
)
#: Smallest standard deviation, mean and inverse dispersion of the likelihoods.
_FLOOR = 1e-3


class PaperEncoder(nn.Module):
    """Encoder of the reference implementation's gene model.

    Linear outcome embedding (256), linear embedding of each covariate (16), hidden layers with
    batch normalisation, and a rectifier over both latent heads, so that the mean is non-negative
    and the standard deviation is at least log 2 + 10⁻³.
    """

    def __init__(
        self,
        n_genes: int,
        n_treatment: int,
        n_levels: list[int],
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_outcome_embedding: int = 256,
        n_covariate_embedding: int = 16,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_levels = n_levels
        self.outcome = nn.Linear(n_genes, n_outcome_embedding)
        self.covariates = nn.ModuleList(nn.Linear(n, n_covariate_embedding) for n in n_levels)
        n_in = n_outcome_embedding + n_treatment + n_covariate_embedding * len(n_levels)
        self.body = _mlp(n_in, n_hidden, n_layers, n_latent * 2)

    def forward(self, features: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """Return q(z | y, x, t), batch shape ``(n_cells, n_latent)``."""
        one_hots = covariates.split(self.n_levels, dim=-1)
        embedded = [layer(x) for layer, x in zip(self.covariates, one_hots, strict=True)]
        heads = relu(self.body(torch.cat([self.outcome(features), treatment, *embedded], dim=-1)))
        mean, raw_sigma = heads.unflatten(-1, (self.n_latent, 2)).unbind(-1)
        return latent_normal(mean, raw_sigma)


class PaperDecoder(Decoder):
    """Decoder of the reference implementation's gene model: z and the treatment code, no x."""

    def __init__(
        self,
        n_latent: int,
        n_treatment: int,
        n_genes: int,
        n_heads: int,
        n_hidden: int,
        n_layers: int,
    ) -> None:
        super().__init__()
        self.shape = (n_heads, n_genes)
        self.body = _mlp(n_latent + n_treatment, n_hidden, n_layers, n_heads * n_genes)

    def forward(
        self, z: Tensor, treatment: Tensor, covariates: Tensor, order: int | None = None
    ) -> Tensor:
        """See :meth:`Decoder.forward`; x is not used."""
        treatment = treatment.expand(*z.shape[:-1], treatment.shape[-1])
        inputs = torch.cat([z, treatment], dim=-1)
        # Batch normalisation wants two axes: latent draws and cells are one axis to it.
        return (
            self.body(inputs.flatten(0, -2))
            .unflatten(-1, self.shape)
            .unflatten(0, inputs.shape[:-1])
        )


class PaperNormalLikelihood(Likelihood):
    """Gaussian with a standard deviation per cell and gene, σ = softplus(a₂) + 10⁻³."""

    name = "normal"
    n_heads = 2
    is_count = False
    uses_size = False

    def __init__(self, n_genes: int, composition: bool = False) -> None:
        super().__init__(n_genes, composition=False)

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        scale = softplus(heads[..., 1, :]) + _FLOOR
        return Normal(heads[..., 0, :], scale, validate_args=False)

    def shifted_means(
        self, heads: Tensor, size: Tensor | float, weight: Tensor | None = None
    ) -> ShiftedMeans:
        """See :meth:`Likelihood.shifted_means`; ``size`` is not used."""
        return AddedMeans.of(heads, weight)


class PaperNegativeBinomialLikelihood(Likelihood):
    """Negative binomial without a library size, of two positive heads.

    μ = softplus(a₁) + 10⁻³ and θ = softplus(a₂) + 10⁻³.
    """

    name = "nb"
    n_heads = 2
    uses_size = False

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        mu = softplus(heads[..., 0, :]) + _FLOOR
        theta = softplus(heads[..., 1, :]) + _FLOOR
        return NegativeBinomial(mu=mu, theta=theta, scale=mu)


class PaperBackbone(Backbone):
    """Networks of the reference implementation's gene model.

    The code of an arm has a column for the control, which elsewhere is the zero vector, and then
    the members' doses. Features are not centred, weights have no prior, networks do not start from
    statistics, and they cannot be extended to new treatments, covariate levels or batches.
    """

    name = "paper"
    training = TrainingDefaults(
        batch_size=64,
        max_epochs=1000,
        n_steps=None,
        plan={"lr": 3e-4, "weight_decay": 4e-7, "clip": None, "lr_decay": [450, 900]},
    )
    likelihoods = {
        **LIKELIHOODS,
        PaperNormalLikelihood.name: PaperNormalLikelihood,
        PaperNegativeBinomialLikelihood.name: PaperNegativeBinomialLikelihood,
    }

    @staticmethod
    def encode_arms(doses: np.ndarray) -> ArmCodes:
        """See :meth:`Backbone.encode_arms`."""
        control = (doses == 0).all(axis=1, keepdims=True)
        return ArmCodes(np.hstack([control, doses]), members=slice(1, 1 + doses.shape[1]))

    def build_encoder(self) -> PaperEncoder:
        """See :meth:`Backbone.build_encoder`."""
        sizes, architecture = self.sizes, self.architecture
        widths = [*sizes.n_levels, *([1] * sizes.n_continuous)]
        widths += [sizes.n_batches] if sizes.n_batches else []
        return PaperEncoder(
            sizes.n_genes,
            self.codes.table.shape[1],
            widths,
            architecture.n_latent,
            architecture.n_hidden,
            architecture.n_layers,
        )

    def build_decoder(self, n_heads: int) -> PaperDecoder:
        """See :meth:`Backbone.build_decoder`."""
        return PaperDecoder(
            self.architecture.n_latent,
            self.codes.table.shape[1],
            self.sizes.n_genes,
            n_heads,
            self.architecture.n_hidden,
            self.architecture.n_layers,
        )

    def feature_location(self, mean: np.ndarray) -> np.ndarray:
        """See :meth:`Backbone.feature_location`."""
        return np.zeros_like(mean)


def _mlp(n_in: int, n_hidden: int, n_layers: int, n_out: int) -> nn.Sequential:
    """Linear → batch normalisation → rectifier, and a linear output."""
    layers: list[nn.Module] = []
    for width in [n_in] + [n_hidden] * (n_layers - 1):
        layers += [nn.Linear(width, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(n_hidden, n_out))
