"""Treatments with values: numbers and levels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvci.data._attributes import (
    AttributeField,
    attribute_value,
    measured_ranges,
    outside_ranges,
    read_attributes,
)


def _adata(**columns):
    n = len(next(iter(columns.values())))
    return AnnData(obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)]))


def _state(adata, *keys):
    return AttributeField(keys).read(adata)[0]


def test_numbers_stay_and_levels_are_coded_in_order():
    adata = _adata(dose=[0.5, 2.0, 1.0], drug=["b", "a", "b"], washed=[True, False, True])
    state, values = AttributeField(["dose", "drug", "washed"]).read(adata)
    assert state["levels"] == [None, ["a", "b"], ["False", "True"]]
    np.testing.assert_array_equal(values, [[0.5, 1, 1], [2.0, 0, 0], [1.0, 1, 1]])


def test_other_cells_are_read_by_the_same_levels():
    state = _state(_adata(drug=["b", "a", "c"]), "drug")
    np.testing.assert_array_equal(read_attributes(_adata(drug=["c", "c"]), state), [[2], [2]])


def test_an_attribute_is_read_from_another_column():
    adata = _adata(dose=[1.0, 2.0], drug=["a", "b"], wanted=[5.0, 6.0])
    state = _state(adata, "dose", "drug")
    values = read_attributes(adata, state, columns={"dose": "wanted"})
    np.testing.assert_array_equal(values, [[5, 0], [6, 1]])


@pytest.mark.parametrize(
    ("columns", "error", "text"),
    [
        ({"dose": [1.0, 1.0]}, ValueError, "single value"),
        ({"dose": [1.0, np.nan, 2.0]}, ValueError, "finite numbers .*; 1 cells do not.*'c1'"),
        ({"drug": ["a", None, "b"]}, ValueError, "missing"),
        ({"other": [1.0, 2.0]}, KeyError, "no column"),
    ],
)
def test_bad_columns(columns, error, text):
    key = next(iter(columns)) if "other" not in columns else "dose"
    with pytest.raises(error, match=text):
        AttributeField([key]).read(_adata(**columns))


def test_an_unknown_level_is_named_with_its_neighbour():
    state = _state(_adata(drug=["aspirin", "water"]), "drug")
    with pytest.raises(ValueError, match="'asprin'.*'aspirin'"):
        read_attributes(_adata(drug=["water", "asprin"]), state)
    # A cell that is not in question may have any label.
    values = read_attributes(_adata(drug=["water", "asprin"]), state, np.array([0]))
    np.testing.assert_array_equal(values, [[1], [-1]])


def test_values_that_are_asked_for():
    state = _state(_adata(dose=[1.0, 2.0], drug=["a", "b"]), "dose", "drug")
    assert attribute_value(state, "dose", "3") == 3.0
    assert attribute_value(state, "drug", "b") == 1.0
    for name, value, text in [
        ("drug", "c", "'c'"),
        ("dose", "much", "finite number of .*; got 'much'"),
        ("dose", np.inf, "finite number"),
        ("doses", 1, "'doses'.*'dose'"),
    ]:
        with pytest.raises(ValueError, match=text):
            attribute_value(state, name, value)


def test_requests_are_compared_with_cells_of_the_same_stratum_and_levels():
    is_number = np.array([False, True])
    values = np.array([[0, 0.0], [1, 1.0], [1, 3.0], [0, 0.0]])
    ranges = measured_ranges(np.array([0, 0, 0, 1]), values, is_number)
    asked = np.array([[0, 0.0], [1, 2.0], [0, 2.0], [1, 4.0], [0, 0.0], [1, 2.0]])
    found = outside_ranges(ranges, np.array([0, 0, 0, 0, 1, 1]), asked, is_number)
    np.testing.assert_array_equal(found, [False, False, True, True, False, True])


def test_categories_without_numbers_have_no_ranges_but_have_combinations():
    is_number = np.array([False])
    ranges = measured_ranges(np.array([0, 1]), np.array([[0.0], [1.0]]), is_number)
    asked = outside_ranges(ranges, np.array([0, 1]), np.array([[0.0], [0.0]]), is_number)
    np.testing.assert_array_equal(asked, [False, True])
