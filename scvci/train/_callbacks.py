"""Callbacks of training."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch


class KeepWeights(pl.Callback):
    """Keep the best weights so far, and put them back when training ends or is stopped.

    They are kept in memory; scvi-tools' checkpoint callback writes a directory for each
    improvement.

    Parameters
    ----------
    monitor
        Logged quantity of which the lowest value is best; ``None`` takes the last finished epoch
        for the best.
    """

    def __init__(self, monitor: str | None) -> None:
        super().__init__()
        self.monitor = monitor
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        #: Whether a user stopped training (Ctrl-C).
        self.interrupted = False
        self._state: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights that training starts from, unless it goes on from a checkpoint."""
        if not self._state:
            self._keep(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        value = None if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or not torch.isfinite(value):
            return
        if self.best_value is None or float(value) < self.best_value:
            self.best_value = float(value)
            self.best_epoch = trainer.current_epoch
            self._keep(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of a finished epoch if there is nothing to judge them by."""
        if self.monitor is None and trainer.current_epoch:
            self.best_epoch = trainer.current_epoch - 1
            self._keep(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note who stopped training."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights; without a criterion the last ones stay."""
        if self.best_value is not None:
            self.put_back(pl_module)

    def put_back(self, pl_module: pl.LightningModule) -> None:
        """Restore the weights that were kept.

        Parameters
        ----------
        pl_module
            The training plan.
        """
        pl_module.module.load_state_dict(self._state)

    def _keep(self, pl_module: pl.LightningModule) -> None:
        self._state = copy.deepcopy(pl_module.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"value": self.best_value, "epoch": self.best_epoch, "weights": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.best_value, self.best_epoch = state_dict["value"], state_dict["epoch"]
        self._state = state_dict["weights"]
