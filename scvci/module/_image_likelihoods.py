"""Likelihoods of pixels by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch.distributions import Bernoulli

from ._likelihoods import Likelihood, NormalLikelihood

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution


class ImageLikelihood(Likelihood):
    """Base of the likelihoods of pixels, which have no library size."""

    #: Smallest and largest value that a pixel can have.
    support: ClassVar[tuple[float, float]]


class BernoulliLikelihood(ImageLikelihood):
    """Bernoulli of pixels on [0, 1], their logit the predictor; values between are allowed."""

    name = "bernoulli"
    is_count = False
    uses_size = False
    support = (0.0, 1.0)

    def distribution(self, heads: Tensor, size: Tensor) -> Distribution:
        """See :meth:`Likelihood.distribution`; ``size`` is not used."""
        return Bernoulli(logits=heads[..., 0, :], validate_args=False)


class PixelNormalLikelihood(NormalLikelihood, ImageLikelihood):
    """Gaussian with one standard deviation per pixel."""

    support = (-torch.inf, torch.inf)


IMAGE_LIKELIHOODS: dict[str, type[ImageLikelihood]] = {
    cls.name: cls for cls in (BernoulliLikelihood, PixelNormalLikelihood)
}
