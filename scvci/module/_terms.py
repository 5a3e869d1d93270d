"""The individual-specific likelihood and the latent divergence of the objective."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence


def reduce_genes(values: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """Sum (nats per cell, the bound's units) or average (reference implementation) over genes."""
    return values.sum(-1) if reduction == "sum" else values.mean(-1)


def individual_term(
    py: Distribution, expression: Tensor, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    r"""Negative individual-specific likelihood :math:`-E_q \log p(y \mid z, t)`.

    Parameters
    ----------
    py
        Distribution with batch shape ``(n_samples, n_cells, n_genes)``.
    expression
        Observed expression, shape ``(n_cells, n_genes)``.
    reduction
        Whether genes are summed or averaged.

    Returns
    -------
    Shape ``(n_cells,)``, averaged over the latent draws.
    """
    return -reduce_genes(py.log_prob(expression), reduction).mean(0)


def latent_divergence(
    factual: Normal, counterfactual: Normal, form: Literal["exact", "paper"] = "exact"
) -> Tensor:
    r"""Divergence :math:`KL[q(z \mid y, x, t) \| q(z \mid y', x, t')]` of diagonal Gaussians.

    Parameters
    ----------
    factual, counterfactual
        Batch shape ``(n_cells, n_latent)``.
    form
        ``"exact"``, or ``"paper"``: the reference implementation's
        :math:`\frac12 \sum_d [(\mu_1 - \mu_2)^2 + \sigma_1^2 / \sigma_2^2 - 1
        - \log(\sigma_1^2 / \sigma_2^2)]`.

    Returns
    -------
    Nats per cell, summed over latent dimensions, shape ``(n_cells,)``.
    """
    if form == "exact":
        return kl_divergence(factual, counterfactual).sum(-1)
    ratio = (factual.scale / counterfactual.scale).square()
    gap = (factual.loc - counterfactual.loc).square()
    return 0.5 * (gap + ratio - 1 - torch.log(ratio)).sum(-1)
