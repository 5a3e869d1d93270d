"""scvi-tools' runner, for users who stop training."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import torch
from scvi.train import TrainRunner

from ._finite import NotFiniteError, explain

if TYPE_CHECKING:
    from ._callbacks import KeepWeights


class InterruptibleRunner(TrainRunner):
    """Run training; Ctrl-C ends it early, with the best weights so far.

    Lightning leaves the process on Ctrl-C, and scvi-tools then prints the exception and leaves
    the model as it is. Here a training that is stopped ends like one that stops by itself; who
    called says what follows.

    Parameters
    ----------
    kept
        Callback that keeps weights, one of the trainer's.
    **kwargs
        Passed to :class:`~scvi.train.TrainRunner`.
    """

    def __init__(self, kept: KeepWeights, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kept = kept

    def _run_training_core(self) -> None:
        plan, model = self.training_plan, self.model
        try:
            self._fit()
        except NotFiniteError as error:
            self.kept.put_back(plan)
            raise NotFiniteError(explain(error, plan, self.data_splitter)) from error
        if self.kept.interrupted:
            if self.kept.best_epoch is None:
                raise KeyboardInterrupt("Training was stopped before an epoch was finished.")
            self.kept.put_back(plan)
        self._update_history()
        model.train_indices = self.data_splitter.train_idx
        model.validation_indices = self.data_splitter.val_idx
        model.test_indices = self.data_splitter.test_idx
        model.module.eval()
        model.is_trained_ = True
        model.to_device(self.device)
        model.trainer = self.trainer

    def _fit(self) -> None:
        """Fit; return when it ends or is interrupted."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except SystemExit:
            if not self.kept.interrupted:
                raise
        finally:
            # Lightning ignores further Ctrl-C once it has seen one.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
