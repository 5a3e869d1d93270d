"""Digits of random thickness and intensity, as images whose every counterfactual is computable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import expit

from ._strokes import grey_values, set_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence


def morpho_mnist(
    images: np.ndarray,
    labels: Sequence | np.ndarray | None = None,
    *,
    seed: int = 0,
    thickness: np.ndarray | float | None = None,
    intensity: np.ndarray | float | None = None,
    n_jobs: int | None = None,
) -> AnnData:
    r"""Give plain digits a random thickness, and an intensity that depends on it.

    .. math::

        t &= 0.5 + g, \quad g \sim \mathrm{Gamma}(\text{shape } 10, \text{rate } 5) \\
        i &= 64 + 191\, \sigma(0.5\, \epsilon + 2 t - 5), \quad \epsilon \sim N(0, 1)

    with :math:`\sigma` the logistic function, t in pixels and i a grey value; the image is
    :func:`set_attributes` of the digit under both. This is the Morpho-MNIST of Pawlowski et al.
    (2020), with the morphology of Castro et al. (2019). About 15 images per second and core.

    Digits are passed as arrays, such as MNIST's from
    ``sklearn.datasets.fetch_openml("mnist_784")`` or ``torchvision.datasets.MNIST``.

    Parameters
    ----------
    images
        Digits as drawn, bright on dark, shape ``(n_images, height, width)`` or
        ``(n_images, 1, height, width)``: unsigned 8-bit integers, or floats on [0, 1].
    labels
        What the digits are, one per image.
    seed
        Seed of the random numbers, which are the same whatever attributes are given.
    thickness
        Instead of a random thickness: a positive one, or one per image. Intensity depends on it.
    intensity
        Instead of a random intensity: a grey value in (0, 255], or one per image.
    n_jobs
        Number of processes, as in scikit-learn; 1 by default.

    Returns
    -------
    An AnnData without genes: ``obsm["image"]``, ``float32`` on [0, 1], shape
    ``(n_images, 1, height, width)``; ``obsm["digit"]``, the images as they were given, ``uint8``;
    ``obs["thickness"]`` (pixels), ``obs["intensity"]`` (grey value) and, with labels,
    ``obs["digit"]``.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        As in :func:`set_attributes`, or if labels are not one per image.

    Examples
    --------
    The same digits, all of thickness 4, with the intensities that they had:

    >>> adata = scvci.datasets.morpho_mnist(digits, labels)
    >>> thick = scvci.datasets.morpho_mnist(
    ...     digits, labels, thickness=4, intensity=adata.obs["intensity"]
    ... )

    Without ``intensity``, and with the same seed, intensities follow the new thickness.
    """
    digits = grey_values(images)[:, None]
    n = len(digits)
    if labels is not None and np.shape(labels) != (n,):
        raise ValueError(
            f"labels must be one for each of {n} images; got shape {np.shape(labels)}."
        )
    rng = np.random.default_rng(seed)
    drawn = 0.5 + rng.gamma(10, 1 / 5, size=n)
    noise = rng.standard_normal(n)
    obs = pd.DataFrame(index=pd.RangeIndex(n).astype(str))
    obs["thickness"] = drawn if thickness is None else np.asarray(thickness, dtype=float)
    expected = 64 + 191 * expit(0.5 * noise + 2 * obs["thickness"] - 5)
    obs["intensity"] = expected if intensity is None else np.asarray(intensity, dtype=float)
    if labels is not None:
        obs["digit"] = pd.Categorical(np.asarray(labels))
    image = set_attributes(
        digits / 255,
        thickness=obs["thickness"].to_numpy(),
        intensity=obs["intensity"].to_numpy(),
        n_jobs=n_jobs,
    )
    return AnnData(obs=obs, obsm={"image": image, "digit": digits.round().astype(np.uint8)})
