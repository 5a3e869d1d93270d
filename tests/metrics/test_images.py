"""Metrics of images, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from scvci import metrics


@pytest.fixture
def images(rng):
    return rng.uniform(0.2, 0.8, size=(5, 1, 6, 4))


def test_squared_error_is_one_per_image(images):
    shift = np.arange(5.0)
    np.testing.assert_allclose(
        metrics.image_mse(images + shift[:, None, None, None], images), shift**2
    )
    grey = np.array([[[0, 255]]], dtype=np.uint8)
    assert metrics.image_mse(grey, 255 - grey) == 255**2


def test_effectiveness_is_in_units_of_the_attribute(images):
    mean = images.mean(axis=(1, 2, 3))
    requested = {"mean": mean + [1, -1, 3, -3, 2], "size": np.full(5, 24)}
    measure = {"mean": lambda i: i.mean(axis=(1, 2, 3)), "size": lambda i: [i[0].size] * len(i)}
    errors = metrics.effectiveness(images, requested, measure)
    assert errors == {"mean": pytest.approx(2), "size": 0}
    with pytest.raises(ValueError, match=r"no function for \['hue'\]; it has \['mean', 'size'\]"):
        metrics.effectiveness(images, {"hue": mean}, measure)
    with pytest.raises(ValueError, match=r"'mean'.*each of 5.*\(4,\).*\(5,\)"):
        metrics.effectiveness(images, {"mean": mean[:4]}, measure)


def test_composition_of_known_maps(images):
    assert (metrics.composition(images, lambda i: i, cycles=3) == 0).all()
    shift = metrics.composition(images, lambda i: i - 0.1, cycles=10)
    np.testing.assert_allclose(shift, np.tile(0.1 * np.arange(1, 11)[:, None], 5))
    scale = metrics.composition(images, lambda i: 0.5 * i, cycles=2)
    np.testing.assert_allclose(scale, [[0.5], [0.75]] * images.mean(axis=(1, 2, 3)))


def test_reversibility_of_known_maps(images):
    np.testing.assert_allclose(
        metrics.reversibility(images, lambda i: 2 * i, lambda i: i / 2, cycles=2), 0
    )
    # Back by half of the way: what is left of the change adds up.
    left = metrics.reversibility(images, lambda i: i + 0.2, lambda i: i - 0.1, cycles=2)
    np.testing.assert_allclose(left, np.tile([[0.1], [0.2]], 5))
    # The order matters: clipping is lost for good.
    lost = metrics.reversibility(images, lambda i: i * 0, lambda i: i)
    np.testing.assert_allclose(lost[0], images.mean(axis=(1, 2, 3)))


def test_what_cannot_be_scored_is_said(images):
    with pytest.raises(ValueError, match="cycles must be at least 1; got 0"):
        metrics.composition(images, lambda i: i, cycles=0)
    with pytest.raises(ValueError, match=r"\(5, 1, 6, 4\).*\(4, 1, 6, 4\)"):
        metrics.composition(images, lambda i: i[1:])
    with pytest.raises(ValueError, match=r"\(5, 1, 6, 4\).*\(5, 24\)"):
        metrics.image_mse(images, images.reshape(5, -1))
