"""Plots of the diagnostics show the tables' numbers and follow scanpy's conventions."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scvci import pl
from scvci.effects import conditional_independence_test, overlap_table

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def table(rng):
    """Stratum ``b`` leaks, ``a`` does not, ``c`` cannot be tested."""
    x = np.repeat(["a", "b", "c"], [100, 100, 12])
    t = rng.integers(2, size=212)
    t[200:] = 0
    z = rng.normal(size=(212, 2)) + 2 * (t * (x == "b"))[:, None]
    return conditional_independence_test(z, t, x, n_permutations=99)


@pytest.mark.parametrize("test", ["auc", "energy"])
def test_disentanglement_draws_statistics_and_null_intervals(table, test, tmp_path):
    ax = pl.disentanglement(table, test=test, save=tmp_path / "d.png")
    assert (tmp_path / "d.png").stat().st_size > 0
    rows = table[table["test"] == test]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    np.testing.assert_allclose(bars, rows[["null_q05", "null_q95"]].to_numpy())
    points = {line.get_label(): line.get_xdata() for line in ax.lines}
    leaks = rows[rows["q_value"] < 0.05]
    assert set(leaks["stratum"]) == {"all", "b"}
    np.testing.assert_allclose(points["observed, q < 0.05"], leaks["statistic"])
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "p = 0.01"
    assert texts[3] == "not tested"
    assert [label.get_text() for label in ax.get_yticklabels()][0].startswith("all strata")


def test_disentanglement_in_given_axes_and_of_an_unknown_test(table):
    _, ax = plt.subplots()
    assert pl.disentanglement(table, ax=ax) is ax
    with pytest.raises(ValueError, match="'hsic'.*'auc', 'energy'"):
        pl.disentanglement(table, test="hsic")


def test_overlap_shows_counts_and_marks_poor_pairs(tmp_path):
    counts = np.array([[50, 40], [30, 5], [60, 0]])
    stratum, treatment = (np.repeat(i, counts.ravel()) for i in np.indices((3, 2)).reshape(2, -1))
    poor = overlap_table(treatment, stratum, ["control", "a"], ["x", "y", "w"])
    ax = pl.overlap(poor, save=tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 0
    image = ax.images[0].get_array()
    assert image.mask.tolist() == (counts == 0).tolist()
    np.testing.assert_array_equal(image.filled(0), counts)
    assert [text.get_text() for text in ax.texts] == ["50", "40", "30", "5", "60"]
    marks = {c.get_label(): np.rint(c.get_offsets()).tolist() for c in ax.collections}
    assert marks == {"no cells": [[1, 2]], "few cells": [[1, 1]]}


def test_overlap_of_some_rows_leaves_the_others_empty():
    stratum, treatment = np.indices((2, 2)).reshape(2, -1)
    table = overlap_table(treatment, stratum, ["control", "a"], ["x", "y"], min_cells=1)
    ax = pl.overlap(table[1:])
    np.testing.assert_array_equal(ax.images[0].get_array().filled(0), [[1, 0], [1, 1]])


def test_overlap_without_poor_pairs_has_no_legend():
    stratum, treatment = np.indices((2, 2)).reshape(2, -1)
    good = overlap_table(treatment, stratum, ["control", "a"], ["x", "y"], min_cells=1)
    _, ax = plt.subplots()
    assert pl.overlap(good, ax=ax) is ax
    assert ax.get_legend() is None
