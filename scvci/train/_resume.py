"""Checkpoints from which a training goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.fabric.plugins import CheckpointIO

from scvci._files import write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

#: Name of the file in a folder of checkpoints.
FILE_NAME = "training.ckpt"
#: First line of a file; the second is the digest of what follows. Raised when the layout changes.
_MAGIC = b"scvci training checkpoint 1\n"
_IDENTITY, _HISTORY = "scvci_identity", "scvci_history"


class Checkpoints(pl.Callback):
    """Write the state of training at the start of every n-th epoch, and restore its history.

    The start of an epoch is when everything of the epochs before is done and logged. Lightning
    saves and restores weights, optimisers, schedules, its loops and the state of callbacks; the
    splitter that of the generators.

    Parameters
    ----------
    path
        The file, which is replaced each time; ``None`` to restore only.
    every_n_epochs
        Epochs between two checkpoints.
    resume_from
        The file to go on from, if any.
    """

    def __init__(
        self, path: Path | None, every_n_epochs: int, resume_from: Path | None = None
    ) -> None:
        super().__init__()
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.resume_from = resume_from
        #: Epoch at whose start there is nothing to save: a first one, or one that is gone on from,
        #: whose first draws precede it.
        self._first_epoch = 0

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str] | None,
        every_n_epochs: int,
        resume_from: str | os.PathLike[str] | None,
    ) -> Self | None:
        """Read the arguments of a training; ``None`` if it has nothing to do with checkpoints.

        Parameters
        ----------
        folder, every_n_epochs, resume_from
            See :meth:`scvci.model.VCI.train`.
        """
        if folder is None and resume_from is None:
            return None
        # Some words mean something else to Lightning than a path; none that is absolute does.
        path = None if folder is None else Path(folder).absolute() / FILE_NAME
        start = None if resume_from is None else Path(resume_from).absolute()
        if start is not None and start.is_dir():
            start = start / FILE_NAME
        return cls(path, every_n_epochs, start)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, in every n-th epoch."""
        epoch = trainer.current_epoch
        if self.path is None or epoch == self._first_epoch or epoch % self.every_n_epochs:
            return
        # Lightning counts the batches of the last epoch until the next one begins, and would take
        # that one for finished, too.
        trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the history, which Lightning leaves to loggers."""
        checkpoint[_HISTORY] = {
            name: {
                "index": frame.index.tolist(),
                "index_name": frame.index.name,
                "values": frame[name].tolist(),
                "dtype": str(frame[name].dtype),
            }
            for name, frame in getattr(trainer.logger, "history", {}).items()
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the history back, if the logger keeps one."""
        self._first_epoch = checkpoint["epoch"]
        if not hasattr(trainer.logger, "history"):
            return
        for name, saved in checkpoint[_HISTORY].items():
            trainer.logger.experiment.data[name] = pd.DataFrame(
                {name: pd.Series(saved["values"], dtype=saved["dtype"]).to_numpy()},
                index=pd.Index(saved["index"], name=saved["index_name"]),
            )


class WholeFiles(CheckpointIO):
    """Files that are written whole or not at all, and read without running code in them.

    Parameters
    ----------
    identity
        What a training is told from others by: names, and numbers, texts or :func:`digest`.
    """

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a file in place of the one before."""
        buffer = io.BytesIO()
        torch.save({**checkpoint, _IDENTITY: self.identity}, buffer)
        content = buffer.getvalue()
        path = Path(path)
        # A file that cannot be read again must not take the place of one that can.
        _read(content, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_bytes(_MAGIC + _checksum(content) + content))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file of this training.

        Raises
        ------
        ValueError
            If there is none, it is damaged, or it is of another training; with what differs.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"resume_from={str(path)!r}: there is no such checkpoint.")
        raw = path.read_bytes()
        start = len(_MAGIC) + len(_checksum(b""))
        if raw[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} is no checkpoint of a training by this version of scvci.")
        if raw[len(_MAGIC) : start] != _checksum(raw[start:]):
            raise ValueError(f"{path} is damaged: its content is not what was written.")
        checkpoint = _read(raw[start:], path)
        _require_same(checkpoint.pop(_IDENTITY), self.identity, path)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


def digest(*parts: bytes) -> str:
    """Short text that tells content apart.

    Parameters
    ----------
    parts
        The content.
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return f"sha256:{found.hexdigest()}"


def _checksum(content: bytes) -> bytes:
    return digest(content).encode() + b"\n"


def _read(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} holds more than tensors and plain data, which is not read: {error}"
        ) from error


def _require_same(saved: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint is of the training that is to go on."""
    different = []
    for name in dict.fromkeys([*saved, *here]):
        then, now = saved.get(name), here.get(name)
        if then != now:
            secret = str(then).startswith("sha256:") or str(now).startswith("sha256:")
            different.append(name if secret else f"{name} ({then!r} then, {now!r} now)")
    if different:
        raise ValueError(
            f"{path} is a checkpoint of another training. What differs: {'; '.join(different)}. "
            "A training goes on with the same cells, model and arguments only."
        )
