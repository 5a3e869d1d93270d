r"""Kinds of the covariate-specific term :math:`-\log \hat p(y' \mid x, t')`.

A kind compares constructed counterfactuals with real cells that share the covariates x and really
received t′. All kinds share one interface: ``forward`` returns a value per cell; kinds with a
critic (a network that is trained in alternation) also have ``critic_loss``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ._kinds import get_kind
from ._terms import reduce_genes

#: Builds a critic from the width of the codes that it sees and the number of its outputs.
type CriticBuilder = Callable[[int, int], nn.Module]

#: Smallest variance of a gene's expression: keeps genes that never vary from dominating.
_MIN_VARIANCE = 1e-2


@dataclass(frozen=True)
class TermInputs:
    """What a critic sees of cells.

    Attributes
    ----------
    features
        Expression on the encoder's scale, shape ``(n_cells, n_genes)``.
    treatment
        Treatment codes, shape ``(n_cells, n_treatment)``.
    covariates
        Covariate codes, shape ``(n_cells, n_covariate)``.
    """

    features: Tensor
    treatment: Tensor
    covariates: Tensor


@dataclass(frozen=True)
class Counterfactuals(TermInputs):
    """Constructed counterfactuals, and the real cells with which they are compared.

    Attributes
    ----------
    expression
        Expected expression at the reference size, shape ``(n_cells, n_genes)``.
    pair
        Index of (x, t′), shape ``(n_cells,)``.
    supported
        Whether real cells of (x, t′) exist, shape ``(n_cells,)``.
    reference_mean, reference_var
        Moments of the real cells of (x, t′) at the reference size, ``(n_cells, n_genes)``.
    reference
        Real cells of (x, t′) at the reference size, ``(n_cells, n_reference, n_genes)``, where
        the kind needs them.
    """

    expression: Tensor
    pair: Tensor
    supported: Tensor
    reference_mean: Tensor
    reference_var: Tensor
    reference: Tensor | None = None


class CovariateTerm(nn.Module):
    """Base of the kinds.

    Parameters
    ----------
    n_treatment, n_covariate
        Widths of the treatment and covariate codes.
    build_critic
        Builds a critic's network from the width of the codes that it sees beside the features, and
        its outputs. It is called with features ``(n_cells, n_features)`` and codes
        ``(n_cells, n_codes)``, and returns ``(n_cells, n_outputs)``.
    reduction
        Whether genes are summed or averaged.
    """

    #: Name by which users choose the kind.
    name: ClassVar[str]
    #: Whether single reference cells have to be drawn.
    needs_reference: ClassVar[bool] = False
    #: Whether a network of its own is trained in alternation.
    has_critic: ClassVar[bool] = False

    def __init__(
        self,
        n_treatment: int,
        n_covariate: int,
        build_critic: CriticBuilder,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, cells: Counterfactuals) -> Tensor:
        """Return the term per cell, ``(n_cells,)``; rows without reference cells mean nothing."""
        raise NotImplementedError

    def critic_loss(self, real: TermInputs, generated: Counterfactuals) -> Tensor:
        """Loss of the critic, a scalar."""
        raise NotImplementedError(f"The {self.name!r} term has no critic.")


class MomentMatch(CovariateTerm):
    r"""Match the mean of each (x, t′), not each cell to the mean.

    For the n counterfactuals of a pair in the batch, with :math:`d_i = \hat y'_i - \bar y_{x,t'}`,

    .. math:: \frac12 \sum_g \frac{1}{s_g^2} \frac{(\sum_i d_{ig})^2 - \sum_i d_{ig}^2}{n (n - 1)},

    the unbiased estimate of the squared difference of the means in units of the real cells'
    variance. Unlike the paper's kernel it does not penalise differences between cells: its
    expectation is zero whenever the means agree, whatever the spread. A pair with a single cell in
    the batch contributes nothing.
    """

    name = "moments"

    def forward(self, cells: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.forward`."""
        difference = cells.expression - cells.reference_mean
        same = (cells.pair[:, None] == cells.pair[None, :]).to(difference.dtype)
        n = same.sum(1, keepdim=True)
        squared_bias = (same @ difference).square() - same @ difference.square()
        squared_bias = squared_bias / (n * (n - 1)).clamp(min=1)
        variance = cells.reference_var.clamp(min=_MIN_VARIANCE)
        return 0.5 * reduce_genes(squared_bias / variance, self.reduction) * (n > 1).squeeze(1)


