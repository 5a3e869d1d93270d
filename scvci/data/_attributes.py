"""Treatments that are attributes with a value for each cell: numbers, or levels of a category."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rich.table

from scvci._names import unknown_name_message
from scvci._numbers import LARGEST

from ._constants import TREATMENT_KEY
from ._fields import CodesField
from ._labels import encode, missing_key_message, read_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from ._fields import Prepared


class AttributeField(CodesField):
    """Values of the attributes of each cell.

    The state in the registry is plain data: the ``keys``, and for each the sorted ``levels`` of a
    category or ``None`` for a number.

    Parameters
    ----------
    attribute_keys
        Columns of ``obs``.
    """

    def __init__(self, attribute_keys: Sequence[str]) -> None:
        super().__init__()
        self.attribute_keys = list(attribute_keys)

    @property
    def registry_key(self) -> str:
        """Key in the registry."""
        return TREATMENT_KEY

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData that holds the values."""
        return "obsm"

    def read(self, adata: AnnData) -> Prepared:
        """Find which attributes are numbers, and the levels of the others."""
        levels: list[list[str] | None] = []
        for key in self.attribute_keys:
            if key not in adata.obs:
                raise KeyError(missing_key_message(adata, key, "treatment_keys"))
            column = adata.obs[key]
            _check_kind(column, key)
            if _is_number(column):
                levels.append(None)
                n_values = column.nunique()
            else:
                codes, texts = read_labels(column, key)
                levels.append(sorted(texts[i] for i in np.unique(codes)))
                n_values = len(levels[-1] or [])
            if n_values < 2:
                raise ValueError(
                    f"obs[{key!r}] has a single value. A treatment that is the same in all cells "
                    "has no effect to learn; leave it out of treatment_keys=."
                )
        state = {"keys": self.attribute_keys, "levels": levels}
        return state, read_attributes(adata, state)

    def encode(self, adata: AnnData, state: dict[str, Any]) -> np.ndarray:
        """Read the values of other cells."""
        return read_attributes(adata, state)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count attributes."""
        return {"n_attributes": len(state_registry["keys"])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of attributes and their levels."""
        table = rich.table.Table(title="treatments State Registry")
        for column in ("Source Location", "Values"):
            table.add_column(column)
        for key, levels in zip(state_registry["keys"], state_registry["levels"], strict=True):
            table.add_row(
                f"adata.obs[{key!r}]", "numbers" if levels is None else ", ".join(levels)
            )
        return table


def measured_ranges(
    stratum: np.ndarray, values: np.ndarray, is_number: np.ndarray
) -> dict[str, np.ndarray]:
    """Range of each number among cells of a stratum with the same levels of the categories.

    Parameters
    ----------
    stratum
        Stratum of each cell, shape ``(n_cells,)``.
    values
        Its attributes, shape ``(n_cells, n_attributes)``.
    is_number
        Which attributes are numbers.

    Returns
    -------
    ``levels``, one row for each combination, its stratum first; ``low`` and ``high`` with a column
    for each number.
    """
    levels, row = np.unique(_combinations(stratum, values, is_number), axis=0, return_inverse=True)
    numbers = values[:, is_number]
    low = np.full((len(levels), numbers.shape[1]), np.inf)
    high = -low
    np.minimum.at(low, row, numbers)
    np.maximum.at(high, row, numbers)
    return {"levels": levels, "low": low, "high": high}


def outside_ranges(
    ranges: Mapping[str, np.ndarray],
    stratum: np.ndarray,
    values: np.ndarray,
    is_number: np.ndarray,
) -> np.ndarray:
    """Which requests no measured cell was like.

    Parameters
    ----------
    ranges
        From :func:`measured_ranges`.
    stratum, values, is_number
        Of each request, as there.

    Returns
    -------
    True where the stratum has no cell with these levels, or those it has do not enclose the
    numbers.
    """
    known = pd.MultiIndex.from_arrays(ranges["levels"].T)
    wanted = pd.MultiIndex.from_arrays(_combinations(stratum, values, is_number).T)
    row = known.get_indexer(wanted)
    numbers = values[:, is_number]
    beyond = (numbers < ranges["low"][row]) | (numbers > ranges["high"][row])
    return (row < 0) | beyond.any(axis=1)


