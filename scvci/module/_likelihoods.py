"""Likelihoods p(y | z, t) by name.

A likelihood turns what the decoder returns (one linear predictor per gene and head) and a cell's
size into a distribution over its expression, and knows the scale on which cells of different
size compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor, nn
from torch.nn.functional import softplus

from ._kinds import get_kind

if TYPE_CHECKING:
    from torch.distributions import Distribution

#: Keeps exp() of a linear predictor finite in float32.
_MAX_LOG_RATE = 15.0


class Likelihood(nn.Module):
    """Base of the likelihoods.

    Parameters
    ----------
    n_genes
        Number of genes.
    composition
        Whether a cell's expected counts are proportions (softmax over genes) times its library
        size. If ``False``, the rate is exp(linear predictor) times a user's size factor.
    """

    #: Name by which users choose the likelihood.
    name: ClassVar[str]
    #: Linear predictors the decoder returns per gene.
    n_heads: ClassVar[int] = 1
    #: Whether the data are counts.
    is_count: ClassVar[bool] = True
    #: Whether the mean scales with the size of the cell.
    uses_size: ClassVar[bool] = True

    def __init__(self, n_genes: int, composition: bool = True) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.composition = composition

    def rate(self, heads: Tensor) -> Tensor:
        """Return expected expression of a cell of size one, shape ``(..., n_genes)``."""
        logits = heads[..., 0, :]
        if self.composition:
            return torch.softmax(logits, dim=-1)
        return torch.exp(logits.clamp(max=_MAX_LOG_RATE))

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """Distribution of a cell's expression.

        Parameters
        ----------
        heads
            Linear predictors, shape ``(..., n_heads, n_genes)``.
        size
            Library size or size factor, shape ``(..., 1)``.
        """
        raise NotImplementedError

    def initial_bias(self, mean_rate: Tensor) -> Tensor:
        """Linear predictor of the mean cell, shape ``(n_genes,)``."""
        return torch.log(mean_rate.clamp(min=1e-8))

    def set_overdispersion(self, value: Tensor) -> None:
        """Start from an estimate of 1/θ, shape ``(n_genes,)``, where the likelihood has a θ."""


class NegativeBinomialLikelihood(Likelihood):
    """Negative binomial with mean size · rate and an inverse dispersion per gene."""

    name = "nb"

    def __init__(self, n_genes: int, composition: bool = True) -> None:
        super().__init__(n_genes, composition)
        self.log_theta = nn.Parameter(torch.full((n_genes,), 1.0))

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`."""
        rate = self.rate(heads)
        return NegativeBinomial(mu=size * rate, theta=self.log_theta.exp(), scale=rate)

    @torch.no_grad()
    def set_overdispersion(self, value: Tensor) -> None:
        """See :meth:`Likelihood.set_overdispersion`."""
        self.log_theta.copy_(-torch.log(value))


class ZeroInflatedNegativeBinomialLikelihood(NegativeBinomialLikelihood):
    """Negative binomial with an excess of zeros; the second head is the dropout logit."""

    name = "zinb"
    n_heads = 2

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`."""
        rate = self.rate(heads)
        return ZeroInflatedNegativeBinomial(
            mu=size * rate, theta=self.log_theta.exp(), zi_logits=heads[..., 1, :], scale=rate
        )


class PoissonLikelihood(Likelihood):
    """Poisson with mean size · rate."""

    name = "poisson"

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`."""
        rate = self.rate(heads)
        return Poisson(rate=size * rate, scale=rate, validate_args=False)


class NormalLikelihood(Likelihood):
    """Gaussian for log-normalised data, one standard deviation per gene.

    The floor keeps the density of a gene that is zero in nearly all cells bounded.
    """

    name = "normal"
    is_count = False
    uses_size = False
    sigma_floor: ClassVar[float] = 0.05

    def __init__(self, n_genes: int, composition: bool = False) -> None:
        super().__init__(n_genes, composition=False)
        self.raw_sigma = nn.Parameter(torch.zeros(n_genes))

    def rate(self, heads: Tensor) -> Tensor:
        """Mean of the Gaussian."""
        return heads[..., 0, :]

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        rate = self.rate(heads)
        scale = softplus(self.raw_sigma) + self.sigma_floor
        return Normal(rate, scale.expand_as(rate), validate_args=False, normal_mu=rate)

    def initial_bias(self, mean_rate: Tensor) -> Tensor:
        """Mean expression itself."""
        return mean_rate


class PaperNormalLikelihood(NormalLikelihood):
    """Reference implementation's Gaussian: a standard deviation per cell and gene.

    σ = softplus(a₂) + 10⁻³ (the paper's public code; ``vci.utils``).
    """

    name = "paper_normal"
    n_heads = 2

    def __init__(self, n_genes: int, composition: bool = False) -> None:
        Likelihood.__init__(self, n_genes, composition=False)

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        scale = softplus(heads[..., 1, :]) + 1e-3
        return Normal(heads[..., 0, :], scale, validate_args=False)


class PaperNegativeBinomialLikelihood(Likelihood):
    """Reference implementation's negative binomial: no library size, two positive heads.

    μ = softplus(a₁) + 10⁻³ and θ = softplus(a₂) + 10⁻³.
    """

    name = "paper_nb"
    n_heads = 2
    uses_size = False

    def rate(self, heads: Tensor) -> Tensor:
        """Mean of the counts themselves."""
        return softplus(heads[..., 0, :]) + 1e-3

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        mu = self.rate(heads)
        return NegativeBinomial(mu=mu, theta=softplus(heads[..., 1, :]) + 1e-3, scale=mu)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.name: cls
    for cls in (
        NegativeBinomialLikelihood,
        ZeroInflatedNegativeBinomialLikelihood,
        PoissonLikelihood,
        NormalLikelihood,
        PaperNormalLikelihood,
        PaperNegativeBinomialLikelihood,
    )
}


def get_likelihood(name: str) -> type[Likelihood]:
    """Look a likelihood up by name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    return get_kind(LIKELIHOODS, name, "likelihood")
