"""Labels of treatments and covariates: read as text, looked up by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: Texts that missing values turn into when a column is converted with ``str``.
_MISSING_TEXTS = frozenset({"nan", "NaN", "<NA>", "NaT", "None"})


def read_labels(
    column: pd.Series, key: str, rows: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """Read a column of labels as codes and texts.

    Integer and boolean labels become their text (``1`` → ``"1"``). No character has a meaning: a
    ``+`` or ``/`` in a name stays as it is.

    Parameters
    ----------
    column
        The labels.
    key
        Name of the column, for the message.
    rows
        Cells that need a label; ``None`` for all.

    Returns
    -------
    Code of each cell, shape ``(n_cells,)``, −1 where the label is missing or empty, and the text
    of each code.

    Raises
    ------
    ValueError
        If the label of one of ``rows`` is missing or empty, or two labels have the same text.
    """
    codes, values = pd.factorize(column)
    texts = [str(value) for value in values]
    empty = np.array([not text.strip() for text in texts] + [False], dtype=bool)[codes]
    missing = codes < 0
    judged = np.ones(len(codes), dtype=bool)
    if rows is not None:
        judged[:] = False
        judged[rows] = True
    for what, where in (("missing (NaN)", missing & judged), ("empty", empty & judged)):
        if where.any():
            raise ValueError(
                f"obs[{key!r}] has {int(where.sum())} {what} values (first: cell "
                f"{column.index[int(np.argmax(where))]!r}). A cell without a label cannot be "
                "compared with anything; drop these cells or label them."
            )
    if len(set(texts)) < len(texts):
        raise ValueError(
            f"obs[{key!r}] mixes labels of different types with the same text, as 1 and '1'. They "
            "would become one label; give the column one type."
        )
    return np.where(empty, -1, codes).astype(np.int64), texts


def warn_about_missing_text(codes: np.ndarray, texts: Sequence[str], key: str) -> None:
    """Warn of labels such as ``"nan"``, which missing values become as text.

    Parameters
    ----------
    codes, texts
        See :func:`read_labels`.
    key
        Name of the column.
    """
    for code, text in enumerate(texts):
        if text in _MISSING_TEXTS and (n := int((codes == code).sum())):
            warnings.warn(
                f"obs[{key!r}] has the label {text!r} in {n} cells, the text of a missing value. "
                "It is read as a label like any other; drop these cells if they have none.",
                UserWarning,
                stacklevel=4,
            )


def encode(labels: np.ndarray | Sequence[str], known: np.ndarray | Sequence[str]) -> np.ndarray:
    """Index of each label among the known ones; −1 where there is none."""
    return pd.Index(known).get_indexer(pd.Index(labels)).astype(np.int64)


def is_one_name(value: Any) -> bool:
    """Whether a value is one name, rather than a container of names."""
    return (
        isinstance(value, str | bytes)
        or not isinstance(value, Iterable)
        or (isinstance(value, np.ndarray) and value.ndim == 0)
    )


def as_names(value: Any) -> list[str]:
    """Turn one name, or names in any sequence, set, array or pandas object, into a list of text.

    Parameters
    ----------
    value
        A name or an iterable of names.
    """
    if is_one_name(value):
        return [str(value[()] if isinstance(value, np.ndarray) else value)]
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    return [str(name) for name in value]


def missing_key_message(adata: AnnData, key: str, argument: str, cure: str = "") -> str:
    """Say which column was looked for and which there are.

    Parameters
    ----------
    adata
        Where it was looked for.
    key
        The column.
    argument
        Argument that named it.
    cure
        What to do, by default to pass another column.
    """
    found = ", ".join(repr(str(c)) for c in adata.obs.columns if not str(c).startswith("_scvi"))
    return (
        f"obs has no column {key!r} (argument {argument}). Columns found: {found or 'none'}. "
        + (cure or f"Pass the right one as {argument}=.")
    )
