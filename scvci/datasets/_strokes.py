"""Thickness and brightness of strokes in grey images: measured, and set to given values."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from sklearn.utils.parallel import Parallel, delayed

if TYPE_CHECKING:
    from collections.abc import Callable

#: Fine pixels along the side of a pixel. Morphology works on fine pixels.
_SCALE = 16
#: The published images are blurred by a third of a pixel whenever their resolution changes.
_BLUR = 2 * _SCALE / 6
#: Dilation of the published images is by disks that are this many fine pixels wider along each
#: axis and cut to their square. There the disk is reduced from a larger one by a blur, and
#: whatever is not exactly 0 counts.
_WIDENING = 1.69
#: Grey values are truncated to whole ones. What is short of a whole one by rounding only is whole.
_ROUNDING = 1e-6
_FULL = 255.0


def measure_thickness(images: np.ndarray, *, n_jobs: int | None = None) -> np.ndarray:
    """Mean thickness of the strokes of each image.

    An image is brought to 16 times its resolution and split at half of its range of grey values.
    Its thickness is twice the mean distance from the medial axis of the bright part to the edge
    (Castro et al. 2019). About 20 images per second and core.

    Parameters
    ----------
    images
        Grey images, shape ``(n_images, height, width)`` or ``(n_images, 1, height, width)``:
        unsigned 8-bit integers, or floats on [0, 1].
    n_jobs
        Number of processes, as in scikit-learn; 1 by default.

    Returns
    -------
    Thickness in pixels, shape ``(n_images,)``. An image of one grey value has no stroke, and
    thickness 0.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        If images have another shape or type, or values outside of their range.
    """
    _need_skimage("measure_thickness")
    return np.array(_parallel(n_jobs)(delayed(_thickness)(i) for i in grey_values(images)))


def measure_intensity(images: np.ndarray) -> np.ndarray:
    """Brightness of the strokes of each image.

    The median of the pixels that are at least half-way from the darkest to the brightest one.

    Parameters
    ----------
    images
        Grey images, shape ``(n_images, height, width)`` or ``(n_images, 1, height, width)``:
        unsigned 8-bit integers, or floats on [0, 1].

    Returns
    -------
    Intensity as a grey value between 0 and 255, whatever the type of the images; shape
    ``(n_images,)``.

    Raises
    ------
    ValueError
        If images have another shape or type, or values outside of their range.
    """
    return np.array([_intensity(image) for image in grey_values(images)])


def set_attributes(
    images: np.ndarray,
    *,
    thickness: np.ndarray | float | None = None,
    intensity: np.ndarray | float | None = None,
    n_jobs: int | None = None,
) -> np.ndarray:
    """Give the strokes of images a thickness and an intensity.

    At 16 times the resolution strokes are dilated or eroded by a disk of half the difference
    between the thickness asked for and the one measured. At the images' own resolution grey values
    are multiplied so that :func:`measure_intensity` gives the intensity asked for, clipped to
    [0, 255] and truncated to whole ones, as in a file (Pawlowski et al. 2020).

    Since dilation and erosion lose shape, the counterfactual of a digit is made from the digit as
    it was drawn, and not from an image whose thickness was set before.

    Parameters
    ----------
    images
        Images to start from, shape ``(n_images, height, width)`` or
        ``(n_images, 1, height, width)``: unsigned 8-bit integers, or floats on [0, 1].
    thickness
        In pixels: one value, or one per image. By default strokes keep their shape.
    intensity
        Grey value in (0, 255]: one, or one per image. By default nothing is multiplied; strokes
        whose thickness was set have no shades left and are white.
    n_jobs
        Number of processes, as in scikit-learn; 1 by default.

    Returns
    -------
    Images as ``float32`` on [0, 1], in whole steps of 1/255, of the same shape.

    Raises
    ------
    ImportError
        If a thickness is given and scikit-image is not installed.
    ValueError
        If images have another shape or type or values outside of their range, if an attribute is
        not in its range or not of the number of images, or if nothing of an image is left at the
        thickness asked for.

    Examples
    --------
    >>> adata = scvci.datasets.morpho_mnist(digits)
    >>> thicker = scvci.datasets.set_attributes(
    ...     digits, thickness=adata.obs["thickness"] + 1, intensity=adata.obs["intensity"]
    ... )
    """
    if thickness is not None:
        _need_skimage("set_attributes")
    greys = grey_values(images)
    n = len(greys)
    targets = zip(
        greys,
        _one_per_image("thickness", thickness, n, np.inf),
        _one_per_image("intensity", intensity, n, _FULL),
        strict=True,
    )
    changed = _parallel(n_jobs)(delayed(_set)(*target) for target in targets)
    blank = [i for i, image in enumerate(changed) if image is None]
    if blank:
        raise ValueError(
            f"Nothing is left of {len(blank)} images, the first at position {blank[0]}: they were "
            "blank, or their strokes vanish at the thickness asked for. Leave them out, or ask "
            "for a larger thickness."
        )
    return (np.array(changed).reshape(np.shape(images)) / _FULL).astype(np.float32)


def grey_values(images: np.ndarray) -> np.ndarray:
    """Images as grey values between 0 and 255, shape ``(n_images, height, width)``."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(
            "Images must have shape (n_images, height, width) or (n_images, 1, height, width); "
            f"got {images.shape}. Reshape them; strokes are measured in grey images only."
        )
    if images.dtype == np.uint8:
        return images.astype(float)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Images must be uint8 (0 to 255) or floats on [0, 1]; got {images.dtype}. Convert "
            "them with images.astype('uint8') if their grey values are 0 to 255."
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Images of floats must be on [0, 1]; got values from {low:g} to {high:g}. Divide "
            "grey values by 255, and clip predictions."
        )
    return _FULL * images.astype(float)


