"""What a backbone is: the networks, and everything else that depends on their form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from ._kinds import get_kind
from ._likelihoods import LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._config import Architecture
    from ._growth import Growth
    from ._likelihoods import Likelihood
    from ._sizes import DataSizes

#: Fewest epochs of a training of default length.
_MIN_EPOCHS = 10


@dataclass(frozen=True)
class TrainingDefaults:
    """How a backbone is trained where the user does not say.

    Attributes
    ----------
    batch_size
        Cells per batch; ``None`` for ``scvi.settings.batch_size``.
    max_epochs
        Most epochs.
    n_steps
        Steps of the optimiser to aim for, by which large data get fewer epochs; ``None`` for
        ``max_epochs`` whatever the number of cells.
    plan
        Arguments of :class:`~scvci.train.VCITrainingPlan` that differ from its own defaults.
    """

    batch_size: int | None = None
    max_epochs: int = 400
    n_steps: int | None = 4000
    plan: Mapping[str, Any] = field(default_factory=dict)

    def n_epochs(self, n_cells: int, batch_size: int) -> int:
        """Epochs to train for.

        Parameters
        ----------
        n_cells
            Training cells.
        batch_size
            Cells per batch.
        """
        if self.n_steps is None:
            return self.max_epochs
        n_batches = max(1, n_cells // batch_size)
        return int(np.clip(self.n_steps // n_batches, _MIN_EPOCHS, self.max_epochs))


@dataclass(frozen=True)
class ArmCodes:
    """How arms enter the networks.

    Attributes
    ----------
    table
        Code of each arm, shape ``(n_arms, n_code)``.
    members
        Columns that hold the relative doses of the members, in their order. The networks see
        them as strengths, see :class:`~scvci.module.DoseResponse`, and the others as they are.
    """

    table: np.ndarray
    members: slice


class Decoder(nn.Module, ABC):
    """Decoder p(y | z, t): its linear predictor, and what is known of its weights beforehand."""

    @abstractmethod
    def forward(
        self, z: Tensor, treatment: Tensor, covariates: Tensor, order: int | None = None
    ) -> Tensor:
        """Return the linear predictors, shape ``(..., n_heads, n_genes)``.

        Parameters
        ----------
        z
            Latent states, shape ``(..., n_cells, n_latent)``.
        treatment
            Treatment codes, shape ``(n_cells, n_code)``.
        covariates
            Covariate codes, shape ``(n_cells, n_covariate)``.
        order
            Most members of a treatment, by default that of the training data.
        """

    def penalty(self, further: Tensor | float = 0.0) -> Tensor | float:
        """Negative log-prior in nats per cell, up to a constant; by default there is no prior.

        Parameters
        ----------
        further
            Negative log-prior in nats of weights outside the decoder that share its scale, those
            of the dose response.
        """
        return 0.0

    def start(self, bias: Tensor, effect_variances: Sequence[float] | None, n_cells: int) -> None:
        """Start from statistics of the training cells; by default they are not used.

        Parameters
        ----------
        bias
            Linear predictor of the mean cell, shape ``(n_genes,)``.
        effect_variances
            Variances over genes of the parts of the mixed model of effects, m, a, s, e and r of
            :class:`~scvci.module._networks.EffectDecoder`; ``None`` where they are unknown.
        n_cells
            Training cells, over which the objective is averaged.
        """


class Backbone(ABC):
    """Base of the backbones: builds the networks and whatever depends on their form.

    A backbone sees a cell as a flat vector of features and returns linear predictors as flat
    vectors. One for outcomes with a shape of their own, as images have, restores the shape inside
    its networks; nothing outside depends on it.

    Parameters
    ----------
    sizes
        Sizes of the data.
    architecture
        Sizes and inputs of the networks.
    """

    #: Name by which users choose the backbone.
    name: ClassVar[str]
    #: How it is trained where the user does not say.
    training: ClassVar[TrainingDefaults] = TrainingDefaults()
    #: Likelihoods behind the names that users choose.
    likelihoods: ClassVar[Mapping[str, type[Likelihood]]] = LIKELIHOODS

    def __init__(self, sizes: DataSizes, architecture: Architecture) -> None:
        self.sizes = sizes
        self.architecture = architecture
        self.codes = self.encode_arms(sizes.doses)

    @classmethod
    def get_likelihood(cls, name: str) -> type[Likelihood]:
        """Look up the likelihood behind a name.

        Parameters
        ----------
        name
            Name that the user chose.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        return get_kind(cls.likelihoods, name, "likelihood")

    @staticmethod
    @abstractmethod
    def encode_arms(doses: np.ndarray) -> ArmCodes:
        """Code the arms.

        Parameters
        ----------
        doses
            Relative doses, shape ``(n_arms, n_members)``.
        """

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """Build q(z | y, x, t).

        It takes features ``(n_cells, n_genes)``, treatment codes ``(n_cells, n_code)`` and
        covariate codes ``(n_cells, n_covariate)``, and returns a
        :class:`~torch.distributions.Normal` of batch shape ``(n_cells, n_latent)``.
        """

    @abstractmethod
    def build_decoder(self, n_heads: int) -> Decoder:
        """Build p(y | z, t).

        Parameters
        ----------
        n_heads
            Linear predictors per gene, as many as the likelihood asks for.
        """

    def feature_location(self, mean: np.ndarray) -> np.ndarray:
        """Return what is subtracted from the encoder's features, by default their mean.

        Parameters
        ----------
        mean
            Mean of the features of the training cells, shape ``(n_genes,)``.
        """
        return mean

    def growth(self, old: Self) -> dict[str, Growth]:
        """Parameters that grow with the data, by name; by default none can.

        Parameters
        ----------
        old
            Backbone of fewer treatments, covariate levels or batches, of the same kind and
            architecture.
        """
        return {}
