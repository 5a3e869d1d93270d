"""Files of models: tensors and plain data only, whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi.model.base._constants import SAVE_KEYS

from scvci._files import one_writer, remove_parts, sync_folder, write_part

from ._file_checks import blaming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Raised when the layout of the file changes.
_FORMAT_VERSION = 3
#: Texts from which on a list is written as one: torch reads one by one.
_MANY_TEXTS = 1000
#: A file of torch is a zip; the comment at its end is the checksum of all before it.
_CHECKSUM = re.compile(rb"sha256:([0-9a-f]{64})")
_N_CHECKSUM = len("sha256:") + 64
#: What else than plain data torch's pickles name.
_NAMED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch (?!Unt)\w+Storage"
)
#: Each tensor takes four tuples. More of them could be nested beyond what Python can hash.
_MAX_TUPLES = 40_000
_MAX_DEPTH = 100
_MODEL, _CELLS = SAVE_KEYS.MODEL_FNAME, SAVE_KEYS.ADATA_FNAME


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
        return to_plain([str(v) for v in value.tolist()])
    if isinstance(value, pd.Series | pd.Index):
        return to_plain(value.to_numpy())
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        items = [to_plain(item) for item in value]
        if len(items) > _MANY_TEXTS and all(type(item) is str for item in items):
            return {"__json__": json.dumps(items)}
        return items
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
    if "__json__" in value:
        return json.loads(value["__json__"])
    if "__array__" in value:
        return value["__array__"].numpy()
    return {key: from_plain(item) for key, item in value.items()}


def write_model(
    folder: Path,
    prefix: str | None,
    class_name: str,
    content: dict[str, Any],
    write_cells: Callable[[Path], object] | None = None,
) -> None:
    """Write a model of a class, and its cells, in place of those that are there.

    The file of the model names its cells by their checksum, so that the folder changes hands at
    one moment, when that file takes its place: before, it holds the old model with the old cells,
    and after, the new model with the new ones. Cells on their way in or out bear their checksum
    in their name.

    Parameters
    ----------
    folder, prefix
        Where to write, and the prefix of the files' names.
    class_name
        Class of the model.
    content
        Tensors and plain data, by scvi-tools' keys.
    write_cells
        Writes the cells to the path that it is given; ``None`` for a model without.

    Raises
    ------
    OSError
        With the path and the cause. What was there is as it was.
    """
    model, cells = (_path(folder, prefix, name) for name in (_MODEL, _CELLS))
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}).") from error
    try:
        with one_writer(folder):
            _finish(model, cells)
            _replace(model, cells, {"class": class_name, **content}, write_cells)
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _finish(model: Path, cells: Path) -> None:
    """Remove what killed processes left, and bring cells to where they were on their way to."""
    remove_parts(model)
    remove_parts(cells)
    for path in cells.parent.glob(_on_the_way(glob.escape(cells.stem), "[0-9a-f]" * 64)):
        if path.name == _on_the_way(cells.stem, _cells_of(model)):
            os.replace(path, cells)
        else:
            path.unlink()


def _replace(
    model: Path,
    cells: Path,
    content: dict[str, Any],
    write_cells: Callable[[Path], object] | None,
) -> None:
    digest = arriving = leaving = None
    if write_cells is not None:
        part = write_part(cells, write_cells)
        digest = _digest(part)
        arriving = cells.with_name(_on_the_way(cells.stem, digest))
        os.replace(part, arriving)
    payload = {"format": _FORMAT_VERSION, "cells": digest, **content}
    try:
        part = write_part(model, lambda path: path.write_bytes(encode(payload)))
    except BaseException:
        if arriving is not None:
            arriving.unlink()
        raise
    # Cells that a user put there are no one else's to remove.
    if arriving is None and cells.is_file() and _digest(cells) == (old := _cells_of(model)):
        leaving = cells.with_name(_on_the_way(cells.stem, old))
        os.replace(cells, leaving)
    sync_folder(model.parent)
    os.replace(part, model)
    sync_folder(model.parent)
    if arriving is not None:
        os.replace(arriving, cells)
    elif leaving is not None:
        leaving.unlink()


def find_cells(folder: Path, prefix: str | None, digest: str | None) -> Path | None:
    """Find the cells that a model was saved with.

    Parameters
    ----------
    folder, prefix
        See :func:`write_model`.
    digest
        Their checksum; ``None`` if there are none.

    Raises
    ------
    ValueError
        If there are other cells in their place.

    Warns
    -----
    UserWarning
        If they are gone, or there are cells that do not belong to the model.
    """
    path = _path(folder, prefix, _CELLS)
    if digest is None:
        if path.exists():
            warnings.warn(
                f"{path} was not saved with the model beside it, which is loaded without cells. "
                "To attach them, pass adata=anndata.read_h5ad(...).",
                UserWarning,
                stacklevel=3,
            )
        return None
    for candidate in (path.with_name(_on_the_way(path.stem, digest)), path):
        if candidate.is_file() and _digest(candidate) == digest:
            return candidate
    if path.exists():
        raise ValueError(
            f"{path} is not what was saved with the model beside it: it holds other cells, was "
            "changed, or is damaged. Pass adata= with the cells to attach, or adata=False."
        )
    warnings.warn(
        f"{path}, which was saved with the model, is gone; the model is loaded without cells.",
        UserWarning,
        stacklevel=3,
    )
    return None


def read_model(folder: Path, prefix: str | None, class_name: str) -> tuple[Path, dict[str, Any]]:
    """Read tensors and plain data of a model of a class; no code in the file is run.

    Parameters
    ----------
    folder, prefix, class_name
        See :func:`write_model`.

    Returns
    -------
    Path of the file, and what it holds.

    Raises
    ------
    ValueError
        If there is no model, the file is damaged, or is of another class or format.
    """
    path = _path(folder, prefix, _MODEL)
    payload = _decode(path)
    if payload.get("class") != class_name:
        raise ValueError(f"{path} holds a {payload.get('class')!r}, not a {class_name}.")
    return path, payload


def _path(folder: Path, prefix: str | None, name: str) -> Path:
    return folder / f"{prefix or ''}{name}"


def _on_the_way(stem: str, digest: str | None) -> str:
    return f"{stem}-{digest}.h5ad"


def _cells_of(model: Path) -> str | None:
    """Checksum of the cells that a file names; ``None`` if there are none, or no such file."""
    with suppress(ValueError):
        return _decode(model)["cells"]
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(payload: dict[str, Any]) -> bytes:
    """Give the content of a file, its checksum at the end.

    Parameters
    ----------
    payload
        Tensors and plain data.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    # A zip ends with the length of its comment.
    content = buffer.getvalue()[:-2] + struct.pack("<H", _N_CHECKSUM)
    return content + f"sha256:{hashlib.sha256(content).hexdigest()}".encode()


