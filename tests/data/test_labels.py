"""Labels and their codes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvci._names import unknown_name_message
from scvci.data._labels import as_names, encode, read_labels, warn_about_missing_text


def test_no_character_has_a_meaning():
    names = ["(+)-JQ1", "A+ctrl", "NTC/2", "α β", "ctrl"]
    codes, texts = read_labels(pd.Series(names), "treatment")
    np.testing.assert_array_equal(encode(texts, names)[codes], np.arange(5))


@pytest.mark.parametrize("values", [[0, 1, 0], [True, False, True], [0.5, 1.0, 0.5]])
def test_numbers_and_booleans_become_their_text(values):
    codes, texts = read_labels(pd.Series(values), "dose")
    assert [texts[code] for code in codes] == [str(v) for v in values]


def test_unknown_labels_are_marked():
    np.testing.assert_array_equal(encode(np.array(["b", "0", ""]), ["a", "b"]), [1, -1, -1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], "missing"),
        (["a", np.nan], "missing"),
        (["a", "  "], "empty"),
        ([1, "1"], "same text"),
    ],
)
def test_bad_labels_name_the_column(values, message):
    with pytest.raises(ValueError, match=message) as error:
        read_labels(pd.Series(values, dtype=object), "my key")
    assert "my key" in str(error.value)


def test_only_the_cells_in_question_need_a_label():
    column = pd.Series(["a", None, " ", "b"], index=list("wxyz"), dtype=object)
    codes, texts = read_labels(column, "key", np.array([0, 3]))
    assert [texts[code] if code >= 0 else None for code in codes] == ["a", None, None, "b"]
    with pytest.raises(ValueError, match="1 missing .*first: cell 'x'"):
        read_labels(column, "key", np.array([3, 1]))
    with pytest.raises(ValueError, match="1 empty .*first: cell 'y'"):
        read_labels(column, "key", np.array([2]))


def test_the_text_of_a_missing_value_is_a_label_with_a_warning():
    codes, texts = read_labels(pd.Series(["nan", "a", "nan"]), "key")
    with pytest.warns(UserWarning, match="label 'nan' in 2 cells"):
        warn_about_missing_text(codes, texts, "key")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("A", ["A"]),
        (1, ["1"]),
        (np.array("A"), ["A"]),
        (("A", "B"), ["A", "B"]),
        ({"B", "A"}, ["A", "B"]),
        (np.array(["A", "B"]), ["A", "B"]),
        (pd.Series([1, 2]), ["1", "2"]),
        (pd.Index(["B", "A"]), ["B", "A"]),
    ],
)
def test_names_come_in_any_container(value, names):
    assert as_names(value) == names


def test_unknown_name_shows_the_nearest():
    message = unknown_name_message("Treatment", "ifnB", ["IFNb", "TNFa", "control"])
    assert "'ifnB'" in message
    assert "Nearest: 'IFNb'" in message
