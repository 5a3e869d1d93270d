"""Labels of treatments and covariates: normalised to strings, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def as_labels(column: pd.Series, key: str) -> np.ndarray:
    """Turn a column of labels into an array of strings.

    Integer and boolean codes become their text (``1`` → ``"1"``). No character has a meaning: a
    ``+`` or ``/`` in a name stays as it is.

    Parameters
    ----------
    column
        The labels.
    key
        Name of the column, for the message.

    Raises
    ------
    ValueError
        If a label is missing or empty, or two different labels have the same text.
    """
    missing = column.isna().to_numpy()
    labels = np.array([str(value) for value in column], dtype=object)
    empty = np.array([not label.strip() for label in labels], dtype=bool) & ~missing
    if missing.any() or empty.any():
        what, where = ("missing (NaN)", missing) if missing.any() else ("empty", empty)
        first = column.index[int(np.argmax(where))]
        raise ValueError(
            f"obs[{key!r}] has {int(where.sum())} {what} values (first: cell {first!r}). A cell "
            "without a label cannot be compared with anything; drop these cells or label them."
        )
    values = pd.unique(column)
    if len({str(value) for value in values}) < len(values):
        raise ValueError(
            f"obs[{key!r}] mixes labels of different types with the same text, as 1 and '1'. They "
            "would become one level; give the column one type."
        )
    return labels


def encode(labels: np.ndarray, known: Sequence[str], unknown: int = -1) -> np.ndarray:
    """Index of each label among the known ones; ``unknown`` where there is none."""
    codes = pd.Index(list(known)).get_indexer(pd.Index(labels))
    return np.where(codes < 0, unknown, codes).astype(np.int64)


def missing_key_message(adata: AnnData, key: str, argument: str) -> str:
    """Say which column was looked for and which there are.

    Parameters
    ----------
    adata
        Where it was looked for.
    key
        The column.
    argument
        Argument that named it.
    """
    found = ", ".join(repr(str(c)) for c in adata.obs.columns if not str(c).startswith("_scvi"))
    return (
        f"obs has no column {key!r} (argument {argument}). Columns found: {found or 'none'}. "
        f"Pass the right one as {argument}=."
    )
