"""Labels and their codes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvci._names import unknown_name_message
from scvci.data._names import as_labels, encode


def test_no_character_has_a_meaning():
    names = ["(+)-JQ1", "A+ctrl", "NTC/2", "α β", "ctrl"]
    labels = as_labels(pd.Series(names), "treatment")
    np.testing.assert_array_equal(encode(labels, names), np.arange(5))


@pytest.mark.parametrize("values", [[0, 1, 0], [True, False, True], [0.5, 1.0, 0.5]])
def test_numbers_and_booleans_become_their_text(values):
    labels = as_labels(pd.Series(values), "dose")
    assert list(labels) == [str(v) for v in values]


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
        as_labels(pd.Series(values, dtype=object), "my key")
    assert "my key" in str(error.value)


def test_unknown_name_shows_the_nearest():
    message = unknown_name_message("Treatment", "ifnB", ["IFNb", "TNFa", "control"])
    assert "'ifnB'" in message
    assert "Nearest: 'IFNb'" in message
