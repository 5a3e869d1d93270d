"""Files of models: tensors and plain data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi.model.base._constants import SAVE_KEYS

if TYPE_CHECKING:
    from pathlib import Path

#: Raised when the layout of the file changes.
_FORMAT_VERSION = 2


def to_plain(value: Any) -> Any:
    """Turn registry and history into dictionaries, lists, tensors, numbers and strings.

    Arrays of text become lists, so that a registry is the same after loading.

    Raises
    ------
    TypeError
        If a value has no plain form.
    """
    if value is None or isinstance(value, str | bool | int | float | torch.Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pd.DataFrame):
        columns = {str(name): to_plain(column.to_numpy()) for name, column in value.items()}
        return {"__frame__": columns, "index": to_plain(value.index.to_numpy())}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return {"__array__": torch.from_numpy(value.copy())}
        return [str(v) for v in value.tolist()]
    if isinstance(value, pd.Series | pd.Index):
        return to_plain(value.to_numpy())
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(item) for item in value]
    raise TypeError(f"Cannot save a value of type {type(value).__name__}: {value!r}.")


def from_plain(value: Any) -> Any:
    """Inverse of :func:`to_plain`, up to tuples, sets and arrays of text becoming lists."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__frame__" in value:
        index = pd.Index(from_plain(value["index"]), name="epoch")
        columns = {name: from_plain(column) for name, column in value["__frame__"].items()}
        return pd.DataFrame(columns, index=index)
    if "__array__" in value:
        return value["__array__"].numpy()
    return {key: from_plain(item) for key, item in value.items()}


def write_payload(
    folder: Path, prefix: str | None, class_name: str, content: dict[str, Any]
) -> None:
    """Write a model of a class.

    Parameters
    ----------
    folder, prefix
        Where to write, and the prefix of the file's name.
    class_name
        Class of the model.
    content
        Tensors and plain data, by scvi-tools' keys.
    """
    payload = {"format": _FORMAT_VERSION, "class": class_name, **content}
    torch.save(payload, folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")


def read_payload(folder: Path, prefix: str | None, class_name: str) -> dict[str, Any]:
    """Read tensors and plain data of a model of a class; no code in the file is run.

    Parameters
    ----------
    folder, prefix, class_name
        See :func:`write_payload`.

    Raises
    ------
    ValueError
        If there is no model, or it is of another class or format.
    """
    path = folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"
    if not path.exists():
        raise ValueError(f"No saved model at {path}.")
    payload = torch.load(path, map_location="cpu", weights_only=True)
    if payload.get("class") != class_name:
        raise ValueError(f"{path} holds a {payload.get('class')!r}, not a {class_name}.")
    if payload.get("format") != _FORMAT_VERSION:
        raise ValueError(
            f"{path} was saved in format {payload.get('format')}; this version of scvci reads "
            f"format {_FORMAT_VERSION}. Train the model again."
        )
    return payload
