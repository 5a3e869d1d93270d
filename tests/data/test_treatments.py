"""Arms of the training data: names, doses, requests, and the registry's state."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from scvci.data import Condition, Treatments
from scvci.data._conditions import CONTROL, TreatmentKeys, parse_label

PLAIN = TreatmentKeys("treatment", ("control",))
COMBINED = TreatmentKeys("treatment", ("control",), None, "+")
DOSED = TreatmentKeys("treatment", ("control",), "dose", "+")


def _treatments(labels, keys):
    """Arms of labels, each a text or, with doses, a text and its dose."""
    pairs = [(label, None) if isinstance(label, str) else label for label in labels]
    return Treatments.from_conditions([parse_label(t, d, keys) for t, d in pairs], keys)


DOSES = _treatments([("A", 0.1), ("A", 1), ("A+B", "1+2"), ("B", 2)], DOSED)


def test_names_members_and_doses():
    treatments = _treatments([("A", 0.5), ("A+B", "1+2"), ("B", 2)], DOSED)
    assert treatments.names == ("control", "A@0.5", "A@1+B@2", "B@2")
    assert treatments.conditions[0] == CONTROL
    assert treatments.members == ("A", "B")
    doses = [[0, 0], [0.5, 0], [1, 2], [0, 2]]
    np.testing.assert_array_equal(treatments.doses.toarray(), doses)
    np.testing.assert_array_equal(treatments.max_dose, [1, 2])
    relative = [[0, 0], [0.5, 0], [1, 1], [0, 1]]
    np.testing.assert_array_equal(treatments.relative_doses.toarray(), relative)
    np.testing.assert_array_equal(treatments.alone, [False, True, False, True])
    assert [treatments.name_index[name] for name in treatments.names] == [0, 1, 2, 3]
    assert [treatments.index[c] for c in treatments.conditions] == [0, 1, 2, 3]
    assert [treatments.find(c) for c in treatments.conditions] == [0, 1, 2, 3]
    assert treatments.find(Condition(("A",), (1.0,))) is None


def test_doses_of_a_member_alone_come_in_increasing_order():
    labels = [("A", 10), ("A", 0.1), ("A", 2), ("A+B", "5+1"), ("B", 1)]
    treatments = _treatments(labels, DOSED)
    arms, doses = treatments.doses_alone("A")
    np.testing.assert_array_equal(doses, [0.1, 2, 10])
    assert [treatments.names[arm] for arm in arms] == ["A@0.1", "A@2", "A@10"]


def test_arms_without_treated_cells():
    treatments = _treatments(["control"], PLAIN)
    assert treatments.names == ("control",)
    assert treatments.relative_doses.shape == (1, 0)
    assert len(treatments.max_dose) == 0


# -- names --------------------------------------------------------------------------------------


def test_without_separator_no_character_has_a_meaning():
    treatments = _treatments(["(+)-JQ1", "A+B", " c@1 "], PLAIN)
    assert treatments.members == (" c@1 ", "(+)-JQ1", "A+B")
    assert treatments.request(" c@1 ") == Condition((" c@1 ",), (1.0,))
    with pytest.raises(ValueError, match="separator='\\+'"):
        treatments.request("A+C")


@pytest.mark.parametrize("separator", ["+", "-", "@", " ", "_x_"])
@pytest.mark.parametrize("dose", [1e6, 1e-6, 1e-12, 1e20, 1.23456789, 1.2345678])
def test_every_name_is_read_as_the_condition_that_has_it(separator, dose):
    """Also where the separator is part of a member's name or of a number."""
    members = [m for m in ("HLA-A", "CD4+", "c@1", "B") if separator not in m]
    keys = TreatmentKeys("treatment", ("control",), "dose", separator)
    given = [CONTROL, *(Condition((m,), (dose,)) for m in members)]
    given += [Condition.of({"B": dose, members[0]: 2.0}), Condition(("B",), (2 * dose,))]
    treatments = Treatments.from_conditions(given, keys)
    assert len(set(treatments.names)) == len(given)
    assert not any(
        "+" in name for name in treatments.names if separator == "-" and "CD4" not in name
    )
    for condition in given:
        assert treatments.request(treatments.name(condition)) == condition
    # A name that was not measured is read like those that were.
    new = Condition.of({"B": dose / 2, members[0]: dose})
    assert treatments.find(new) is None
    assert treatments.request(treatments.name(new)) == new


def test_doses_that_differ_in_the_eighth_digit_are_two_arms():
    treatments = _treatments([("A", 1.23456789), ("A", 1.2345678)], DOSED)
    assert treatments.names == ("control", "A@1.2345678", "A@1.23456789")
    assert treatments.find(treatments.request("A", 1.23456789)) == 2
    assert treatments.find(treatments.request("A", "1.2345678")) == 1


