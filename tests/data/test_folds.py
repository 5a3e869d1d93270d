"""Folds of held-out (stratum, treatment) pairs."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.data._folds import choose_folds, pair_folds


def test_latin_square():
    folds = pair_folds(np.full((3, 5), 30))
    assert len(folds) == 4
    pairs = [pair for fold in folds for pair in fold]
    assert len(set(pairs)) == len(pairs) == 12
    for fold in folds:
        assert sorted(x for x, _ in fold) == [0, 1, 2]
        assert len({t for _, t in fold}) == 3


def test_one_treatment_leaves_one_stratum_at_a_time():
    assert pair_folds(np.full((3, 2), 30)) == [[(0, 1)], [(1, 1)], [(2, 1)]]


def test_more_strata_than_treatments():
    folds = pair_folds(np.full((4, 3), 30))
    assert len(folds) == 2
    assert sorted(p for fold in folds for p in fold) == [(x, t) for x in range(4) for t in (1, 2)]


def test_small_pairs_stay_and_no_treatment_loses_its_last_cells():
    counts = np.array([[50, 30, 30, 0], [50, 30, 5, 40], [3, 40, 30, 0]])
    folds = pair_folds(counts, min_cells=20)
    held = {pair for fold in folds for pair in fold}
    # (1, 2) is small, stratum 2 has no controls to predict from, treatment 3 has one stratum.
    assert held == {(0, 1), (1, 1), (0, 2)}
    for fold in folds:
        for t in (1, 2, 3):
            left = {x for x in range(3) if counts[x, t]} - {x for x, u in fold if u == t}
            assert left


@pytest.mark.parametrize("seed", range(20))
def test_any_design(seed):
    """Whatever is missing: each pair once, a stratum once a fold, a stratum left for each."""
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 7, size=2)
    counts = rng.integers(0, 60, size=n)
    folds = pair_folds(counts, min_cells=10)
    pairs = [pair for fold in folds for pair in fold]
    assert len(set(pairs)) == len(pairs)
    for fold in folds:
        strata = [x for x, _ in fold]
        assert len(set(strata)) == len(strata)
        kept = counts.copy()
        for x, t in fold:
            assert t != 0
            kept[x, t] = 0
        assert ((counts > 0).any(axis=0) == (kept > 0).any(axis=0)).all()


def test_single_stratum_and_last_pairs():
    assert pair_folds(np.array([[50, 50, 50]])) == []
    with pytest.raises(ValueError, match="Treatment 1 has cells in stratum 0 only"):
        choose_folds(np.array([[50, 50], [50, 0]]), [(0, 1)])
