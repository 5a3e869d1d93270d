"""Training, validation and test cells."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.data._splitter import split_cells


def test_split_is_stratified_and_keeps_a_training_cell_per_group(rng):
    group = np.repeat([0, 1, 2, 3], [200, 50, 10, 1])
    train, validation, test = split_cells(group, 0.8, 0.1, rng)
    joined = np.sort(np.concatenate([train, validation, test]))
    np.testing.assert_array_equal(joined, np.arange(261))
    for g, n in ((0, 200), (1, 50), (2, 10)):
        assert abs((group[train] == g).sum() - 0.8 * n) <= 1
    assert 260 in train
    again = split_cells(group, 0.8, 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(
        again[0], split_cells(group, 0.8, 0.1, np.random.default_rng(0))[0]
    )


def test_split_without_rest_has_no_test_cells(rng):
    train, validation, test = split_cells(np.zeros(101, int), 0.9, None, rng)
    assert len(test) == 0
    assert len(validation) in (10, 11)


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (0.9, 0.2)])
def test_impossible_splits_are_refused(train, validation):
    with pytest.raises(ValueError, match="train_size"):
        split_cells(np.zeros(10, int), train, validation)
