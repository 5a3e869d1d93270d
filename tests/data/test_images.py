"""The table of images, and the targets that are drawn for them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvci.data import _constants as keys
from scvci.data._images import AttributeSampler, ImageCells, check_shape, find_shape


def _adata(array):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(array))])
    return AnnData(obs=obs, obsm={"image": array})


def _cells(images, values=None, stratum=None):
    n = len(images)
    stratum = np.zeros(n, dtype=int) if stratum is None else stratum
    values = np.zeros((n, 1)) if values is None else values
    adata = _adata(images)
    return ImageCells(
        adata=adata,
        rows=np.arange(n),
        shape=(1, *images.shape[-2:]),
        images=images,
        values=values,
        covariates=stratum[:, None],
        stratum=stratum,
    )


@pytest.mark.parametrize(
    ("array", "given", "shape"),
    [
        (np.zeros((3, 2, 5, 4)), None, (2, 5, 4)),
        (np.zeros((3, 5, 4)), None, (1, 5, 4)),
        (np.zeros((3, 40)), (2, 5, 4), (2, 5, 4)),
    ],
)
def test_shapes(array, given, shape):
    assert find_shape(_adata(array), "image", given) == shape


@pytest.mark.parametrize(
    ("array", "given", "text"),
    [
        (np.zeros((3, 40)), None, "40 values per cell; say which image"),
        (np.zeros((3, 40)), (1, 5, 4), "20 pixels, but .* 40 values"),
        (np.zeros((3, 5, 4)), (1, 4, 5), r"have shape \(1, 5, 4\)"),
        (np.zeros((3, 1, 1, 5, 4)), None, "images are arrays of shape"),
    ],
)
def test_bad_shapes(array, given, text):
    with pytest.raises(ValueError, match=text):
        find_shape(_adata(array), "image", given)


def test_images_that_are_not_there():
    with pytest.raises(KeyError, match=r"no entry 'images'.*'image'"):
        find_shape(_adata(np.zeros((3, 5, 4))), "images", None)
    with pytest.raises(ValueError, match="image_key="):
        find_shape(_adata(np.zeros((3, 5, 4))), None, (1, 5, 4))
    with pytest.raises(ValueError, match=r"trained on \(1, 8, 8\)"):
        check_shape(_adata(np.zeros((3, 5, 4))), "image", (1, 8, 8))


def test_eight_bits_are_shares_of_255_and_floats_stay():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2), dtype=np.uint8)
    cells = _cells(images)
    np.testing.assert_allclose(cells.pixels(np.array([2, 0])), images[[2, 0]].reshape(2, 6) / 255)
    as_floats = _cells(images / 255)
    np.testing.assert_allclose(as_floats.pixels(np.array([1])), images[[1]].reshape(1, 6) / 255)


def test_flat_sparse_images_in_x():
    flat = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(flat))
    assert find_shape(adata, None, (1, 3, 2)) == (1, 3, 2)
    cells = _cells(flat.reshape(4, 3, 2))
    object.__setattr__(cells, "images", adata.X)
    np.testing.assert_array_equal(cells.pixels(np.array([3, 1])), flat[[3, 1]])


def test_pixels_outside_the_support_are_named():
    images = np.zeros((4, 2, 2), dtype=np.float32)
    images[2, 0, 0] = 17.0
    with pytest.raises(ValueError, match=r"'c2' has pixels from 0 to 17.*\[0, 1\]"):
        _cells(images).check_pixels((0.0, 1.0))
    _cells(images).take(np.array([0, 1])).check_pixels((0.0, 1.0))
    _cells(images).check_pixels((-np.inf, np.inf))
    images[1] = np.nan
    with pytest.raises(ValueError, match="'c1' has missing"):
        _cells(images).check_pixels((-np.inf, np.inf))


def test_targets_come_from_the_stratum_and_change_all_or_one():
    n = 600
    rng = np.random.default_rng(1)
    stratum = np.arange(n) % 2
    # Attributes say which cell and which stratum they are of.
    values = np.stack([np.arange(n), 10_000 + np.arange(n)], axis=1).astype(float)
    sampler = AttributeSampler(_cells(np.zeros((n, 2, 2)), values, stratum))
    drawn = sampler(np.arange(n), rng)
    target, whole = drawn[keys.TARGET_KEY], drawn[keys.SUPPORTED_KEY][:, 0] > 0
    donor = np.where(target[:, 0] != values[:, 0], target[:, 0], target[:, 1] - 10_000).astype(int)
    assert (stratum[donor] == stratum).all()
    np.testing.assert_array_equal(target[whole, 1] - target[whole, 0], 10_000)
    changed = (target != values)[~whole].sum(axis=1)
    assert (changed <= 1).all()
    assert 0.4 < whole.mean() < 0.6
    kept = (target == values)[~whole].mean(axis=0)
    assert (np.abs(kept - 0.5) < 0.1).all()


def test_one_attribute_is_always_a_whole_treatment():
    values = np.arange(50, dtype=float)[:, None]
    drawn = AttributeSampler(_cells(np.zeros((50, 2, 2)), values))(
        np.arange(50), np.random.default_rng(0)
    )
    assert drawn[keys.SUPPORTED_KEY].all()


def test_only_training_cells_give_targets():
    values = np.arange(50, dtype=float)[:, None]
    cells = _cells(np.zeros((50, 2, 2)), values).take(np.arange(10))
    drawn = AttributeSampler(cells)(np.arange(50), np.random.default_rng(0))
    assert drawn[keys.TARGET_KEY].max() < 10