def _need_skimage(function: str) -> None:
    try:
        import skimage  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{function} needs scikit-image. Install it with pip install 'scvci[images]'."
        ) from error


def _parallel(n_jobs: int | None) -> Callable[..., list]:
    return Parallel(n_jobs=n_jobs)


def _one_per_image(
    name: str, values: np.ndarray | float | None, n: int, largest: float
) -> np.ndarray | list[None]:
    """One value per image, or None for each."""
    if values is None:
        return [None] * n
    values = np.asarray(values, dtype=float)
    if values.shape not in ((), (n,)):
        raise ValueError(
            f"{name} must be one value or one for each of {n} images; got shape {values.shape}."
        )
    wrong = values[~((values > 0) & (values <= largest) & np.isfinite(values))]
    if wrong.size:
        rule = "positive" if np.isinf(largest) else f"in (0, {largest:g}]"
        raise ValueError(f"{name} must be {rule}; got {wrong[0]:g} ({wrong.size} such values).")
    return np.broadcast_to(values, n)


def _half_maximum(grey: np.ndarray) -> np.ndarray:
    return grey >= (grey.min() + grey.max()) / 2


def _intensity(grey: np.ndarray) -> float:
    return float(np.median(grey[_half_maximum(grey)]))


def _truncate(grey: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(grey, 0, _FULL) + _ROUNDING)


def _thickness(grey: np.ndarray) -> float:
    return 0.0 if grey.min() == grey.max() else _axis_thickness(_strokes(grey))


def _set(grey: np.ndarray, thickness: float | None, intensity: float | None) -> np.ndarray | None:
    """Grey values with the attributes, or None if the image is blank or becomes so."""
    if grey.min() == grey.max():
        return None
    if thickness is not None:
        strokes = _strokes(grey)
        change = thickness - _axis_thickness(strokes)
        radius = int(_SCALE * abs(change) / 2)
        # Erosion of the strokes is dilation of the background.
        strokes = _dilate(strokes, radius) if change >= 0 else ~_dilate(~strokes, radius)
        rows, columns = (_coarsening(size) for size in grey.shape)
        grey = _truncate(_FULL * (rows @ strokes @ columns.T))
    if not grey.any():
        return None
    if intensity is not None:
        grey = _truncate(grey * (intensity / _intensity(grey)))
    return grey


def _strokes(grey: np.ndarray) -> np.ndarray:
    """Fine pixels on strokes."""
    rows, columns = (_refining(size) for size in grey.shape)
    fine = np.clip(rows @ grey @ columns.T, grey.min(), grey.max())
    return _half_maximum(_truncate(gaussian_filter(fine, _BLUR, mode="reflect")))


def _axis_thickness(strokes: np.ndarray) -> float:
    from skimage.morphology import medial_axis

    # The axis takes time by the pixel, and a margin of one says where strokes end.
    rows, columns = (np.flatnonzero(strokes.any(axis=axis)) for axis in (1, 0))
    part = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Pixels at equal distances are removed in random order; the seed makes it the same each time.
    axis, distance = medial_axis(np.pad(part, 1), return_distance=True, rng=0)
    return float(2 * distance[axis].mean() / _SCALE)


def _dilate(strokes: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by a widened disk.

    A pixel is within the disk of a stroke if in some row, ``shift`` away, a stroke is no farther
    along the row than the disk is wide there: one comparison per row of the disk, where general
    dilation needs one per pixel of it.
    """
    if radius == 0:
        return strokes
    height, width = strokes.shape
    place = np.arange(width)
    never = 2 * (height + width)
    left = np.maximum.accumulate(np.where(strokes, place, -never), axis=1)
    right = np.minimum.accumulate(np.where(strokes, place, never)[:, ::-1], axis=1)[:, ::-1]
    distance = np.minimum(place - left, right - place).astype(np.int16)
    dilated = np.zeros_like(strokes)
    for shift in range(max(-radius, 1 - height), min(radius, height - 1) + 1):
        beyond = max(abs(shift) - _WIDENING, 0)
        reach = min(radius, int(np.sqrt(radius**2 - beyond**2) + _WIDENING))
        source = distance[max(shift, 0) : height + min(shift, 0)]
        dilated[max(-shift, 0) : height + min(-shift, 0)] |= source <= reach
    return dilated


@cache
def _refining(size: int) -> np.ndarray:
    """Bicubic interpolation along one axis, shape ``(fine pixels, pixels)``."""
    return _resampling(size, _SCALE * size)


@cache
def _coarsening(size: int) -> np.ndarray:
    """Blur and bicubic interpolation along one axis, shape ``(pixels, fine pixels)``."""
    blur = gaussian_filter1d(np.eye(_SCALE * size), _BLUR, axis=0, mode="reflect")
    return _resampling(_SCALE * size, size) @ blur


def _resampling(n_from: int, n_to: int) -> np.ndarray:
    from skimage.transform import AffineTransform, warp

    # `resize` interpolates by splines that overshoot more than what made the published images.
    step = n_from / n_to
    stretch = AffineTransform(matrix=np.array([[1, 0, 0], [0, step, (step - 1) / 2], [0, 0, 1]]))
    return warp(
        np.eye(n_from), stretch, output_shape=(n_to, n_from), order=3, mode="reflect", clip=False
    )
