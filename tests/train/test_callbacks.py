"""The best weights of a training."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from scvci.train._callbacks import RestoreBest


def test_the_best_epoch_s_weights_are_put_back():
    net = torch.nn.Linear(1, 1)
    holder = SimpleNamespace(module=net)
    callback = RestoreBest("loss")
    for epoch, loss in enumerate([3.0, 1.0, float("nan"), 2.0]):
        torch.nn.init.constant_(net.weight, float(epoch))
        trainer = SimpleNamespace(
            callback_metrics={"loss": torch.tensor(loss)},
            sanity_checking=False,
            current_epoch=epoch,
        )
        callback.on_validation_end(trainer, holder)
    assert (callback.best_epoch, callback.best_value) == (1, 1.0)
    callback.on_train_end(trainer, holder)
    assert float(net.weight.detach()) == 1.0
