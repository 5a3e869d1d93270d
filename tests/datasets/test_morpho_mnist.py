"""Strokes of known thickness and brightness, and digits made of them."""

from __future__ import annotations

import sys

import anndata
import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.special import expit

from scvci.datasets import measure_intensity, measure_thickness, morpho_mnist, set_attributes
from scvci.datasets._strokes import _coarsening, _dilate, _refining

pytest.importorskip("skimage", reason="needs scikit-image: pip install scvci[images]")


def bar(width: int, grey: int = 255) -> np.ndarray:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[4:24, 14 - width // 2 : 14 - width // 2 + width] = grey
    return image


def ring(width: float, radius: float = 8.0) -> np.ndarray:
    """A ring with smooth edges, so that its thickness is known to a part of a pixel."""
    y, x = np.mgrid[:28, :28] - 13.5
    distance = np.abs(np.hypot(x, y) - radius)
    return (255 * np.clip(width / 2 - distance + 0.5, 0, 1)).astype(np.uint8)


@pytest.fixture
def digits():
    return np.stack([ring(3), bar(3), ring(2, 6), bar(5)])


def test_thickness_of_strokes_of_known_width():
    assert measure_thickness(ring(3)[None]) == pytest.approx(3, abs=0.1)
    assert measure_thickness(ring(4.5)[None]) == pytest.approx(4.5, abs=0.1)
    # The medial axis of a bar has short branches into its corners, where it is thinner.
    thick = measure_thickness(np.stack([bar(2), bar(4)]))
    np.testing.assert_allclose(thick, [2, 4], atol=0.45)
    assert (thick < [2.05, 4.05]).all()


def test_intensity_is_the_median_of_bright_pixels():
    image = bar(4, grey=200)
    image[4:8] //= 2  # at half of the maximum: a fifth of the bar
    image[20:24] //= 4  # below it
    assert measure_intensity(image[None]) == 200
    image[4:18] = np.where(image[4:18] > 0, 120, 0)
    assert measure_intensity(image[None]) == 120
    assert measure_intensity((image / 255)[None]) == pytest.approx(120)


def test_shapes_and_types_of_images_do_not_matter(digits):
    thickness = measure_thickness(digits)
    np.testing.assert_array_equal(measure_thickness(digits[:, None]), thickness)
    np.testing.assert_allclose(measure_thickness((digits / 255).astype("f4")), thickness, atol=0.1)
    # Neither does a brightness of all, but for truncation.
    np.testing.assert_allclose(measure_thickness(digits // 2), thickness, atol=0.1)
    blank = np.full((1, 28, 28), 7, dtype=np.uint8)
    assert measure_thickness(blank) == 0
    assert measure_intensity(blank) == 7


def test_resolution_is_changed_without_a_shift():
    rows = _refining(28)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    middle = (np.arange(448) + 0.5) / 16 - 0.5
    inside = slice(32, -32)
    np.testing.assert_allclose((rows @ np.arange(28))[inside], middle[inside], atol=1e-12)
    back = _coarsening(28) @ rows @ np.arange(28)
    np.testing.assert_allclose(back[4:-4], np.arange(4, 24), atol=1e-3)


@pytest.mark.parametrize("radius", [1, 5, 12])
def test_dilation_is_that_by_the_widened_disk(rng, radius):
    strokes = rng.random((40, 50)) < 0.005
    strokes[0, 3] = strokes[-1, -1] = True
    offset = np.maximum(np.abs(np.arange(-radius, radius + 1)) - 1.69, 0)
    disk = offset[:, None] ** 2 + offset**2 <= radius**2
    np.testing.assert_array_equal(_dilate(strokes, radius), binary_dilation(strokes, disk))


def test_attributes_are_as_asked_for(digits):
    rings = digits[[0, 2]]
    thickness, intensity = np.array([2.0, 3.5]), np.array([80.0, 250.0])
    images = set_attributes(rings, thickness=thickness, intensity=intensity)
    assert images.dtype == np.float32
    np.testing.assert_allclose(measure_intensity(images), intensity, atol=1)
    np.testing.assert_allclose(measure_thickness(images), thickness, atol=0.3)
    np.testing.assert_allclose(images * 255, np.round(images * 255), atol=1e-4)
    white = set_attributes(rings, thickness=thickness)
    assert (measure_intensity(white) > 225).all()


def test_intensity_alone_multiplies(digits):
    images = set_attributes(digits[:, None], intensity=100)
    expected = np.floor(digits[:, None] * (100 / measure_intensity(digits))[:, None, None, None])
    np.testing.assert_allclose(images * 255, np.clip(expected, 0, 255), atol=1e-4)
    np.testing.assert_allclose(set_attributes(digits), digits / 255, atol=1e-7)


def test_the_mechanism(digits):
    adata = morpho_mnist(digits, list("0101"), seed=3)
    rng = np.random.default_rng(3)
    thickness = 0.5 + rng.gamma(10, 0.2, 4)
    intensity = 64 + 191 * expit(0.5 * rng.standard_normal(4) + 2 * thickness - 5)
    np.testing.assert_allclose(adata.obs["thickness"], thickness)
    np.testing.assert_allclose(adata.obs["intensity"], intensity)
    assert list(adata.obs["digit"]) == list("0101")
    np.testing.assert_array_equal(adata.obsm["digit"][:, 0], digits)
    expected = set_attributes(digits, thickness=thickness, intensity=intensity)
    np.testing.assert_array_equal(adata.obsm["image"][:, 0], expected)
    assert adata.shape == (4, 0)


def test_counterfactuals_share_the_noise(digits):
    """Intensity follows a given thickness, with the noise that each digit had."""
    fact = morpho_mnist(digits, seed=1)
    again = morpho_mnist(digits, seed=1, thickness=fact.obs["thickness"])
    np.testing.assert_array_equal(again.obsm["image"], fact.obsm["image"])

    def noise(obs):
        share = (obs["intensity"] - 64) / 191
        return np.log(share / (1 - share)) - 2 * obs["thickness"] + 5

    thick = morpho_mnist(digits, seed=1, thickness=3.0)
    np.testing.assert_allclose(noise(thick.obs), noise(fact.obs))
    fixed = morpho_mnist(digits, seed=2, thickness=fact.obs["thickness"], intensity=90)
    assert (fixed.obs["intensity"] == 90).all()


def test_images_are_kept_in_a_file(digits, tmp_path):
    adata = morpho_mnist(digits, np.arange(4))
    adata.write_h5ad(tmp_path / "digits.h5ad")
    back = anndata.read_h5ad(tmp_path / "digits.h5ad")
    assert back.obsm["image"].shape == (4, 1, 28, 28)
    np.testing.assert_array_equal(back.obsm["image"], adata.obsm["image"])
    assert list(back[2:].obs["digit"]) == [2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: measure_thickness(d[0]), r"\(28, 28\).*Reshape"),
        (lambda d: measure_intensity(d.astype(int)), r"int64.*astype\('uint8'\)"),
        (lambda d: measure_intensity(d.astype(float)), r"\[0, 1\]; got values from 0 to 255"),
        (lambda d: measure_intensity(np.full((1, 4, 4), np.nan)), "got values from nan"),
        (lambda d: set_attributes(d, thickness=[1.0]), r"each of 4 images; got shape \(1,\)"),
        (lambda d: set_attributes(d, thickness=-1), "thickness must be positive; got -1"),
        (lambda d: set_attributes(d, intensity=300), r"intensity must be in \(0, 255\]; got 300"),
        (
            lambda d: set_attributes(np.stack([d[0], ring(2.5)]), thickness=0.05),
            "Nothing is left of 1 images, the first at position 1",
        ),
        (lambda d: set_attributes(0 * d), "Nothing is left of 4 images"),
        (lambda d: morpho_mnist(d, [1, 2]), r"labels must be one for each of 4.*\(2,\)"),
    ],
)
def test_what_cannot_be_done_is_said(digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(digits)


def test_scikit_image_is_asked_for(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    for function in (morpho_mnist, measure_thickness):
        with pytest.raises(ImportError, match=r"pip install 'scvci\[images\]'"):
            function(digits)


@pytest.mark.real
def test_published_images_are_made_again(real_data):
    """Row i of the published test images is digit i of MNIST's."""
    published, plain = np.load(real_data / "morpho_mnist.npz"), np.load(real_data / "mnist.npz")
    rows = slice(0, 20)
    images = set_attributes(
        plain["test_images"][rows],
        thickness=published["test_thickness"][rows],
        intensity=published["test_intensity"][rows],
    )
    error = np.mean((images - published["test_image"][rows] / 255) ** 2, axis=(1, 2))
    assert error.mean() < 3e-5
    # Up to the last grey value, and to pixels at equal distances from two edges: they were removed
    # at random when these were published, which can move the radius by a sixteenth of a pixel.
    assert np.mean(error < 1e-6) > 0.8


@pytest.mark.real
def test_published_counterfactuals_start_from_the_factual_image(real_data):
    published = np.load(real_data / "morpho_mnist.npz")
    images = set_attributes(
        published["test_image"][:200], intensity=published["cf_intensity_intensity"][:200]
    )
    assert np.mean((images - published["cf_intensity_image"][:200] / 255) ** 2) < 5e-6
