"""Coupling of counterfactuals: a cell keeps the noise that its latent state does not explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution


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
            f"A {type(factual).__name__} has no residuals to keep. Use the likelihood 'nb', "
            "'poisson' or 'normal'."
        )
    mean = factual.mean
    kept = (target.mean / mean.clamp(min=torch.finfo(mean.dtype).tiny)).clamp(max=1.0)
    added = (target.mean - mean).clamp(min=0.0)
    if isinstance(factual, Poisson):
        one = torch.ones_like(mean)
        return kept, added, one, one
    return kept, added, factual.theta + outcome, factual.theta + factual.mu
