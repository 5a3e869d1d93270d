"""The VCI objective: its three terms, whatever the outcome is and however treatments enter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import one_hot

from scvci.data import _constants as keys

from ._terms import individual_term, latent_divergence

if TYPE_CHECKING:
    from torch.distributions import Distribution

    from ._config import Objective
    from ._covariate_terms import Counterfactuals, CovariateTerm, TermInputs


class _HasObjective(Protocol):
    """Settings of a module, of which the objective is one group."""

    @property
    def objective(self) -> Objective: ...


class ObjectiveModule(BaseModuleClass, ABC):
    """Base of the modules: the objective of cells whose outcome a subclass encodes and decodes.

    A subclass says how a batch is encoded and decoded (``inference`` and ``generative``, as
    scvi-tools has them), how counterfactuals are constructed, and what a critic sees of real
    cells. Everything about the three terms is here.
    """

    config: _HasObjective
    covariate_term: CovariateTerm

    @abstractmethod
    def encode(self, features: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """Encode q(z | y, x, t), batch shape ``(n_cells, n_latent)``.

        Parameters
        ----------
        features
            Outcomes as the networks see them, shape ``(n_cells, n_features)``.
        treatment, covariates
            Codes, shapes ``(n_cells, n_treatment)`` and ``(n_cells, n_covariate)``.
        """

    @abstractmethod
    def counterfactual(self, tensors: dict[str, Tensor], qz: Normal) -> Counterfactuals:
        """Construct y′ under the batch's targets t′.

        Parameters
        ----------
        tensors
            The batch.
        qz
            Its q(z | y, x, t), of which one further draw is decoded with t′.
        """

    @abstractmethod
    def observed(self, tensors: dict[str, Tensor]) -> TermInputs:
        """Return what a critic sees of the real cells of a batch.

        Parameters
        ----------
        tensors
            The batch.
        """

    def weight_prior(self) -> Tensor | float:
        """Return the negative log-prior of the weights in the loss's units; by default none."""
        return 0.0

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Distribution],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Compute the VCI objective: three weighted terms, each also reported by its name.

        The covariate-specific term is averaged over the cells whose (x, t′) has real cells; in a
        batch without any it is zero. With a standard normal prior and no weight on that term no
        counterfactual is constructed, and the term is zero too. Priors of the weights are added,
        where there are any.
        """
        objective = self.config.objective
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        individual = individual_term(
            generative_outputs[MODULE_KEYS.PX_KEY],
            tensors[REGISTRY_KEYS.X_KEY],
            objective.reduction,
        )
        cells = None
        if objective.covariate or objective.prior == "counterfactual":
            cells = self.counterfactual(tensors, qz)
        if cells is not None and objective.prior == "counterfactual":
            prior = self.encode(cells.features, cells.treatment, cells.covariates)
        else:
            location = torch.zeros_like(qz.loc)
            prior = Normal(location, torch.ones_like(location), validate_args=False)
        divergence = latent_divergence(qz, prior, objective.kl)
        covariate = individual.new_zeros(())
        if cells is not None and keys.SUPPORTED_KEY in tensors:
            per_cell = torch.where(cells.supported, self.covariate_term(cells), 0.0)
            covariate = per_cell.sum() / cells.supported.sum().clamp(min=1)
        loss = (
            objective.individual * individual.mean()
            + objective.covariate * covariate
            + kl_weight * objective.divergence * divergence.mean()
            + self.weight_prior()
        )
        return LossOutput(
            loss=loss,
            reconstruction_loss=individual,
            kl_local=divergence,
            extra_metrics={
                "individual": individual.mean().detach(),
                "covariate": covariate.detach(),
                "divergence": divergence.mean().detach(),
            },
        )

    def critic_loss(self, tensors: dict[str, Tensor]) -> Tensor:
        """Loss of the covariate-specific term's critic; the generator gets no gradient."""
        with torch.no_grad():
            inputs = self._get_inference_input(tensors)
            qz = self.inference(**inputs, n_samples=0)[MODULE_KEYS.QZ_KEY]
            generated = self.counterfactual(tensors, qz)
            real = self.observed(tensors)
        return self.covariate_term.critic_loss(real, generated)


def level_codes(codes: Tensor, n_levels: list[int]) -> list[Tensor]:
    """One-hot codes of each categorical covariate; a level that is not known is all zeros.

    Parameters
    ----------
    codes
        Index of the level, −1 where it is not known, shape ``(n_cells, n_covariates)``.
    n_levels
        Levels of each covariate.
    """
    known = codes.long() + 1
    return [one_hot(known[:, i], n + 1)[:, 1:].float() for i, n in enumerate(n_levels)]
