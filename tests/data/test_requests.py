"""Treatments that a user asks for, in whatever form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvci.data import Condition, Treatments
from scvci.data._conditions import CONTROL, TreatmentKeys
from scvci.data._requests import contrast_names, measured_names, read_requests

PLAIN = Treatments.from_conditions(
    [Condition(("A",), (1.0,)), Condition(("B",), (1.0,)), Condition(("A", "B"), (1.0, 1.0))],
    TreatmentKeys("treatment", ("control", "NTC"), None, "+"),
)
DOSED = Treatments.from_conditions(
    [Condition(("A",), (1.0,)), Condition(("A",), (0.5,)), Condition(("B",), (2.0,))],
    TreatmentKeys("treatment", ("control",), "dose", "+"),
)


@pytest.mark.parametrize(
    ("treatment", "names"),
    [
        (None, ["control", "A", "A+B", "B"]),
        ("B+A", ["A+B"]),
        (["B", "NTC"], ["B", "control"]),
        (("A",), ["A"]),
        ({"B", "A"}, ["A", "B"]),
        (np.array(["B", "A"]), ["B", "A"]),
        (pd.Series(["B", "A"]), ["B", "A"]),
        (pd.DataFrame({"treatment": ["A+B", "control"]}), ["A+B", "control"]),
    ],
)
def test_one_name_or_any_sequence_of_them(treatment, names):
    found = read_requests(PLAIN, treatment)
    assert [PLAIN.name(condition) for condition in found] == names
    assert measured_names(PLAIN, treatment) == names


def test_doses_beside_names_and_in_tables():
    half = Condition(("A",), (0.5,))
    assert read_requests(DOSED, "A", 0.5) == read_requests(DOSED, "A@0.5") == [half]
    table = pd.DataFrame({"treatment": ["A", "B+A", "control"], "dose": [0.5, "2+1", 0]})
    both = Condition(("A", "B"), (1.0, 2.0))
    assert read_requests(DOSED, table) == [half, both, CONTROL]
    with pytest.raises(ValueError, match=r"'A@1\+B@2' was not measured. It can be predicted"):
        measured_names(DOSED, "B+A@1")
    new = read_requests(DOSED, ["C@3", "A@1"], known=["A", "B", "C"])
    assert new == [Condition(("C",), (3.0,)), Condition(("A",), (1.0,))]


@pytest.mark.parametrize(
    ("treatments", "treatment", "dose", "message"),
    [
        (PLAIN, "A", 1.0, "set up without doses"),
        (DOSED, None, 1.0, "needs a treatment"),
        (PLAIN, [], None, "treatment= is empty"),
        (PLAIN, ["A+B", "B+A"], None, r"more than once: \['A\+B', 'A\+B'\]"),
        (PLAIN, ["control", "NTC"], None, r"more than once: \['control', 'control'\]"),
        (PLAIN, "C", None, "'C' is unknown"),
        (DOSED, "A", None, "doses 0.5, 1. Ask for one"),
        (DOSED, pd.DataFrame({"drug": ["A"]}), None, r"found \['drug'\]"),
        (DOSED, pd.DataFrame({"treatment": ["A"]}), 1.0, "no dose= beside it"),
    ],
)
def test_requests_that_make_no_sense(treatments, treatment, dose, message):
    with pytest.raises(ValueError, match=message):
        read_requests(treatments, treatment, dose)


def test_contrasts_are_with_the_control_unless_another_is_named():
    assert contrast_names(PLAIN, None, None) == (["A", "A+B", "B"], "control")
    assert contrast_names(PLAIN, None, "A") == (["control", "A+B", "B"], "A")
    assert contrast_names(PLAIN, ["B", "B+A"], "NTC") == (["B", "A+B"], "control")
    with pytest.raises(ValueError, match="'control' is compared with itself"):
        contrast_names(PLAIN, ["A", "NTC"], None)
    with pytest.raises(ValueError, match="'C' is unknown"):
        contrast_names(PLAIN, "A", "C")


def test_tables_with_doses_need_data_with_doses():
    table = pd.DataFrame({"treatment": ["A"], "dose": [5.0]})
    with pytest.raises(ValueError, match="table has doses, but the data were set up without"):
        read_requests(PLAIN, table)


def test_a_missing_dose_in_a_table_is_none():
    table = pd.DataFrame({"treatment": ["control", "B", "A"], "dose": [np.nan, np.nan, 0.5]})
    found = read_requests(DOSED, table)
    assert found == [CONTROL, Condition(("B",), (2.0,)), Condition(("A",), (0.5,))]
