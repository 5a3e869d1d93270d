"""Files are written whole or not at all; shared by all folders."""

from __future__ import annotations

import glob
import io
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import h5py
from anndata.io import write_elem

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two writers of one folder apart.
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Buffer, Callable, Iterator
    from pathlib import Path

    from anndata import AnnData

#: Names of files that are being written; the end of a name says its format.
_PART = ".scvci-part-{}-{}"
#: Bytes of a piece of HDF5 that may be read again; data are written in larger ones.
_MAX_KEPT = 2**18


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in place of another, which stays until the new one is complete.

    Parameters
    ----------
    path
        Where the file goes; its folder exists.
    write
        Writes a file to the path that it is given.

    Raises
    ------
    OSError
        If that fails, with the path and the cause. What was there is as it was.
    """
    with one_writer(path.parent):
        remove_parts(path)
        os.replace(write_part(path, write), path)
        sync_folder(path.parent)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Let one writer at a time into a folder, so that parts that lie there are abandoned ones.

    Parameters
    ----------
    folder
        The folder.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_part(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file beside where it will go, down to the disk.

    Parameters
    ----------
    path, write
        See :func:`write_whole`.

    Returns
    -------
    Where it is.
    """
    part = path.with_name(_PART.format(secrets.token_hex(4), path.name))
    try:
        if path.is_dir():
            raise IsADirectoryError("there is a folder of this name")
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # HDF5 reports a full disk as either.
        if isinstance(error, OSError | RuntimeError):
            code = getattr(error, "errno", None)
            cause = os.strerror(code) if code else str(error)
            raise OSError(
                f"{path} cannot be written ({cause}). Whatever was there is as it was."
            ) from error
        raise
    return part


def remove_parts(path: Path) -> None:
    """Remove what killed processes left of a file.

    Parameters
    ----------
    path
        Where the file was to go.
    """
    for part in path.parent.glob(_PART.format("?" * 8, glob.escape(path.name))):
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring names down to the disk, so that later ones do not get there before.

    Parameters
    ----------
    folder
        The folder.
    """
    if fcntl is None:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some file systems do not sync folders.
            os.fsync(handle)
    finally:
        os.close(handle)


def write_h5ad(path: Path, adata: AnnData, **options: Any) -> None:
    """Write an AnnData as :meth:`anndata.AnnData.write_h5ad` does, also where a disk is full.

    Parameters
    ----------
    path
        Where to write to.
    adata
        The AnnData; if it is backed, its own file stays what it is backed by.
    **options
        Of the data sets in the file, as ``compression="gzip"``.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    file = _PatientFile(path, "w+")
    try:
        with h5py.File(file, "w") as group:
            write_elem(group, "/", adata, dataset_kwargs=options)
    finally:
        file.close()
        if file.error is not None:
            raise file.error


class _PatientFile(io.FileIO):
    """A file that keeps its first error to itself: HDF5 crashes where it cannot close a file.

    What HDF5 reads again, its small pieces that say where data are, is then kept in memory.
    """

    error: OSError | None = None

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._kept: list[tuple[int, bytes]] = []

    def write(self, data: Buffer) -> int:
        """Write all of it; once something failed, keep it if it is small."""
        start, whole = self.tell(), memoryview(data).cast("B")
        left = whole
        try:
            while self.error is None and left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        if self.error is not None and len(whole) <= _MAX_KEPT:
            self._kept.append((start, bytes(whole)))
        return len(whole)

    def readinto(self, buffer: Buffer) -> int:
        """Read, also what was kept."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        n_bytes = super().readinto(view) or 0
        if self.error is None:
            return n_bytes
        view[n_bytes:] = bytes(len(view) - n_bytes)
        for at, piece in self._kept:
            first, last = max(at, start), min(at + len(piece), start + len(view))
            if first < last:
                view[first - start : last - start] = piece[first - at : last - at]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, unless something failed."""
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0
