"""Encoder q(z | y, x, t) and decoder p(y | z, t): a baseline plus a treatment effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import linear, one_hot, softplus

from ._backbone import Decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Smallest latent standard deviation, as in the reference implementation.
_MIN_SIGMA = 1e-3
#: Degrees of freedom of the prior of effects: heavy tails, as few genes respond strongly.
_PRIOR_DOF = 4.0
#: Smallest prior variance; an estimate of zero is not certainty.
_MIN_PRIOR_VARIANCE = 1e-3


def _mlp(n_in: int, n_hidden: int, n_layers: int, dropout: float = 0.0) -> nn.Module:
    """Hidden layers with layer normalisation.

    Layer rather than batch normalisation: factual and counterfactual cells pass through the same
    network and would otherwise mix their batch statistics.
    """
    return FCLayers(
        n_in,
        n_hidden,
        n_layers=n_layers,
        n_hidden=n_hidden,
        dropout_rate=dropout,
        use_batch_norm=False,
        use_layer_norm=True,
    )


class Encoder(nn.Module):
    """Gaussian q(z | y, x, t) with diagonal covariance.

    Parameters
    ----------
    n_genes, n_treatment, n_covariate
        Widths of the expression, of the treatment code and of the covariate code.
    n_latent, n_hidden, n_layers, dropout
        See :class:`~scvci.module.Architecture`.
    """

    def __init__(
        self,
        n_genes: int,
        n_treatment: int,
        n_covariate: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = _mlp(n_genes + n_treatment + n_covariate, n_hidden, n_layers, dropout)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.raw_sigma = nn.Linear(n_hidden, n_latent)

    def forward(self, features: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """Return q(z | y, x, t), batch shape ``(n_cells, n_latent)``."""
        hidden = self.body(torch.cat([features, treatment, covariates], dim=-1))
        return latent_normal(self.mean(hidden), self.raw_sigma(hidden))


class EffectDecoder(Decoder):
    r"""Linear predictor of p(y | z, t): a baseline plus a treatment effect.

    .. math:: \eta(z, x, t) = b(z, x) + \min(1, \textstyle\sum_i t_i)\,(m + x^\top s)
        + \sum_i t_i\,(a_i + e_i^\top x + h(z, i)) + v^\top r

    with :math:`t_i` the strength of member i (0 or 1 where there are no doses), so that the
    control has no effect by construction, and the effects of members add up. The log-fold changes
    are those of a mixed model: m of all treatments, once in a combination, a of each member, s of
    each covariate and e of each member with each covariate; h is the part that depends on the
    latent state. r holds what an arm does beyond its members: v has an entry for each combination,
    and for each dose but the largest. All start at zero. Without e, what is particular to the
    measured strata would go into h or a and be carried over to strata where the treatment was not
    measured.

    m, a, s, e and r have Student-t priors with 4 degrees of freedom and the scales of
    :meth:`set_prior`: small effects are shrunk, the few large ones hardly. The output weights of h
    have one, too, by which effects on single cells vary as much as effects on means do: where
    treatments do nothing on average, they do nothing to any cell.
    """

    prior_variance: Tensor
    interaction_variance: Tensor
    prior_weight: Tensor

    def __init__(
        self,
        n_latent: int,
        n_treatment: int,
        n_covariate: int,
        n_genes: int,
        n_heads: int,
        n_hidden: int,
        n_layers: int,
        interaction: bool = True,
        n_members: int | None = None,
        order: int = 1,
        n_batches: int = 0,
    ) -> None:
        super().__init__()
        self.shape = (n_heads, n_genes)
        #: Members, whose strengths are the first columns of the treatment code.
        self.n_members = n_treatment if n_members is None else n_members
        #: Most members of an arm.
        self.order = order
        self.baseline = _mlp(n_latent + n_covariate, n_hidden, n_layers)
        self.baseline_out = nn.Linear(n_hidden, n_heads * n_genes)
        #: Covariates that effects depend on; batches, the last columns, change the baseline only.
        self.n_covariate = n_covariate - n_batches
        n, n_arms, n_covariate = self.n_members, n_treatment - self.n_members, self.n_covariate
        #: Features of the mixed model in blocks: m, a, s, e and r.
        self.blocks = effect_blocks(n, n_covariate, n_arms)
        self.effects = nn.Linear(sum(self.blocks), n_heads * n_genes, bias=False)
        nn.init.zeros_(self.effects.weight)
        self.interaction: nn.Module | None = None
        if interaction:
            self.interaction = _mlp(n_latent + n, n_hidden, 1)
            self.interaction_out = nn.Linear(n_hidden, n_heads * n_genes)
            nn.init.zeros_(self.interaction_out.weight)
            nn.init.zeros_(self.interaction_out.bias)
        self.register_buffer("prior_variance", torch.ones(sum(self.blocks)))
        self.register_buffer("interaction_variance", torch.tensor(1.0))
        self.register_buffer("prior_weight", torch.tensor(0.0))

    def forward(
        self, z: Tensor, treatment: Tensor, covariates: Tensor, order: int | None = None
    ) -> Tensor:
        """See :meth:`Decoder.forward`."""
        members, beyond = treatment.split(
            (self.n_members, treatment.shape[-1] - self.n_members), dim=-1
        )
        # What all treatments have in common, as that of the procedure, comes once.
        common = members.sum(dim=-1, keepdim=True).clamp(max=1)
        # What does not depend on z is computed once for all latent draws.
        own = covariates[..., : self.n_covariate]
        effect = self.effects(self._design(common, members, beyond, own))
        covariates = covariates.expand(*z.shape[:-1], covariates.shape[-1])
        eta = self.baseline_out(self.baseline(torch.cat([z, covariates], dim=-1)))
        if self.interaction is not None:
            effect = effect + self._interact(z, members, order or self.order)
        return (eta + effect).unflatten(-1, self.shape)

    def _interact(self, z: Tensor, members: Tensor, order: int) -> Tensor:
        """Sum of the members' effects that depend on the latent state."""
        assert self.interaction is not None
        out = self.interaction_out
        hidden = z.new_zeros(out.in_features)
        for i in members.abs().topk(order, dim=-1).indices.unbind(dim=-1):
            code = one_hot(i, self.n_members).to(z.dtype)
            code = code.expand(*z.shape[:-1], self.n_members)
            strength = members.gather(-1, i.unsqueeze(-1))
            hidden = hidden + self.interaction(torch.cat([z, code], dim=-1)) * strength
        return linear(hidden, out.weight) + out.bias * members.sum(dim=-1, keepdim=True)

    def _design(
        self, common: Tensor, members: Tensor, beyond: Tensor, covariates: Tensor
    ) -> Tensor:
        """Features of the mixed model, all zero for the control."""
        crossed = (members.unsqueeze(-1) * covariates.unsqueeze(-2)).flatten(-2)
        return torch.cat([common, members, common * covariates, crossed, beyond], dim=-1)

    def penalty(self, further: Tensor | float = 0.0) -> Tensor:
        """See :meth:`Decoder.penalty`."""
        total = _student_penalty(self.effects.weight, self.prior_variance)
        if self.interaction is not None:
            out = self.interaction_out
            # Half of the normalised, rectified hidden units are on: h has the variance of a sum
            # over half the width.
            by_unit = self.interaction_variance * 2 / out.in_features
            total = total + _student_penalty(out.weight, by_unit)
            total = total + _student_penalty(out.bias, self.interaction_variance)
        return (total + further) * self.prior_weight

    @torch.no_grad()
    def start(self, bias: Tensor, effect_variances: Sequence[float] | None, n_cells: int) -> None:
        """See :meth:`Decoder.start`; without variances, effects have no prior."""
        self.baseline_out.bias[: self.shape[1]] = bias
        if effect_variances is not None:
            self.set_prior(effect_variances, n_cells)

    def set_prior(self, variances: Sequence[float], n_cells: int) -> None:
        """Scale the priors.

        Parameters
        ----------
        variances
            Of m, a, s, e and r over genes, on the scale of the linear predictor.
        n_cells
            Training cells, over which the objective is averaged.
        """
        total = sum(variances[:4])
        scales = [max(v, _MIN_PRIOR_VARIANCE) for v in variances]
        self.interaction_variance.fill_(max(total, _MIN_PRIOR_VARIANCE))
        sizes = torch.tensor(self.blocks)
        self.prior_variance.copy_(torch.tensor(scales).repeat_interleave(sizes))
        self.prior_weight.fill_(1 / n_cells)


def effect_blocks(n_members: int, n_covariate: int, n_beyond: int) -> tuple[int, ...]:
    """Widths of m, a, s, e and r, the blocks of the mixed model's features.

    Parameters
    ----------
    n_members, n_covariate, n_beyond
        Members, covariates that effects depend on, and terms of arms beyond their members.
    """
    return (1, n_members, n_covariate, n_members * n_covariate, n_beyond)


def _student_penalty(weight: Tensor, variance: Tensor) -> Tensor:
    """Negative log-density of Student's t, up to a constant, summed over weights."""
    squared = weight.square() / (_PRIOR_DOF * variance)
    return 0.5 * (_PRIOR_DOF + 1) * torch.log1p(squared).sum()


def latent_normal(mean: Tensor, raw_sigma: Tensor) -> Normal:
    """Gaussian with a positive spread; torch's validation would wait for the GPU at each call."""
    return Normal(mean, softplus(raw_sigma) + _MIN_SIGMA, validate_args=False)
