"""The VCI module for expression: how cells and treatments enter, and how they are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.nn.functional import one_hot

from scvci.data import _constants as keys

from ._backbones import BACKBONES
from ._covariate_terms import Counterfactuals, TermInputs, dense_critic, get_covariate_term
from ._doses import build_dose_response
from ._kinds import get_kind
from ._likelihoods import add_shift
from ._objective import ObjectiveModule, level_codes

if TYPE_CHECKING:
    import numpy as np
    from torch.distributions import Distribution, Normal

    from ._config import ModuleConfig
    from ._sizes import DataSizes


class VCIModule(ObjectiveModule):
    """Variational causal inference for expression.

    Parameters
    ----------
    sizes
        Sizes of the data.
    config
        Networks, likelihood and objective.
    composition
        Whether counts are scaled by the library size (``True``) or by a given size factor.
    """

    config: ModuleConfig
    treatment_codes: Tensor
    reference_size: Tensor
    feature_mean: Tensor
    continuous_mean: Tensor
    continuous_scale: Tensor

    def __init__(self, sizes: DataSizes, config: ModuleConfig, composition: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.config = config
        objective = config.objective
        kind = get_kind(BACKBONES, config.architecture.kind, "kind")
        self.backbone = kind(sizes, config.architecture)
        likelihood = kind.get_likelihood(config.likelihood)
        self.likelihood = likelihood(sizes.n_genes, composition=composition)
        self.encoder = self.backbone.build_encoder()
        self.decoder = self.backbone.build_decoder(self.likelihood.n_heads)
        self.response = build_dose_response(config.architecture.dose_response, sizes.doses)
        codes = self.backbone.codes.table
        n_code = codes.shape[1]
        term = get_covariate_term(objective.covariate_term)
        self.covariate_term = term(
            n_code, sizes.n_covariate, dense_critic(sizes.n_genes), objective.reduction
        )

        self.register_buffer("treatment_codes", torch.as_tensor(codes, dtype=torch.float32))
        self.register_buffer("reference_size", torch.tensor(1.0))
        self.register_buffer("feature_mean", torch.zeros(sizes.n_genes))
        self.register_buffer("continuous_mean", torch.zeros(sizes.n_continuous))
        self.register_buffer("continuous_scale", torch.ones(sizes.n_continuous))

    # -- inputs ---------------------------------------------------------------------------------

    def cell_size(self, tensors: dict[str, Tensor]) -> Tensor:
        """Library size or registered size factor, shape ``(n_cells, 1)``."""
        if keys.SIZE_FACTOR_KEY in tensors:
            return tensors[keys.SIZE_FACTOR_KEY]
        return tensors[REGISTRY_KEYS.X_KEY].sum(-1, keepdim=True)

    def at_reference_size(self, expression: Tensor, size: Tensor) -> Tensor:
        """Scale expression to the reference size; a cell without counts stays zero."""
        if not self.likelihood.uses_size:
            return expression
        return expression * (self.reference_size / torch.where(size > 0, size, 1.0))

    def features(self, scaled: Tensor) -> Tensor:
        """Turn expression at the reference size into what the encoder sees; same shape."""
        if self.likelihood.uses_size:
            scaled = torch.log1p(scaled)
        return scaled - self.feature_mean

    def covariate_codes(self, tensors: dict[str, Tensor], counterfactual: bool = False) -> Tensor:
        """One-hot categorical and standardised continuous covariates, ``(n_cells, n_covariate)``.

        A level that training did not see (code −1) is all zeros. Technical batches come last,
        with ``counterfactual`` those drawn for the targets, where there are any.
        """
        blocks = level_codes(tensors[keys.COVARIATES_KEY], self.sizes.n_levels)
        if self.sizes.n_continuous:
            values = tensors[keys.CONTINUOUS_KEY]
            blocks.append((values - self.continuous_mean) / self.continuous_scale)
        if self.sizes.n_batches:
            batch = tensors[keys.BATCH_KEY]
            if counterfactual:
                batch = tensors.get(keys.TARGET_BATCH_KEY, batch)
            blocks.append(one_hot(batch.long().squeeze(-1), self.sizes.n_batches).float())
        return torch.cat(blocks, dim=-1)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: object) -> dict:
        return {
            "expression": tensors[REGISTRY_KEYS.X_KEY],
            "size": self.cell_size(tensors),
            "treatment": tensors[keys.TREATMENT_KEY].long().squeeze(-1),
            "covariates": self.covariate_codes(tensors),
        }

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict, **kwargs: object
    ) -> dict:
        return {
            "z": inference_outputs[MODULE_KEYS.Z_KEY],
            "size": self.cell_size(tensors),
            "treatment": tensors[keys.TREATMENT_KEY].long().squeeze(-1),
            "covariates": self.covariate_codes(tensors),
        }

    def codes(self, treatment: Tensor) -> Tensor:
        """Codes of arms by index, with strengths in place of doses, ``(n_cells, n_code)``."""
        rows, members = self.treatment_codes[treatment], self.backbone.codes.members
        before, after = rows[:, : members.start], rows[:, members.stop :]
        return torch.cat([before, self.response(rows[:, members]), after], dim=-1)

    def _code_of(self, treatment: Tensor) -> tuple[Tensor, int | None]:
        """Codes of cells; of given codes also the most members of a cell."""
        if not treatment.is_floating_point():
            return self.codes(treatment), None
        members = treatment[:, self.backbone.codes.members]
        return treatment, int((members != 0).sum(-1).max())

    # -- the model ------------------------------------------------------------------------------

    def encode(self, features: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """See :meth:`ObjectiveModule.encode`."""
        return self.encoder(features, treatment, covariates)

    @auto_move_data
    def inference(
        self,
        expression: Tensor,
        size: Tensor,
        treatment: Tensor,
        covariates: Tensor,
        n_samples: int | None = None,
    ) -> dict[str, Tensor | Normal]:
        """Encode q(z | y, x, t) and draw from it (``n_samples=0``: no draw).

        Returns
        -------
        ``qz`` with batch shape ``(n_cells, n_latent)`` and ``z`` with shape
        ``(n_samples, n_cells, n_latent)``.
        """
        scaled = self.at_reference_size(expression, size)
        qz = self.encode(self.features(scaled), self.codes(treatment), covariates)
        z = qz.rsample((self.config.objective.n_samples if n_samples is None else n_samples,))
        return {MODULE_KEYS.Z_KEY: z, MODULE_KEYS.QZ_KEY: qz}

    @auto_move_data
    def linear_predictor(self, z: Tensor, treatment: Tensor, covariates: Tensor) -> Tensor:
        """Decode to the linear predictors that the likelihood makes a distribution of.

        Parameters
        ----------
        z
            Latent states, shape ``(..., n_cells, n_latent)``.
        treatment
            Index of the treatment, shape ``(n_cells,)``, or codes, shape ``(n_cells, n_code)``.
        covariates
            Covariate codes, shape ``(n_cells, n_covariate)``.

        Returns
        -------
        Shape ``(..., n_cells, n_heads, n_genes)``.
        """
        if not self.config.architecture.decoder_covariates:
            covariates = covariates[:, covariates.shape[-1] - self.sizes.n_batches :]
        code, order = self._code_of(treatment)
        return self.decoder(z, code, covariates, order)

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        size: Tensor,
        treatment: Tensor,
        covariates: Tensor,
        shift: Tensor | None = None,
    ) -> dict[str, Distribution]:
        """Decode p(y | z, t) for cells of the given size.

        Parameters
        ----------
        z, treatment, covariates
            See :meth:`linear_predictor`.
        size
            Library sizes or size factors, shape ``(n_cells, 1)``.
        shift
            Added to the linear predictor of the mean, shape ``(n_cells, n_genes)``.
        """
        heads = self.linear_predictor(z, treatment, covariates)
        if shift is not None:
            heads = add_shift(heads, shift)
        return {MODULE_KEYS.PX_KEY: self.likelihood.distribution(heads, size)}

    def counterfactual(self, tensors: dict[str, Tensor], qz: Normal) -> Counterfactuals:
        """See :meth:`ObjectiveModule.counterfactual`.

        y′ is the mean of the output distribution. In a batch without drawn targets every cell gets
        the control.
        """
        factual = tensors[keys.TREATMENT_KEY].long().squeeze(-1)
        target = tensors.get(keys.TARGET_KEY)
        target = (
            torch.full_like(factual, self.sizes.control)
            if target is None
            else target.long().squeeze(-1)
        )
        covariates = self.covariate_codes(tensors, counterfactual=True)
        size = self.reference_size.expand(len(target), 1)
        outputs = self.generative(qz.rsample(), size, target, covariates)
        expression = outputs[MODULE_KEYS.PX_KEY].mean
        stratum = tensors.get(keys.STRATUM_KEY, torch.zeros_like(target)[:, None])
        stratum = stratum.long().squeeze(-1)
        supported = tensors.get(keys.SUPPORTED_KEY)
        empty = expression.new_zeros(0)
        return Counterfactuals(
            features=self.features(expression),
            treatment=self.codes(target),
            covariates=covariates,
            expression=expression,
            pair=stratum * len(self.treatment_codes) + target,
            supported=(
                torch.zeros_like(target, dtype=torch.bool)
                if supported is None
                else supported.squeeze(-1) > 0
            ),
            reference_mean=tensors.get(keys.REFERENCE_MEAN_KEY, empty),
            reference_var=tensors.get(keys.REFERENCE_VAR_KEY, empty),
            reference=tensors.get(keys.REFERENCE_KEY),
        )

    def observed(self, tensors: dict[str, Tensor]) -> TermInputs:
        """See :meth:`ObjectiveModule.observed`."""
        inputs = self._get_inference_input(tensors)
        scaled = self.at_reference_size(inputs["expression"], inputs["size"])
        return TermInputs(
            features=self.features(scaled),
            treatment=self.codes(inputs["treatment"]),
            covariates=inputs["covariates"],
        )

    def weight_prior(self) -> Tensor | float:
        """See :meth:`ObjectiveModule.weight_prior`."""
        unit = self.sizes.n_genes if self.config.objective.reduction == "mean" else 1
        return self.decoder.penalty(self.response.penalty()) / unit

    @torch.inference_mode()
    def sample(
        self, tensors: dict[str, Tensor], n_samples: int = 1, target: Tensor | None = None
    ) -> Tensor:
        """Draw expression under ``target`` (default: the received treatment).

        Returns
        -------
        Shape ``(n_samples, n_cells, n_genes)``, on the CPU.
        """
        inputs = self._get_inference_input(tensors)
        z = self.inference(**inputs, n_samples=n_samples)[MODULE_KEYS.Z_KEY]
        if target is not None:
            inputs["treatment"] = target
        px = self.generative(z, inputs["size"], inputs["treatment"], inputs["covariates"])
        return px[MODULE_KEYS.PX_KEY].sample().cpu()

    def set_statistics(
        self,
        reference_size: float,
        mean_rate: np.ndarray,
        feature_mean: np.ndarray,
        continuous: tuple[np.ndarray, np.ndarray],
        effect_variances: tuple[float, ...] | None = None,
        n_cells: int = 1,
    ) -> None:
        """Set scales from the training cells, as far as the backbone uses them.

        Parameters
        ----------
        reference_size
            Size at which cells are compared (median of the training cells).
        mean_rate
            Mean expression of a cell of size one, shape ``(n_genes,)``; the decoder starts there.
        feature_mean
            Mean of the encoder's features, shape ``(n_genes,)``.
        continuous
            Mean and standard deviation of the continuous covariates.
        effect_variances, n_cells
            See :meth:`scvci.module.Decoder.start`.
        """
        self.reference_size.fill_(reference_size)
        feature_mean = self.backbone.feature_location(feature_mean)
        names = ("feature_mean", "continuous_mean", "continuous_scale")
        for name, value in zip(names, (feature_mean, *continuous), strict=True):
            self.get_buffer(name).copy_(torch.as_tensor(value, dtype=torch.float32))
        rate = torch.as_tensor(mean_rate, dtype=torch.float32, device=self.device)
        self.decoder.start(self.likelihood.initial_bias(rate), effect_variances, n_cells)
