"""Coupling of counterfactuals: what a cell keeps beyond its latent state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution

#: Share of a gene's overdispersion that is taken for the cell's own in every world. Data of cells
#: that are seen in one world each cannot tell it; at a half, the squared error that a wrong guess
#: adds is the same whether all of it stays or nothing does, a quarter of what a guess of all or
#: nothing can add.
_OWN_SHARE = 0.5


@torch.no_grad()
def keep_rates(
    factual: Distribution,
    target: Distribution,
    outcome: Tensor,
    *,
    draw: bool = False,
    composition: bool = False,
) -> Distribution:
    r"""Return the target's distribution, with each gene's rate moved to what the cell shows of it.

    A negative binomial is a Poisson count whose rate μ is multiplied by a frailty of mean 1 and
    variance :math:`\alpha = 1/\theta`. A share ρ = 1/2 of that variance, a factor :math:`u_p`, is
    taken for the cell's own in every world; the rest is drawn anew. The best linear prediction
    from the count y is

    .. math:: \operatorname{E}[u_p \mid y] = 1 + \rho\, \frac{y - \mu}{\theta + \mu},

    which hardly moves where counts are few or hardly overdispersed. Counting noise is not kept.

    Parameters
    ----------
    factual, target
        The cell's expression in this world and in the other, of one kind, batch shape
        ``(..., n_cells, n_genes)``. Only negative binomials, zero-inflated or not, have frailties;
        other targets are returned as they are.
    outcome
        Measured counts, shape ``(n_cells, n_genes)``.
    draw
        Whether the distribution is drawn from: the factor is then drawn too, from a gamma
        distribution of its mean and variance given y, so that over cells draws are as dispersed
        as measured counts. Otherwise the mean is meant.
    composition
        Whether rates are proportions: those of a cell then still add up to its library size.
    """
    if not isinstance(factual, NegativeBinomial) or not isinstance(target, NegativeBinomial):
        return target
    mean, theta, share = factual.mu, factual.theta, _OWN_SHARE
    known = (outcome - mean) / (theta + mean)
    if isinstance(factual, ZeroInflatedNegativeBinomial):
        # A lost count tells nothing of the rate.
        known = known * (1 - _lost(factual, outcome))
    own = 1 + share * known
    if draw:
        variance = share / theta * (1 - share * mean / (theta + mean))
        own = torch._standard_gamma(own.square() / variance) * variance / own
    rate = target.mu * own
    if composition:
        total = rate.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(rate.dtype).tiny)
        rate = rate * (target.mu.sum(dim=-1, keepdim=True) / total)
    rest = (theta + share) / (1 - share) if draw else target.theta
    if isinstance(target, ZeroInflatedNegativeBinomial):
        return ZeroInflatedNegativeBinomial(
            mu=rate, theta=rest, zi_logits=target.zi_logits, validate_args=False
        )
    return NegativeBinomial(mu=rate, theta=rest, validate_args=False)


def _lost(distribution: ZeroInflatedNegativeBinomial, outcome: Tensor) -> Tensor:
    """Probability that a count is zero because it was lost."""
    mean, theta = distribution.mu, distribution.theta
    log_zero = theta * torch.log(theta / (theta + mean))
    lost = torch.sigmoid(distribution.zi_logits - log_zero)
    return torch.where(outcome > 0, 0.0, lost)


@torch.no_grad()
def expect_with_residuals(factual: Distribution, target: Distribution, outcome: Tensor) -> Tensor:
    r"""Return the expected counterfactual of a cell, given its outcome.

    Counts are points of a Poisson process that all worlds share: at a higher rate a cell keeps its
    molecules and gains some, at a lower rate it keeps each of them with a probability that is the
    ratio of the rates. With the mean μ in this world, μ′ in the other, and y observed,

    .. math:: \operatorname{E}[Y' \mid y] = y \min\Big(1, \frac{\mu'}{\mu}\Big)
        + \max(0, \mu' - \mu) \operatorname{E}[u \mid y].

    The frailty u multiplies the cell's rate of the gene in every world: 1 for a Poisson, and
    :math:`u \mid y \sim \text{Gamma}(\theta + y, \theta + \mu)` for a negative binomial. A normal
    outcome keeps its deviation from the mean, :math:`y + \mu' - \mu`.

    These are abduction, action and prediction (Pearl, "Causality", 2009, section 7.1) with
    monotone noise. How worlds share noise cannot be learned from data in which each cell is seen
    in one world only.

    Parameters
    ----------
    factual, target
        The cell's expression in this world and in the other: both negative binomial, both Poisson
        or both normal (scvi-tools' distributions), batch shape ``(..., n_cells, n_genes)``.
    outcome
        Measured expression, shape ``(n_cells, n_genes)``.

    Returns
    -------
    Shape ``(..., n_cells, n_genes)``; where both worlds are one, the outcome itself.

    Raises
    ------
    TypeError
        If the distributions are of another kind.
    """
    if isinstance(factual, Normal):
        return outcome + target.mean - factual.mean
    kept, added, shape, rate = _couple(factual, target, outcome)
    return outcome * kept + added * shape / rate


@torch.no_grad()
def sample_with_residuals(factual: Distribution, target: Distribution, outcome: Tensor) -> Tensor:
    """Draw counterfactuals of a cell, whose mean :func:`expect_with_residuals` returns.

    Parameters
    ----------
    factual, target, outcome
        As there.

    Returns
    -------
    Shape ``(..., n_cells, n_genes)``: whole numbers for counts. Of a normal outcome nothing is
    left to draw, so that draws differ by their latent states only.

    Raises
    ------
    TypeError
        If the distributions are of another kind.
    """
    if isinstance(factual, Normal):
        return expect_with_residuals(factual, target, outcome)
    kept, added, shape, rate = _couple(factual, target, outcome)
    if isinstance(factual, NegativeBinomial):
        added = added * torch._standard_gamma(shape) / rate
    return torch.binomial(outcome.expand_as(kept), kept) + torch.poisson(added)


def _couple(
    factual: Distribution, target: Distribution, outcome: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Share of counts that are kept, rate of added ones, and shape and rate of the frailty."""
    zero_inflated = isinstance(factual, ZeroInflatedNegativeBinomial)
    if zero_inflated or not isinstance(factual, NegativeBinomial | Poisson):
        raise TypeError(
            f"A {type(factual).__name__} has no molecules to keep. Use the likelihood 'nb', "
            "'poisson' or 'normal'."
        )
    mean = factual.mean
    kept = (target.mean / mean.clamp(min=torch.finfo(mean.dtype).tiny)).clamp(max=1.0)
    added = (target.mean - mean).clamp(min=0.0)
    if isinstance(factual, Poisson):
        one = torch.ones_like(mean)
        return kept, added, one, one
    return kept, added, factual.theta + outcome, factual.theta + factual.mu
