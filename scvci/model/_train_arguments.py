"""Arguments of a training, checked before anything changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvci._numbers import is_number, whole_number
from scvci.data._cells import resolve_indices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

type Parts = tuple[np.ndarray, np.ndarray, np.ndarray]

_PART_NAMES = ("training", "validation", "test")


def check_train_arguments(
    max_epochs: int | None,
    train_size: float,
    validation_size: float | None,
    batch_size: int | None,
    datasplitter_kwargs: Mapping[str, Any] | None,
    checkpoint_every_n_epochs: int,
) -> None:
    """Raise if an argument makes no sense.

    Parameters
    ----------
    max_epochs, train_size, validation_size, batch_size, datasplitter_kwargs, \
checkpoint_every_n_epochs
        See :meth:`scvci.model.VCI.train`. Ranges of the sizes are checked where cells are split.

    Raises
    ------
    TypeError, ValueError
        With the argument, its value and what it must be.
    """
    for name, number in (("max_epochs", max_epochs), ("batch_size", batch_size)):
        if number is not None:
            whole_number(name, number)
    whole_number("checkpoint_every_n_epochs", checkpoint_every_n_epochs)
    for name, size in (("train_size", train_size), ("validation_size", validation_size)):
        if not is_number(size) and not (size is None and name == "validation_size"):
            raise TypeError(f"{name}={size!r} must be a number, the share of the cells.")
    unknown = set(datasplitter_kwargs or {}) - {"external_indexing"}
    if unknown:
        raise TypeError(
            f"datasplitter_kwargs has {sorted(unknown)}, of which nothing is known; it takes "
            "external_indexing= only."
        )


def external_parts(adata: AnnData, external: Any) -> Parts:
    """Rows of the training, validation and test cells that a user names.

    Parameters
    ----------
    adata
        The cells.
    external
        One to three choices of cells: rows, masks or names; ``None`` for no cells.

    Raises
    ------
    ValueError
        If a choice cannot be read, there are no training cells, or a cell is chosen twice; with
        the choice and the cell.
    """
    if isinstance(external, str | np.ndarray) or not hasattr(external, "__len__"):
        raise ValueError(
            "external_indexing must be a list of up to three choices of cells (training, "
            f"validation, test); got {type(external).__name__}."
        )
    if not 1 <= len(external) <= len(_PART_NAMES):
        raise ValueError(
            f"external_indexing has {len(external)} parts; it must have one to three: training, "
            "validation and test cells."
        )
    chosen = [*external, *[None] * (len(_PART_NAMES) - len(external))]
    rows = [_rows_of(adata, name, part) for name, part in zip(_PART_NAMES, chosen, strict=True)]
    if not len(rows[0]):
        raise ValueError("external_indexing names no training cells.")
    together = np.concatenate(rows)
    found, count = np.unique(together, return_counts=True)
    if (count > 1).any():
        twice = int(found[np.argmax(count > 1)])
        of = [name for name, part in zip(_PART_NAMES, rows, strict=True) if twice in part]
        raise ValueError(
            f"external_indexing names {int((count > 1).sum())} cells more than once (first: row "
            f"{twice}, among the {' and '.join(of)} cells); a cell must be in one part, once."
        )
    return rows[0], rows[1], rows[2]


def _rows_of(adata: AnnData, name: str, part: Any) -> np.ndarray:
    """Rows of a part."""
    if part is None:
        return np.array([], dtype=np.int64)
    try:
        return resolve_indices(adata, part)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(f"external_indexing, {name} cells: {reason}") from error