class KernelMatch(CovariateTerm):
    r"""The paper's kernel match (``match`` in the reference implementation).

    .. math:: -\frac1K \sum_k \log \mathcal N(\hat y'; y_k, h^2), \quad h = 1,

    summed or averaged over genes, the variance being :math:`h^2 + 10^{-8} / 2`. It equals
    :math:`\frac12 \log 2 \pi h^2` plus half the squared distance to the mean of the matched cells
    plus half their variance (in units of h²), so it pulls each cell towards the group's mean.
    """

    name = "kernel"
    needs_reference = True
    bandwidth: ClassVar[float] = 1.0

    def forward(self, cells: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.forward`."""
        assert cells.reference is not None
        double_variance = 2 * self.bandwidth**2 + 1e-8
        squared = (cells.expression.unsqueeze(1) - cells.reference).square()
        log_norm = math.log(self.bandwidth) + 0.5 * math.log(2 * math.pi)
        return reduce_genes(squared / double_variance + log_norm, self.reduction).mean(1)


class EnergyMatch(CovariateTerm):
    r"""Energy distance between counterfactuals and real cells of the same (x, t′).

    .. math:: 2 E\|\hat y' - y\| - E\|\hat y' - \hat y''\|

    with Euclidean distances on log1p expression, over the batch's counterfactuals of a pair and
    its drawn reference cells; the third term of the distance does not depend on the model.
    Expected expression has no measurement noise while real cells have, so the minimum is a
    somewhat over-dispersed counterfactual: a distribution-level alternative, not the default.
    """

    name = "energy"
    needs_reference = True

    def forward(self, cells: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.forward`."""
        assert cells.reference is not None
        generated = torch.log1p(cells.expression.clamp(min=0))
        reference = torch.log1p(cells.reference.clamp(min=0))
        to_real = torch.cdist(generated.unsqueeze(1), reference).mean((1, 2))
        same = (cells.pair[:, None] == cells.pair[None, :]).float()
        same = same - torch.eye(len(same), device=same.device)
        between = (torch.cdist(generated, generated) * same).sum(1) / same.sum(1).clamp(min=1)
        # A distance grows with the root of the number of genes; the bound's terms with the number.
        n_genes = generated.shape[1]
        scale = math.sqrt(n_genes) if self.reduction == "sum" else 1 / math.sqrt(n_genes)
        return (2 * to_real - between) * scale


class Discriminator(CovariateTerm):
    r"""Adversarial surrogate (``discriminate`` in the reference implementation).

    The critic D(y, t, x) tells real from constructed cells with the loss
    :math:`\frac12 [E\,\mathrm{softplus}(-D(y, t, x)) + E\,\mathrm{softplus}(D(\hat y', t', x))]`;
    the term is :math:`\mathrm{softplus}(-D(\hat y', t', x))`.
    """

    name = "discriminator"
    has_critic = True

    def __init__(
        self,
        n_treatment: int,
        n_covariate: int,
        build_critic: CriticBuilder,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(n_treatment, n_covariate, build_critic, reduction)
        self.critic = build_critic(n_treatment + n_covariate, 1)

    def _logit(self, cells: TermInputs) -> Tensor:
        codes = torch.cat([cells.treatment, cells.covariates], dim=-1)
        return self.critic(cells.features, codes).squeeze(-1)

    def forward(self, cells: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.forward`."""
        return softplus(-self._logit(cells))

    def critic_loss(self, real: TermInputs, generated: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.critic_loss`.

        Only cells whose (x, t′) has real cells count, as in the term: there is nothing that the
        others could be told from.
        """
        supported = generated.supported.float()
        constructed = softplus(self._logit(generated)) * supported
        return 0.5 * (
            softplus(-self._logit(real)).mean() + constructed.sum() / supported.sum().clamp(min=1)
        )


class TreatmentClassifier(CovariateTerm):
    r"""Treatment predictor c(y, x) (``classify`` in the reference implementation).

    The critic learns the treatment code of real cells by mean squared error; the term is
    :math:`\max(\mathrm{MSE}(c(\hat y', x), t') - 0.05, 0) + 0.05`. It is trained along with the
    model, in alternation, instead of in a separate run.
    """

    name = "classifier"
    has_critic = True
    margin: ClassVar[float] = 0.05

    def __init__(
        self,
        n_treatment: int,
        n_covariate: int,
        build_critic: CriticBuilder,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(n_treatment, n_covariate, build_critic, reduction)
        self.critic = build_critic(n_covariate, n_treatment)

    def _error(self, cells: TermInputs) -> Tensor:
        predicted = self.critic(cells.features, cells.covariates)
        return (predicted - cells.treatment).square().mean(-1)

    def forward(self, cells: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.forward`."""
        return (self._error(cells) - self.margin).clamp(min=0) + self.margin

    def critic_loss(self, real: TermInputs, generated: Counterfactuals) -> Tensor:
        """See :meth:`CovariateTerm.critic_loss`; generated cells are not used."""
        return self._error(real).mean()


class DenseCritic(nn.Module):
    """Critic of features without a shape: two hidden layers with layer normalisation."""

    def __init__(self, n_in: int, n_out: int, n_hidden: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_in, n_hidden),
            nn.LayerNorm(n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_hidden),
            nn.LayerNorm(n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_out),
        )

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Return the outputs, ``(n_cells, n_out)``."""
        return self.body(torch.cat([features, codes], dim=-1))


def dense_critic(n_features: int) -> CriticBuilder:
    """Build critics of features without a shape.

    Parameters
    ----------
    n_features
        Width of the features.
    """
    return lambda n_codes, n_out: DenseCritic(n_features + n_codes, n_out)


COVARIATE_TERMS: dict[str, type[CovariateTerm]] = {
    cls.name: cls
    for cls in (MomentMatch, KernelMatch, EnergyMatch, Discriminator, TreatmentClassifier)
}


def get_covariate_term(name: str) -> type[CovariateTerm]:
    """Look up a kind by name.

    Parameters
    ----------
    name
        Its name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    return get_kind(COVARIATE_TERMS, name, "covariate_term")
