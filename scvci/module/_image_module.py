"""The VCI module for images: the same objective, other networks, treatments with values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import one_hot

from scvci.data import _constants as keys

from ._covariate_terms import Counterfactuals, TermInputs, get_covariate_term
from ._image_likelihoods import IMAGE_LIKELIHOODS
from ._image_networks import ImageCritic, ImageDecoder, ImageEncoder
from ._kinds import get_kind
from ._objective import ObjectiveModule, level_codes

if TYPE_CHECKING:
    import numpy as np
    from torch.distributions import Distribution

    from ._config import ImageConfig
    from ._sizes import ImageSizes


class ImageModule(ObjectiveModule):
    """Variational causal inference for images.

    Treatments are attributes with a value for each cell: numbers, or levels of a category.

    Parameters
    ----------
    sizes
        Sizes of the data.
    config
        Networks, likelihood and objective.
    encoder, decoder
        Networks to use in place of the convolutional ones. The encoder takes images
        ``(n_cells, channels, height, width)``, treatment codes ``(n_cells, n_treatment)`` and
        covariate codes ``(n_cells, n_covariate)``, and returns a
        :class:`~torch.distributions.Normal` of batch shape ``(n_cells, n_latent)``. The decoder
        takes latent states ``(n_cells, n_latent)`` and the same codes, and returns linear
        predictors ``(n_cells, 1, channels, height, width)``: logits of pixels (Bernoulli), or
        their means (normal).
    """

    config: ImageConfig
    attribute_mean: Tensor
    attribute_scale: Tensor

    def __init__(
        self,
        sizes: ImageSizes,
        config: ImageConfig,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.config = config
        architecture, objective = config.architecture, config.objective
        likelihood = get_kind(IMAGE_LIKELIHOODS, config.likelihood, "likelihood")
        self.likelihood = likelihood(sizes.n_pixels)
        n_codes = sizes.n_treatment + sizes.n_covariate
        self.encoder = encoder or ImageEncoder(sizes.shape, n_codes, architecture)
        self.decoder = decoder or ImageDecoder(
            sizes.shape, n_codes, self.likelihood.n_heads, architecture
        )
        term = get_covariate_term(objective.covariate_term)
        if not term.has_critic:
            raise ValueError(
                f"covariate_term={objective.covariate_term!r} compares with several cells of the "
                "same treatment, which attributes with values do not have; choose "
                "'discriminator' or 'classifier'."
            )
        self.covariate_term = term(
            sizes.n_treatment,
            sizes.n_covariate,
            lambda n_codes, n_out: ImageCritic(sizes.shape, n_codes, n_out, architecture),
            objective.reduction,
        )
        self.register_buffer("attribute_mean", torch.zeros(len(sizes.n_values)))
        self.register_buffer("attribute_scale", torch.ones(len(sizes.n_values)))

    def check_networks(self) -> None:
        """Pass two empty images through networks that may be the user's own.

        Raises
        ------
        ValueError
            If one of them fails, or returns something of another kind or shape.
        """
        sizes, n = self.sizes, 2
        codes = torch.zeros(n, sizes.n_treatment), torch.zeros(n, sizes.n_covariate)
        shape = (n, self.likelihood.n_heads, *sizes.shape)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                qz = self.encoder(torch.zeros(n, *sizes.shape), *codes)
                if not isinstance(qz, Normal) or qz.loc.ndim != 2 or len(qz.loc) != n:
                    raise ValueError(
                        f"encoder= returned {_described(qz)}; it must return a Normal of batch "
                        "shape (n_cells, n_latent)."
                    )
                heads = self.decoder(qz.loc, *codes)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"encoder= or decoder= failed on {n} images of shape {sizes.shape} with "
                f"{sizes.n_treatment} treatment and {sizes.n_covariate} covariate codes: {error}"
            ) from error
        finally:
            self.train(training)
        if not isinstance(heads, Tensor) or tuple(heads.shape) != shape:
            raise ValueError(
                f"decoder= returned {_described(heads)}; it must return a tensor of shape "
                f"(n_cells, heads, channels, height, width), here {shape}."
            )

    # -- inputs ---------------------------------------------------------------------------------

    def treatment_codes(self, values: Tensor) -> Tensor:
        """Standardise numbers and code levels, shape ``(n_cells, n_treatment)``.

        Parameters
        ----------
        values
            Numbers, and codes of levels, shape ``(n_cells, n_attributes)``.
        """
        numbers = (values - self.attribute_mean) / self.attribute_scale
        blocks = [
            one_hot(values[:, i].long(), n).float() if n else numbers[:, i : i + 1]
            for i, n in enumerate(self.sizes.n_values)
        ]
        return torch.cat(blocks, dim=-1)

    def covariate_codes(self, tensors: dict[str, Tensor]) -> Tensor:
        """One-hot covariates, ``(n_cells, n_covariate)``; a new level (code −1) is all zeros."""
        return torch.cat(level_codes(tensors[keys.COVARIATES_KEY], self.sizes.n_levels), dim=-1)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: object) -> dict:
        return {
            "pixels": tensors[REGISTRY_KEYS.X_KEY],
            "treatment": self.treatment_codes(tensors[keys.TREATMENT_KEY]),
            "covariates": self.covariate_codes(tensors),
        }

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict, **kwargs: object
    ) -> dict:
        return {
            "z": inference_outputs[MODULE_KEYS.Z_KEY],
            "treatment": self.treatment_codes(tensors[keys.TREATMENT_KEY]),
            "covariates": self.covariate_codes(tensors),
        }

    # -- the model ------------------------------------------------------------------------------

    def encode(self, features: Tensor, treatment: Tensor, covariates: Tensor) -> Normal:
        """See :meth:`ObjectiveModule.encode`; features are flat images."""
        return self.encoder(features.unflatten(1, self.sizes.shape), treatment, covariates)

    @auto_move_data
    def inference(
        self,
        pixels: Tensor,
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
        qz = self.encode(pixels, treatment, covariates)
        z = qz.rsample((self.config.objective.n_samples if n_samples is None else n_samples,))
        return {MODULE_KEYS.Z_KEY: z, MODULE_KEYS.QZ_KEY: qz}

    @auto_move_data
    def generative(
        self, z: Tensor, treatment: Tensor, covariates: Tensor
    ) -> dict[str, Distribution]:
        """Decode p(y | z, t), batch shape ``(n_draws, n_cells, n_pixels)``.

        Parameters
        ----------
        z
            Latent states, shape ``(n_draws, n_cells, n_latent)``.
        treatment, covariates
            Codes, shapes ``(n_cells, n_treatment)`` and ``(n_cells, n_covariate)``.
        """
        n_draws = len(z)
        heads = self.decoder(
            z.flatten(0, 1), treatment.repeat(n_draws, 1), covariates.repeat(n_draws, 1)
        )
        # Draws and cells are one axis to a network, and so are the axes of an image here.
        heads = heads.flatten(2).unflatten(0, (n_draws, -1))
        return {MODULE_KEYS.PX_KEY: self.likelihood.distribution(heads, heads.new_ones(1))}

    def counterfactual(self, tensors: dict[str, Tensor], qz: Normal) -> Counterfactuals:
        """See :meth:`ObjectiveModule.counterfactual`.

        y′ is the mean of the output distribution. In a batch without drawn targets every cell
        keeps its own treatment.
        """
        values = tensors.get(keys.TARGET_KEY, tensors[keys.TREATMENT_KEY])
        treatment, covariates = self.treatment_codes(values), self.covariate_codes(tensors)
        pixels = self.generative(qz.rsample()[None], treatment, covariates)
        image = pixels[MODULE_KEYS.PX_KEY].mean[0]
        supported = tensors.get(keys.SUPPORTED_KEY, torch.zeros_like(values[:, :1]))
        empty = image.new_zeros(0)
        return Counterfactuals(
            features=image,
            treatment=treatment,
            covariates=covariates,
            expression=image,
            pair=empty,
            supported=supported.squeeze(-1) > 0,
            reference_mean=empty,
            reference_var=empty,
        )

    def observed(self, tensors: dict[str, Tensor]) -> TermInputs:
        """See :meth:`ObjectiveModule.observed`."""
        inputs = self._get_inference_input(tensors)
        return TermInputs(inputs["pixels"], inputs["treatment"], inputs["covariates"])

    def set_statistics(self, mean: np.ndarray, scale: np.ndarray) -> None:
        """Set the scale of attributes that are numbers.

        Parameters
        ----------
        mean, scale
            Mean and standard deviation of the training cells, shape ``(n_attributes,)``.
        """
        for name, value in (("attribute_mean", mean), ("attribute_scale", scale)):
            self.get_buffer(name).copy_(torch.as_tensor(value, dtype=torch.float32))


def _described(value: object) -> str:
    """Type, and shape if there is one, of what a network returned."""
    shape = getattr(value, "shape", getattr(value, "batch_shape", None))
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
