"""Likelihoods p(y | z, t) by name.

A likelihood turns what the decoder returns (one linear predictor per gene and head) and a cell's
size into a distribution over its expression, and sets the scale on which cells of different
size are compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor, nn
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from torch.distributions import Distribution

#: Keeps exp() of a linear predictor finite in float32.
_MAX_LOG_RATE = 15.0


def add_shift(heads: Tensor, shift: Tensor) -> Tensor:
    """Add to the first head, the linear predictor of the mean.

    Parameters
    ----------
    heads
        Linear predictors, shape ``(..., n_heads, n_genes)``.
    shift
        Shape ``(..., n_genes)``; leading axes are broadcast.
    """
    first = heads[..., :1, :] + shift.unsqueeze(-2)
    return torch.cat([first, heads[..., 1:, :].expand(*first.shape[:-2], -1, -1)], dim=-2)


class Likelihood(nn.Module, ABC):
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

    @abstractmethod
    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """Distribution of a cell's expression.

        Parameters
        ----------
        heads
            Linear predictors, shape ``(..., n_heads, n_genes)``.
        size
            Library size or size factor, shape ``(..., 1)``.
        """

    def shifted_means(
        self, heads: Tensor, size: Tensor | float, weight: Tensor | None = None
    ) -> ShiftedMeans:
        """Mean over cells as a function of a shift, for repeated evaluation.

        Parameters
        ----------
        heads
            Linear predictors, shape ``(..., n_cells, n_heads, n_genes)``.
        size
            Library size or size factor, one for all cells.
        weight
            Weights of the cells, of mean 1, shape ``(n_cells,)``; by default they count alike.
        """
        size = torch.as_tensor(size, device=heads.device)
        return _EvaluatedMeans(self, heads, size, _weights(heads, weight))

    def initial_bias(self, mean_rate: Tensor) -> Tensor:
        """Linear predictor of the mean cell, shape ``(n_genes,)``."""
        return torch.log(mean_rate.clamp(min=1e-8))

    def set_overdispersion(self, value: Tensor) -> None:
        """Start from an estimate of 1/θ, shape ``(n_genes,)``, where the likelihood has a θ."""


class ShiftedMeans(ABC):
    """Mean over cells of the expected expression, as a function of a shift.

    What does not depend on the shift is computed once.
    """

    @abstractmethod
    def at(self, shift: Tensor) -> Tensor:
        """Evaluate the mean.

        Parameters
        ----------
        shift
            Added to the first head of every cell, shape ``(..., n_genes)``.

        Returns
        -------
        Shape ``(..., n_genes)``.
        """


@dataclass(frozen=True)
class _EvaluatedMeans(ShiftedMeans):
    """Means of the distributions at each shift, whatever the likelihood."""

    likelihood: Likelihood
    heads: Tensor
    size: Tensor
    weight: Tensor

    def at(self, shift: Tensor) -> Tensor:
        heads = add_shift(self.heads, shift.unsqueeze(-2))
        mean = self.likelihood.distribution(heads, self.size).mean
        return (self.weight * mean).mean(dim=-2)


@dataclass(frozen=True)
class AddedMeans(ShiftedMeans):
    """Means that a shift is added to.

    Attributes
    ----------
    mean
        Mean over cells without a shift, shape ``(..., n_genes)``.
    """

    mean: Tensor

    @classmethod
    def of(cls, heads: Tensor, weight: Tensor | None) -> AddedMeans:
        """Mean of the first head over cells; see :meth:`Likelihood.shifted_means`."""
        return cls((_weights(heads, weight) * heads[..., 0, :]).mean(dim=-2))

    def at(self, shift: Tensor) -> Tensor:
        """See :meth:`ShiftedMeans.at`."""
        return self.mean + shift


def _weights(heads: Tensor, weight: Tensor | None) -> Tensor:
    """Weights of cells, shape ``(n_cells, 1)``, or a one for all of them."""
    return heads.new_ones(1) if weight is None else weight.to(heads).unsqueeze(-1)


class _ComposedMeans(ShiftedMeans):
    r"""Means of proportions of a total, by matrix products.

    With the proportions :math:`E_{ig} = \mathrm{softmax}(\eta_i)_g` of cell i, the size
    :math:`\ell` and the share :math:`k_{ig}` of counts that are not dropped out, the mean at the
    shift s is

    .. math:: \ell\, e^{s_g} \frac1n \sum_i w_i \frac{k_{ig} E_{ig}}{\sum_h E_{ih} e^{s_h}}

    for weights :math:`w_i` of the cells, of mean 1.
    """

    def __init__(
        self, proportions: Tensor, kept: Tensor | None, size: Tensor | float, weight: Tensor
    ) -> None:
        self.proportions = proportions
        self.seen = proportions if kept is None else kept * proportions
        self.weight = weight[..., 0]
        self.scale = size / proportions.shape[-2]

    def at(self, shift: Tensor) -> Tensor:
        # Proportions do not change when a constant is added to the shift: exp() stays finite.
        fold = (shift - shift.amax(dim=-1, keepdim=True)).exp()
        totals = fold.unsqueeze(-2) @ self.proportions.mT
        return self.scale * fold * ((self.weight / totals) @ self.seen).squeeze(-2)


class CountLikelihood(Likelihood, ABC):
    """Base of the likelihoods of counts whose mean is size · rate."""

    def rate(self, heads: Tensor) -> Tensor:
        """Return expected expression of a cell of size one, shape ``(..., n_genes)``."""
        logits = heads[..., 0, :]
        if self.composition:
            return torch.softmax(logits, dim=-1)
        return torch.exp(logits.clamp(max=_MAX_LOG_RATE))

    def kept(self, heads: Tensor) -> Tensor | None:
        """Share of counts that are not dropped out, ``(..., n_genes)``; ``None`` for all."""
        return None

    def shifted_means(
        self, heads: Tensor, size: Tensor | float, weight: Tensor | None = None
    ) -> ShiftedMeans:
        """See :meth:`Likelihood.shifted_means`."""
        if not self.composition:
            return super().shifted_means(heads, size, weight)
        return _ComposedMeans(self.rate(heads), self.kept(heads), size, _weights(heads, weight))


class NegativeBinomialLikelihood(CountLikelihood):
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

    def kept(self, heads: Tensor) -> Tensor:
        """See :meth:`CountLikelihood.kept`."""
        return torch.sigmoid(-heads[..., 1, :])

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`."""
        rate = self.rate(heads)
        return ZeroInflatedNegativeBinomial(
            mu=size * rate, theta=self.log_theta.exp(), zi_logits=heads[..., 1, :], scale=rate
        )


class PoissonLikelihood(CountLikelihood):
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

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        mean = heads[..., 0, :]
        scale = softplus(self.raw_sigma) + self.sigma_floor
        return Normal(mean, scale.expand_as(mean), validate_args=False, normal_mu=mean)

    def shifted_means(
        self, heads: Tensor, size: Tensor | float, weight: Tensor | None = None
    ) -> ShiftedMeans:
        """See :meth:`Likelihood.shifted_means`; ``size`` is not used."""
        return AddedMeans.of(heads, weight)

    def initial_bias(self, mean_rate: Tensor) -> Tensor:
        """Mean expression itself."""
        return mean_rate


LIKELIHOODS: dict[str, type[Likelihood]] = {
    cls.name: cls
    for cls in (
        NegativeBinomialLikelihood,
        ZeroInflatedNegativeBinomialLikelihood,
        PoissonLikelihood,
        NormalLikelihood,
    )
}
