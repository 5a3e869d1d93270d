"""Overlap by hand-computed numbers, and propensities against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from scvci.effects import cross_validated_propensity, overlap_table

NAMES = (["control", "a", "b"], ["x", "y", "w"])


def _cells(counts):
    """Codes of cells with the given counts ``(n_strata, n_treatments)``."""
    stratum, treatment = np.indices(np.shape(counts)).reshape(2, -1)
    return np.repeat(treatment, np.ravel(counts)), np.repeat(stratum, np.ravel(counts))


def _table(counts, **arguments):
    return overlap_table(*_cells(counts), *NAMES, **arguments)


def test_numbers_by_hand():
    table = _table([[60, 30, 10], [40, 0, 40], [0, 0, 0]])
    pair = table.set_index(["stratum", "treatment"])
    assert list(pair.index[:3]) == [("x", "control"), ("x", "a"), ("x", "b")]
    assert list(table["n_cells"]) == [60, 30, 10, 40, 0, 40, 0, 0, 0]
    assert pair.loc[("x", "a"), "propensity"] == pytest.approx(0.3)
    assert pair.loc[("x", "a"), "weight"] == pytest.approx(1 / 0.3)
    assert pair.loc[("x", "a"), "effective_size"] == pytest.approx(60 * 30 / 90)
    assert pair.loc[("x", "control"), "effective_size"] == 60
    assert pair.loc[("y", "a"), ["propensity", "effective_size"]].tolist() == [0, 0]
    assert np.isinf(pair.loc[("y", "a"), "weight"])
    assert pair.loc["w", "propensity"].isna().all()


def test_weights_add_up_to_the_stratum(rng):
    """Each measured cell stands for ``weight`` cells: together they are the stratum's."""
    table = _table(rng.integers(1, 50, size=(3, 3)))
    represented = table["n_cells"] * table["weight"]
    np.testing.assert_allclose(
        represented, table.groupby("stratum")["n_cells"].transform("sum").to_numpy()
    )
    np.testing.assert_allclose(table.groupby("stratum")["propensity"].sum(), 1)


def test_flags_and_what_they_mean():
    table = _table([[900, 40, 5], [0, 50, 0], [500, 500, 500]], min_propensity=0.05)
    flags = table.set_index(["stratum", "treatment"])["flag"]
    assert flags.loc["x"].tolist() == ["", "low propensity", "few cells"]
    assert flags.loc["y"].tolist() == ["no control", "no control", "no cells"]
    assert flags.loc["w"].tolist() == ["", "", ""]
    verdict = table.attrs["verdict"]
    assert "5 of 9" in verdict
    assert "(b, x): 5" in verdict
    assert "Few cells (< 30)" in verdict
    assert "extrapolated from other strata: (b, y)." in verdict
    assert "(control, w)" not in verdict
    assert _table(np.full((3, 3), 40)).attrs["verdict"] == ""


def test_long_lists_are_cut():
    treatments = [f"t{i}" for i in range(30)]
    table = overlap_table(np.zeros(50, int), np.zeros(50, int), treatments, ["x"])
    assert "(t7, x), (t8, x) and 21 more" in table.attrs["verdict"]


def test_order_of_cells_does_not_matter(rng):
    treatment, stratum = _cells(rng.integers(0, 50, size=(3, 3)))
    order = rng.permutation(len(treatment))
    table = overlap_table(treatment[order], stratum[order], *NAMES)
    assert table.equals(overlap_table(treatment, stratum, *NAMES))


def test_propensities_given_continuous_covariates_match_the_truth():
    rng = np.random.default_rng(0)
    n = 3000
    age, stratum = rng.normal(size=n), rng.integers(2, size=n)
    # Only in the second stratum does age decide.
    true = expit(np.where(stratum == 1, 2.5 * age, 0.0) - 0.5)
    treatment = (rng.random(n) < true).astype(int)
    scores = cross_validated_propensity(10 * age[:, None] + 40, treatment, stratum, (2, 3))
    assert np.abs(scores[:, 1] - true).mean() < 0.03
    np.testing.assert_allclose(scores[:, 1], true, atol=0.12)
    np.testing.assert_allclose(scores[:, :2].sum(axis=1), 1)
    assert np.isnan(scores[:, 2]).all()

    table = overlap_table(
        treatment, stratum, NAMES[0][:2], ["x", "y"], continuous=age[:, None], min_propensity=0.1
    )
    low = table.set_index(["stratum", "treatment"])
    assert low.loc["x", "share_low"].tolist() == [0, 0]
    expected = (true[stratum == 1] < 0.1).mean()
    assert low.loc[("y", "a"), "share_low"] == pytest.approx(expected, abs=0.03)
    assert low.loc[("y", "a"), "flag"] == "low propensity"
    assert low.loc[("x", "a"), "flag"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"treatment": np.zeros(3, int)}, "3 treatments and 4 strata"),
        ({"min_cells": 0}, "min_cells=0"),
        ({"min_propensity": 1.0}, "min_propensity=1.0"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    given = {"treatment": np.zeros(4, int), "stratum": np.zeros(4, int), **arguments}
    with pytest.raises(ValueError, match=message):
        overlap_table(**given, treatments=["control"], strata=["x"])
