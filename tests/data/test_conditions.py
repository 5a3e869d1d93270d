"""Members and doses, read from labels, columns of doses and matrices."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scvci.data import Condition
from scvci.data._conditions import (
    CONTROL,
    TreatmentKeys,
    find_keys,
    format_dose,
    parse_doses,
    parse_label,
    read_conditions,
)

PLAIN = TreatmentKeys("treatment", ("control",))
COMBINED = TreatmentKeys("treatment", ("control",), None, "+")
DOSED = TreatmentKeys("treatment", ("control",), "dose", "+")


def _cells(labels, doses=None):
    obs = pd.DataFrame({"treatment": labels}, index=[f"cell{i}" for i in range(len(labels))])
    if doses is not None:
        obs["dose"] = doses
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def _read(cells, keys, rows=None):
    """Condition of each cell; ``None`` without a label."""
    codes, conditions = read_conditions(cells, keys, rows)
    assert len(set(conditions)) == len(conditions)
    return [conditions[code] if code >= 0 else None for code in codes]


def _names(cells, keys):
    return [keys.name(condition) for condition in _read(cells, keys)]


# -- conditions and their names -------------------------------------------------------------------


def test_conditions_are_equal_whatever_the_order_of_members():
    assert Condition.of({"B": 2, "A": 1, "C": 0}) == Condition(("A", "B"), (1.0, 2.0))
    assert Condition.of({"A": 0.0}) == CONTROL == Condition()
    assert list(Condition.of({"B": 2, "A": 1}).items()) == [("A", 1.0), ("B", 2.0)]
    assert len({Condition.of({"A": 1}), Condition.of({"A": 1.0}), Condition.of({"A": 2})}) == 2


@pytest.mark.parametrize(
    ("dose", "text"),
    [
        (1e6, "1000000"),
        (1e-6, "0.000001"),
        (0.1, "0.1"),
        (0.5, "0.5"),
        (10.0, "10"),
        (1.23456789, "1.23456789"),
        (1.2345678, "1.2345678"),
        (1e-10, "1e-10"),
        (1e15, "1e15"),
        (1e300, "1e300"),
    ],
)
def test_the_text_of_a_dose_is_short_and_reads_back_as_the_same_number(dose, text):
    assert format_dose(dose) == text
    assert float(text) == dose


def test_doses_that_differ_in_the_eighth_digit_have_names_of_their_own():
    doses = [1.23456789, 1.2345678, np.nextafter(1.0, 2.0), 1.0]
    names = [DOSED.name(Condition(("A",), (dose,))) for dose in doses]
    assert names == ["A@1.23456789", "A@1.2345678", "A@1.0000000000000002", "A@1"]


# -- labels and columns of doses ------------------------------------------------------------------


def test_order_and_controls_among_members_do_not_matter():
    cells = _cells(["B+A", "A+B", "A+control", "A", "control"])
    assert _names(cells, COMBINED) == ["A+B", "A+B", "A", "A", "control"]
    found = _read(cells, COMBINED)
    assert found[0] == Condition(("A", "B"), (1.0, 1.0))
    assert found[-1] == CONTROL


def test_doses_are_part_of_names():
    cells = _cells(["A", "A", "A+B", "B+A", "B", "control"], ["0.50", 0, "1+2", "2+1", 2, "nan"])
    expected = ["A@0.5", "control", "A@1+B@2", "A@1+B@2", "B@2", "control"]
    assert _names(cells, DOSED) == expected


def test_without_separator_no_character_has_a_meaning():
    labels = ["(+)-JQ1", "A+B", " c@1 ", "control"]
    assert _names(_cells(labels), PLAIN) == labels


def test_several_controls_are_one():
    keys = TreatmentKeys("treatment", ("DMSO", "NTC", "PBS"), "dose", "+")
    assert keys.control == "DMSO"
    cells = _cells(["DMSO", "NTC", "PBS", "A+NTC", "NTC+DMSO"], ["x", 3, None, "2+7", "1+1"])
    assert _names(cells, keys) == ["DMSO", "DMSO", "DMSO", "A@2", "DMSO"]


@pytest.mark.parametrize(
    ("separator", "label", "dose", "expected"),
    [
        ("-", "A-B", "1e-06-1", {"A": 1e-6, "B": 1.0}),
        ("-", "A-B", "1e-06-1e-07", {"A": 1e-6, "B": 1e-7}),
        ("-", "A+x-B", "1 - 2", {"A+x": 1.0, "B": 2.0}),
        ("+", "A-1+B", "1e+06+2", {"A-1": 1e6, "B": 2.0}),
        ("+", "A + B", " 1 + .5 ", {"A": 1.0, "B": 0.5}),
        ("@", "A@B", "1@2", {"A": 1.0, "B": 2.0}),
        (" ", "A B", "1 2", {"A": 1.0, "B": 2.0}),
        (None, "A+B-C@D", 1e-6, {"A+B-C@D": 1e-6}),
    ],
)
def test_separators_in_names_and_doses(separator, label, dose, expected):
    keys = TreatmentKeys("treatment", ("control",), "dose", separator)
    assert parse_label(label, dose, keys) == Condition.of(expected)


@pytest.mark.parametrize(
    ("label", "dose", "message"),
    [
        ("CD4+", 1, "'CD4\\+' has a member without a name"),
        ("A+A", "1+1", "'A\\+A' names a member twice"),
        ("A", "10 uM", "'10 uM' of treatment 'A' is not a number"),
        ("A", -1, "'-1' of treatment 'A'"),
        ("A", np.nan, "'nan' of treatment 'A'"),
        ("A", "inf", "'inf' of treatment 'A'"),
        ("A+B", 1, "2 members and 1 doses"),
        ("A", "1+2", "1 members and 2 doses"),
    ],
)
def test_what_cannot_be_read_is_named(label, dose, message):
    with pytest.raises(ValueError, match=message):
        parse_label(label, dose, DOSED)


def test_bad_separators_and_missing_columns():
    cells = _cells(["control", "A"])
    for separator in ("", "o"):
        with pytest.raises(ValueError, match="separator"):
            find_keys(cells, "treatment", "control", None, separator)
    with pytest.raises(ValueError, match="control= is empty"):
        find_keys(cells, "treatment", [], None, None)
    with pytest.raises(KeyError, match="dose_key"):
        read_conditions(cells, DOSED)
    with pytest.raises(KeyError, match=r"no column 'drug'.*'treatment'"):
        read_conditions(cells, TreatmentKeys("drug", ("control",)))


@pytest.mark.parametrize(
    ("keys", "label", "dose"),
    [
        (COMBINED, "CD4+", 1),
        (COMBINED, "A+A", 1),
        (COMBINED, None, 1),
        (DOSED, "A", "10 uM"),
        (DOSED, "A+B", "1"),
        (DOSED, "CD4+", "1"),
        (DOSED, None, "1"),
    ],
)
def test_only_the_cells_in_question_have_to_be_readable(keys, label, dose):
    cells = _cells(pd.Series(["A", label, "control"], dtype=object).to_list(), ["1", dose, "0"])
    found = _read(cells, keys, np.array([2, 0]))
    assert found == [Condition(("A",), (1.0,)), None, CONTROL]
    with pytest.raises(ValueError, match="label|member|[Dd]ose|missing"):
        read_conditions(cells, keys, np.array([0, 1]))


def test_untreated_cells_need_no_column_of_doses():
    cells = _cells(["control", "A", "control"])
    assert _read(cells, DOSED, np.array([0, 2])) == [CONTROL, None, CONTROL]


# -- a matrix of members --------------------------------------------------------------------------


def test_a_matrix_of_members_is_read_like_labels():
    cells = _cells(["control"] * 4)
    cells.obsm["screen"] = pd.DataFrame(
        [[0, 0], [1, 0], [0, 1], [1, 1]], columns=["A", "B"], index=cells.obs_names
    )
    keys = find_keys(cells, "screen", "control", None, None)
    assert _names(cells, keys) == ["control", "A", "B", "A+B"]
    cells.obsm["screen"] = cells.obsm["screen"] * [0.5, 2.0]
    keys = find_keys(cells, "screen", "control", None, None)
    assert _names(cells, keys) == ["control", "A@0.5", "B@2", "A@0.5+B@2"]
    with pytest.raises(ValueError, match="entries of obsm"):
        find_keys(cells, "screen", "control", "dose", None)
    cells.obsm["screen"] = cells.obsm["screen"] - 1
    with pytest.raises(ValueError, match="'cell0', treatment 'A'"):
        read_conditions(cells, keys)
    cells.obsm["array"] = np.zeros((4, 2))
    with pytest.raises(ValueError, match="data frame"):
        read_conditions(cells, TreatmentKeys("array", ("control",), None, "+"))


def test_doses_in_single_precision_are_the_numbers_that_were_written():
    cells = _cells(["control"] * 2)
    doses = pd.DataFrame({"A": [0.0, 0.1]}, index=cells.obs_names)
    for dtype in (np.float32, np.float64):
        cells.obsm["screen"] = doses.astype(dtype)
        keys = find_keys(cells, "screen", "control", None, None)
        assert _names(cells, keys) == ["control", "A@0.1"]


def test_rows_of_the_matrix_that_are_not_in_question_need_no_dose():
    cells = _cells(["control"] * 3)
    doses = pd.DataFrame({"A": [0.0, np.nan, 2.0]}, index=cells.obs_names)
    cells.obsm["screen"] = doses
    keys = TreatmentKeys("screen", ("control",), "screen", None)
    assert _read(cells, keys, np.array([0, 2])) == [CONTROL, None, Condition(("A",), (2.0,))]
    with pytest.raises(ValueError, match="nan for cell 'cell1', treatment 'A'"):
        read_conditions(cells, keys)


@pytest.mark.parametrize(
    ("text", "separator", "doses"),
    [
        ("0.5e1e-05", "e", [0.5, 1e-05]),
        ("1e-06-2", "-", [1e-06, 2.0]),
        ("0.511e-05", "1", [0.5, 1e-05]),
        ("1 0.5", " ", [1.0, 0.5]),
        ("1e+06 + 2", "+", [1e06, 2.0]),
    ],
)
def test_doses_whose_separator_is_part_of_numbers(text, separator, doses):
    assert parse_doses(f"A{separator}B", text, 2, separator) == doses


def test_doses_that_can_be_read_in_two_ways_are_refused():
    with pytest.raises(ValueError, match="more than one way.*separator '.'"):
        parse_doses("A.B", "0.5.1e-05", 2, ".")


@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("float32", "int64")])
def test_short_floats_of_a_matrix_are_read_as_written(dtypes):
    cells = _cells(["", "", ""])
    table = pd.DataFrame({"A": [0.1, 0, 0], "B": [0, 1, 0]}, index=cells.obs_names)
    cells.obsm["screen"] = table.astype(dict(zip("AB", dtypes, strict=True)))
    _, conditions = read_conditions(cells, find_keys(cells, "screen", "control", None, None))
    assert Condition(("A",), (0.1,)) in conditions


def test_half_precision_doses_are_read_as_written():
    cells = _cells(["control", "A"], np.array([0, 0.1], dtype=np.float16))
    _, conditions = read_conditions(cells, find_keys(cells, "treatment", "control", "dose", None))
    assert conditions == [CONTROL, Condition(("A",), (0.1,))]


@pytest.mark.parametrize("amount", [1.0, 2.0])
def test_a_control_column_of_a_matrix_is_no_treatment(amount):
    cells = _cells(["", "", ""])
    cells.obsm["screen"] = pd.DataFrame(
        {"control": [amount, 0, amount], "A": [0.0, 1, 1]}, index=cells.obs_names
    )
    keys = find_keys(cells, "screen", "control", None, None)
    codes, conditions = read_conditions(cells, keys)
    assert [keys.name(conditions[code]) for code in codes] == ["control", "A", "A"]


@pytest.mark.parametrize("columns", [["A", "A"], [1, "1"]])
def test_columns_of_one_name_in_a_matrix_are_refused(columns):
    cells = _cells(["", "", ""])
    cells.obsm["screen"] = pd.DataFrame(
        [[0, 0], [1, 0], [0, 1]], index=cells.obs_names, columns=columns
    )
    with pytest.raises(ValueError, match="several columns named"):
        read_conditions(cells, TreatmentKeys("screen", ("control",)))


def test_a_control_among_the_members_needs_no_dose():
    keys = TreatmentKeys("treatment", ("control",), "dose", "+")
    for dose in (0.5, "0.5", "0.5+0"):
        assert parse_label("A+control", dose, keys) == Condition(("A",), (0.5,))
    with pytest.raises(ValueError, match="2 members and 1 doses"):
        parse_label("A+B", 0.5, keys)