def _decode(path: Path) -> dict[str, Any]:
    """Read a file of this format, whoever wrote it."""
    content = _verified(path)
    with blaming(path):
        payload = _unpack(content)
        version = payload.get("format")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"{path} was saved in format {version}; this version of scvci reads "
            f"format {_FORMAT_VERSION}. Train the model again."
        )
    return payload


def _verified(path: Path) -> bytes:
    """Read a file and check that it is as it was written."""
    try:
        # Devices and pipes would never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is no file.")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"No saved model at {path}.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    found = _CHECKSUM.fullmatch(content[-_N_CHECKSUM:])
    if found is None:
        raise ValueError(
            f"{path} has no checksum at its end: it is cut off or damaged, or was not written by "
            "this version of scvci. Get the file anew, or train the model again."
        )
    content = content[:-_N_CHECKSUM]
    if hashlib.sha256(content).hexdigest().encode() != found[1]:
        raise ValueError(
            f"{path} is damaged: its content does not have the checksum that it was saved with. "
            "Get the file anew, or train the model again."
        )
    return content


def _unpack(content: bytes) -> dict[str, Any]:
    """Read a zip of torch that may come from anyone, in no more memory than its size."""
    # Its comment has been taken off.
    with zipfile.ZipFile(io.BytesIO(content[:-2] + b"\0\0")) as archive:
        members = archive.infolist()
        is_small = sum(member.file_size for member in members) <= len(content)
        if not is_small or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, as files of scvci never are")
        parts = {member.filename: archive.read(member) for member in members}
    _check_pickles([part for name, part in parts.items() if name.endswith(".pkl")])
    n_bytes = sum(len(part) for name, part in parts.items() if "/data/" in name)
    # What torch reads is what was looked at, whatever else lies between the parts of the zip.
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    copy.seek(0)
    try:
        payload = torch.load(copy, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AssertionError, AttributeError, IndexError) as error:
        raise ValueError("it holds something else than tensors and plain data") from error
    if type(payload) is not dict:
        raise ValueError(f"it holds a {type(payload).__name__} in place of a model")
    tensors = list(_tensors(payload, len(content)))
    if not all(tensor.is_contiguous() for tensor in tensors) or n_bytes != sum(
        tensor.numel() * tensor.element_size() for tensor in tensors
    ):
        raise ValueError("its tensors are larger or smaller than what it holds of them")
    return payload


def _check_pickles(pickles: list[bytes]) -> None:
    """Refuse what torch's reader might run or build beside tensors."""
    n_tuples = 0
    for opcode, argument, _ in (op for data in pickles for op in pickletools.genops(data)):
        n_tuples += opcode.name.startswith("TUPLE")
        if opcode.name == "GLOBAL" and not _NAMED.fullmatch(str(argument)):
            raise ValueError(f"it holds code ({argument}), which is not run")
    if n_tuples > _MAX_TUPLES:
        raise ValueError("it is nested too deeply")


def _tensors(payload: Any, n_bytes: int) -> Iterator[torch.Tensor]:
    """Tensors among plain data, of which each item takes a byte of the file at least."""
    stack, n_items = [(payload, 0)], 0
    while stack:
        item, depth = stack.pop()
        n_items += 1
        if depth > _MAX_DEPTH or n_items > n_bytes:
            raise ValueError("it is nested too deeply")
        if type(item) is dict:
            if not all(type(key) in (str, int) for key in item):
                raise ValueError("a name in it is no text")
            stack += [(value, depth + 1) for value in item.values()]
        elif type(item) is list:
            stack += [(value, depth + 1) for value in item]
        elif type(item) is torch.Tensor:
            yield item
        elif item is not None and type(item) not in (str, bool, int, float):
            raise ValueError(f"it holds a {type(item).__name__}")
