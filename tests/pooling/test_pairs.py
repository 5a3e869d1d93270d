"""Tables of measured pairs."""

from __future__ import annotations

import numpy as np

from scvci.pooling import Pairs


def test_pairs_are_counted_and_found_again():
    rng = np.random.default_rng(0)
    stratum, treatment = rng.integers(-1, 4, size=60), rng.integers(6, size=60)
    stratum[stratum == 2] = 3
    pairs, counts = Pairs.count(stratum, treatment, 4, 6)
    expected = {
        (x, t): ((stratum == x) & (treatment == t)).sum() for x in range(4) for t in range(6)
    }
    expected = {pair: n for pair, n in expected.items() if n}
    assert list(zip(pairs.stratum, pairs.treatment, strict=True)) == sorted(expected)
    np.testing.assert_array_equal(counts, [expected[p] for p in sorted(expected)])
    rows = pairs.rows(np.arange(-1, 4)[:, None], np.arange(-1, 7))
    order = {pair: i for i, pair in enumerate(sorted(expected))}
    found = [[order.get((x, t), -1) for t in range(-1, 7)] for x in range(-1, 4)]
    np.testing.assert_array_equal(rows, found)


def test_an_empty_table():
    pairs, counts = Pairs.count(np.array([-1]), np.array([0]), 2, 2)
    assert len(pairs) == len(counts) == 0
    np.testing.assert_array_equal(pairs.rows(np.arange(2), 1), [-1, -1])


def test_sums_within_strata_and_treatments():
    pairs = Pairs(np.array([0, 0, 2]), np.array([1, 3, 1]), 3, 4)
    values = np.array([[1.0], [10.0], [100.0]])
    np.testing.assert_array_equal(pairs.sum_by_stratum(values)[:, 0], [11, 0, 100])
    np.testing.assert_array_equal(pairs.sum_by_treatment(values)[:, 0], [0, 101, 0, 10])


def test_a_table_among_more_codes_and_a_union():
    small = Pairs(np.array([0, 1]), np.array([1, 0]), 2, 2)
    large = Pairs(np.array([0, 2]), np.array([2, 1]), 3, 3)
    both = small.resized(3, 3).union(large)
    assert list(zip(both.stratum, both.treatment, strict=True)) == [(0, 1), (0, 2), (1, 0), (2, 1)]
