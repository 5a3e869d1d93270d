"""How good images of counterfactuals are.

Composition, reversibility and effectiveness are what any counterfactual must satisfy; as distances
they are those of Monteiro et al. (2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._population import _check_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def image_mse(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean squared error over the pixels of each image.

    Parameters
    ----------
    predicted, true
        Images on one scale, such as [0, 1]; images along the first axis.

    Returns
    -------
    Shape ``(n_images,)``.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    _check_shapes(predicted=predicted, true=true)
    return _per_image(np.square(_difference(predicted, true)))


def effectiveness(
    images: np.ndarray,
    requested: Mapping[str, np.ndarray],
    measure: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> dict[str, float]:
    """Mean absolute error between attributes asked for and attributes that images have.

    Parameters
    ----------
    images
        Predicted images, along the first axis.
    requested
        For each attribute the values that were asked for, shape ``(n_images,)``.
    measure
        For each attribute a function from images to values, shape ``(n_images,)``: a measurement,
        such as :func:`scvci.datasets.measure_thickness`, or a regressor trained on real images.

    Returns
    -------
    The error of each attribute, in its own units.

    Raises
    ------
    ValueError
        If an attribute lacks a function, or values are not one per image.
    """
    missing = sorted(set(requested) - set(measure))
    if missing:
        raise ValueError(f"measure has no function for {missing}; it has {sorted(measure)}.")
    errors = {}
    for name, values in requested.items():
        measured = np.asarray(measure[name](images))
        shapes = {"requested": np.shape(values), "measured": measured.shape}
        if set(shapes.values()) != {(len(images),)}:
            raise ValueError(
                f"Attribute {name!r} must have one value for each of {len(images)} images; got "
                f"shapes {shapes}."
            )
        errors[name] = float(np.abs(_difference(measured, values)).mean())
    return errors


def composition(
    images: np.ndarray, null: Callable[[np.ndarray], np.ndarray], *, cycles: int = 1
) -> np.ndarray:
    r"""Distance of images from what is left of them when nothing is changed.

    .. math:: \frac1P \sum_p |y_p - \left(f^{(k)}(y)\right)_p|

    over the P pixels, where f predicts an image under the attributes that it has, and is applied
    k times, each time to its own output.

    Parameters
    ----------
    images
        Factual images, along the first axis.
    null
        f: images to images, under each image's own attributes.
    cycles
        k, at least 1.

    Returns
    -------
    Mean absolute error over pixels after each of the cycles, shape ``(cycles, n_images)``. The
    first row is the error of a reconstruction.

    Raises
    ------
    ValueError
        If ``cycles`` is below 1, or f changes the shape of images.
    """
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1; got {cycles}.")
    distances, current = [], images
    for _ in range(cycles):
        current = null(current)
        _check_shapes(images=images, predicted=current)
        distances.append(_per_image(np.abs(_difference(images, current))))
    return np.array(distances)


def reversibility(
    images: np.ndarray,
    forward: Callable[[np.ndarray], np.ndarray],
    back: Callable[[np.ndarray], np.ndarray],
    *,
    cycles: int = 1,
) -> np.ndarray:
    """Distance of images from what is left of them when a change is undone.

    Parameters
    ----------
    images
        Factual images, along the first axis.
    forward
        Images under factual attributes to images under others.
    back
        Images under the other attributes to images under the factual ones.
    cycles
        Times to go forward and back, at least 1.

    Returns
    -------
    Mean absolute error over pixels after each of the cycles, shape ``(cycles, n_images)``.

    Raises
    ------
    ValueError
        If ``cycles`` is below 1, or an image comes back in another shape.
    """
    return composition(images, lambda current: back(forward(current)), cycles=cycles)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Unsigned integers would wrap around.
    return np.asarray(a, dtype=float) - np.asarray(b, dtype=float)


def _per_image(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).mean(axis=1)
