"""Members, doses and names of arms."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scvci.data import TreatmentField, TreatmentKeys, Treatments, find_keys, read_arms
from scvci.data._conditions import parse_condition

PLAIN = TreatmentKeys("treatment", "control")
COMBINED = TreatmentKeys("treatment", "control", None, "+")
DOSED = TreatmentKeys("treatment", "control", "dose", "+")


def _cells(labels, doses=None):
    obs = pd.DataFrame({"treatment": labels}, index=[f"cell{i}" for i in range(len(labels))])
    if doses is not None:
        obs["dose"] = doses
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


def _treatments(cells, keys):
    return Treatments.from_state(TreatmentField(keys).register_field(cells))


def test_order_and_controls_among_members_do_not_matter():
    names, conditions = read_arms(_cells(["B+A", "A+B", "A+control", "A", "control"]), COMBINED)
    assert list(names) == ["A+B", "A+B", "A", "A", "control"]
    assert conditions["A+B"] == {"A": 1.0, "B": 1.0}
    assert conditions["control"] == {}


def test_doses_are_part_of_names():
    cells = _cells(["A", "A", "A+B", "B+A", "B", "control"], ["0.50", 0, "1+2", "2+1", 2, "nan"])
    names, _ = read_arms(cells, DOSED)
    assert list(names) == ["A@0.5", "control", "A@1+B@2", "A@1+B@2", "B@2", "control"]
    treatments = _treatments(cells, DOSED)
    assert treatments.names == ["control", "A@0.5", "A@1+B@2", "B@2"]
    np.testing.assert_array_equal(treatments.max_dose, [1, 2])
    np.testing.assert_array_equal(treatments.relative_doses, [[0, 0], [0.5, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(treatments.alone, [False, True, False, True])


def test_without_separator_no_character_has_a_meaning():
    treatments = _treatments(_cells(["(+)-JQ1", "A+B", " c@1 ", "control"]), PLAIN)
    assert treatments.members == [" c@1 ", "(+)-JQ1", "A+B"]
    assert treatments.request(" c@1 ") == " c@1 "
    with pytest.raises(ValueError, match="separator='\\+'"):
        treatments.request("A+C")


def test_a_matrix_of_members_is_read_like_labels():
    cells = _cells(["control"] * 4)
    cells.obsm["screen"] = pd.DataFrame(
        [[0, 0], [1, 0], [0, 1], [1, 1]], columns=["A", "B"], index=cells.obs_names
    )
    keys = find_keys(cells, "screen", "control", None, None)
    assert list(read_arms(cells, keys)[0]) == ["control", "A", "B", "A+B"]
    cells.obsm["screen"] = cells.obsm["screen"] * [0.5, 2.0]
    keys = find_keys(cells, "screen", "control", None, None)
    assert list(read_arms(cells, keys)[0]) == ["control", "A@0.5", "B@2", "A@0.5+B@2"]
    with pytest.raises(ValueError, match="entries of obsm"):
        find_keys(cells, "screen", "control", "dose", None)
    cells.obsm["screen"] = cells.obsm["screen"] - 1
    with pytest.raises(ValueError, match="'cell0', treatment 'A'"):
        read_arms(cells, keys)
    cells.obsm["array"] = np.zeros((4, 2))
    with pytest.raises(ValueError, match="data frame"):
        read_arms(cells, TreatmentKeys("array", "control", None, "+"))


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
        parse_condition(label, dose, DOSED)


def test_bad_separators_and_missing_columns():
    cells = _cells(["control", "A"])
    for separator in ("", "o"):
        with pytest.raises(ValueError, match="separator"):
            find_keys(cells, "treatment", "control", None, separator)
    with pytest.raises(KeyError, match="dose_key"):
        read_arms(cells, DOSED)


def test_requests_are_completed_or_refused():
    cells = _cells(["A", "A", "B", "control"], [0.1, 1, 2, 0])
    treatments = _treatments(cells, DOSED)
    assert treatments.request("A@1") == "A@1"
    assert treatments.request("A", 1.0) == "A@1"
    assert treatments.request("B") == "B@2"  # its only dose
    assert treatments.request("B+A@0.5") == "A@0.5+B@2"
    assert treatments.request("A", 0) == "control"
    assert treatments.request("control") == "control"
    assert treatments.request("C@3", known=["A", "B", "C"]) == "C@3"
    with pytest.raises(ValueError, match=r"doses 0.1, 1. Ask for one"):
        treatments.request("A")
    with pytest.raises(ValueError, match="'D' is unknown"):
        treatments.request("D@1")
    with pytest.raises(ValueError, match="'-1'"):
        treatments.request("A@-1")


def test_a_state_without_members_has_one_arm_per_member():
    state = {"names": ["ctrl", "B+", "A"], "control": "ctrl", "original_key": "treatment"}
    treatments = Treatments.from_state({**state, "separator": None, "doses": None})
    assert treatments.names == ["ctrl", "B+", "A"]
    assert treatments.members == ["B+", "A"]
    np.testing.assert_array_equal(treatments.doses, [[0, 0], [1, 0], [0, 1]])