def test_two_conditions_with_one_name_are_refused():
    joint = [Condition(("A", "B"), (1.0, 1.0)), Condition(("A+B",), (1.0,))]
    for keys in (COMBINED, PLAIN):
        with pytest.raises(ValueError, match=r"both be named 'A\+B', as '\+' or '@' is part"):
            Treatments.from_conditions(joint, keys)
    at = [Condition(("A", "B"), (1.0, 2.0)), Condition(("A@1+B",), (2.0,))]
    with pytest.raises(ValueError, match=r"named 'A@1\+B@2'"):
        Treatments.from_conditions(at, DOSED)
    known = Treatments.from_conditions(joint[:1], COMBINED)
    with pytest.raises(ValueError, match=r"both be named 'A\+B'"):
        known.extended(joint[1:])


def test_all_labels_of_the_control_stand_for_it():
    keys = TreatmentKeys("treatment", ("DMSO", "NTC"), None, "+")
    treatments = _treatments(["A", "DMSO", "NTC", "A+NTC"], keys)
    assert treatments.names == ("DMSO", "A")
    assert treatments.control == "DMSO"
    assert [treatments.name_index[name] for name in ("DMSO", "NTC", "A")] == [0, 0, 1]
    assert treatments.request("NTC") == treatments.request("NTC+DMSO") == CONTROL
    assert treatments.request("NTC+A") == Condition(("A",), (1.0,))
    assert Treatments.from_state(treatments.to_state()).request("NTC") == CONTROL


# -- requests -----------------------------------------------------------------------------------


def test_requests_are_completed_or_refused():
    one, half = Condition(("A",), (1.0,)), Condition(("A", "B"), (0.5, 2.0))
    assert DOSES.request("A@1") == DOSES.request("A", 1.0) == one
    assert DOSES.request("B") == Condition(("B",), (2.0,))  # its only dose
    assert DOSES.request("B+A@0.5") == DOSES.request("A+B", "0.5+2") == half
    assert DOSES.name(half) == "A@0.5+B@2"
    assert DOSES.request("A", 0) == DOSES.request("control") == CONTROL
    assert DOSES.request("C@3", known=["A", "B", "C"]) == Condition(("C",), (3.0,))
    with pytest.raises(ValueError, match=r"doses 0.1, 1. Ask for one"):
        DOSES.request("A")
    with pytest.raises(ValueError, match="'D' is unknown"):
        DOSES.request("D@1")
    with pytest.raises(ValueError, match="'-1'"):
        DOSES.request("A@-1")
    with pytest.raises(ValueError, match="names a member twice"):
        DOSES.request("A@1+A@0.1")


# -- the registry's state, and new arms -----------------------------------------------------------


@pytest.mark.parametrize(
    "treatments",
    [
        DOSES,
        _treatments(["B+", "A"], PLAIN),
        _treatments(["A", "A+B", "B+C"], TreatmentKeys("drug", ("DMSO", "NTC"), None, "+")),
        _treatments([("A", 1.23456789), ("A", 1e-300)], DOSED),
        DOSES.extended([Condition(("0",), (3.0,)), Condition(("A",), (0.2,))]),
    ],
    ids=["doses", "plain", "combinations", "digits", "extended"],
)
def test_the_state_holds_everything_as_plain_data(treatments):
    state = json.loads(json.dumps(treatments.to_state()))
    again = Treatments.from_state(state)
    for name in ("keys", "conditions", "names", "members"):
        assert getattr(again, name) == getattr(treatments, name)
    assert (again.doses != treatments.doses).nnz == 0
    assert again.to_state() == treatments.to_state()


def test_new_arms_follow_the_known_ones():
    new = [Condition(("A",), (0.5,)), Condition(("0",), (3.0,)), DOSES.conditions[1]]
    extended = DOSES.extended(new)
    assert extended.names == (*DOSES.names, "0@3", "A@0.5")
    assert extended.members == (*DOSES.members, "0")
    np.testing.assert_array_equal(
        extended.relative_doses[: len(DOSES), :2].toarray(), DOSES.relative_doses.toarray()
    )
    with pytest.raises(ValueError, match=r"'A@1.5' is beyond 1, the largest dose of 'A'"):
        DOSES.extended([Condition(("A",), (1.5,))])


def test_thousands_of_arms_are_built_at_once():
    conditions = [Condition((f"gene{i}",), (1.0,)) for i in range(3000)]
    conditions += [Condition.of({f"gene{i}": 1, f"gene{i + 1}": 1}) for i in range(999)]
    start = time.process_time()
    treatments = Treatments.from_conditions(conditions, COMBINED)
    again = Treatments.from_state(treatments.to_state())
    assert again.relative_doses.shape == (4000, 3000)
    assert again.relative_doses.nnz == 4998
    assert len(again.name_index) == len(again.index) == 4000
    assert again.alone.sum() == 3000
    seconds = time.process_time() - start
    assert seconds < 0.5