def _combinations(stratum: np.ndarray, values: np.ndarray, is_number: np.ndarray) -> np.ndarray:
    return np.column_stack([stratum, values[:, ~is_number].astype(np.int64)])


def read_attributes(
    adata: AnnData,
    state: Mapping[str, Any],
    rows: np.ndarray | None = None,
    columns: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Read the values of attributes.

    Parameters
    ----------
    adata
        Cells.
    state
        State registry of the attributes.
    rows
        Cells whose values have to be there; ``None`` for all.
    columns
        Column of ``obs`` to read an attribute from, where it is not that of its own name; an
        attribute that is missing here is read from its own.

    Returns
    -------
    Numbers, and codes of levels, shape ``(n_obs, n_attributes)``; NaN or −1 for other cells that
    have none.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a value is no finite number, or an unknown level.
    """
    judged = np.arange(adata.n_obs) if rows is None else rows
    values = []
    for key, levels in zip(state["keys"], state["levels"], strict=True):
        column = (columns or {}).get(key, key)
        if column not in adata.obs:
            cure = f"The model reads attribute {key!r} from it; add the column."
            argument = "target_keys" if column != key else "treatment_keys"
            raise KeyError(missing_key_message(adata, column, argument, cure))
        if levels is None:
            _check_kind(adata.obs[column], column)
            found = pd.to_numeric(adata.obs[column], errors="coerce").to_numpy(dtype=float)
            wrong = judged[~(np.abs(found[judged]) <= LARGEST)]
            if len(wrong):
                raise ValueError(
                    f"obs[{column!r}] must hold finite numbers of at most {LARGEST:g}; "
                    f"{len(wrong)} cells do not (first: {str(adata.obs_names[wrong[0]])!r})."
                )
        else:
            codes, texts = read_labels(adata.obs[column], column, rows)
            found = np.append(encode(texts, levels), -1)[codes]
            wrong = judged[found[judged] < 0]
            if len(wrong):
                where = f" (obs[{column!r}], cell {str(adata.obs_names[wrong[0]])!r})"
                message = unknown_level_message(key, texts[codes[wrong[0]]], levels)
                raise ValueError(message + where)
        values.append(np.asarray(found, dtype=float))
    return np.stack(values, axis=1)


def attribute_value(state: Mapping[str, Any], name: str, value: Any) -> float:
    """Return the number, or the code of the level, that an attribute is set to.

    Parameters
    ----------
    state
        State registry of the attributes.
    name
        The attribute.
    value
        The value.

    Raises
    ------
    ValueError
        If the attribute or its level is unknown, or the value is no finite number.
    """
    if name not in state["keys"]:
        raise ValueError(unknown_name_message("Treatment", name, state["keys"]))
    levels = state["levels"][state["keys"].index(name)]
    if levels is not None:
        if str(value) not in levels:
            raise ValueError(unknown_level_message(name, str(value), levels))
        return float(levels.index(str(value)))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not abs(number) <= LARGEST:
        raise ValueError(
            f"{name} must be set to a finite number of at most {LARGEST:g}; got {value!r}."
        )
    return number


def unknown_level_message(name: str, level: str, levels: Sequence[str]) -> str:
    """Say which level of an attribute is unknown, and which there are."""
    return (
        unknown_name_message(f"Level of treatment {name!r}", level, levels)
        + " The model can only set levels that it was trained on."
    )


def _check_kind(column: pd.Series, name: str) -> None:
    """Refuse columns that are neither numbers nor names."""
    if pd.api.types.is_complex_dtype(column) or column.dtype.kind in "mM":
        raise ValueError(
            f"obs[{name!r}] holds {column.dtype} values; a treatment is a number or a name. "
            "Convert the column first."
        )


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
