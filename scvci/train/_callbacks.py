"""Callbacks of training."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch


class RestoreBest(pl.Callback):
    """Put back the weights of the epoch with the lowest monitored value when training ends.

    They are kept in memory; scvi-tools' checkpoint callback writes a directory for each
    improvement.

    Parameters
    ----------
    monitor
        Logged quantity, lower is better.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._state: dict[str, Any] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights if they are the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or not torch.isfinite(value):
            return
        if self.best_value is None or float(value) < self.best_value:
            self.best_value = float(value)
            self.best_epoch = trainer.current_epoch
            self._state = copy.deepcopy(pl_module.module.state_dict())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights."""
        if self._state is not None:
            pl_module.module.load_state_dict(self._state)
            self._state = None
