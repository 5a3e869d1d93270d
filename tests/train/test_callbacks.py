"""The best weights of a training."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from scvci.train._callbacks import KeepWeights


def test_the_best_epoch_s_weights_are_put_back():
    net = torch.nn.Linear(1, 1)
    holder = SimpleNamespace(module=net)
    callback = KeepWeights("loss")
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


def test_without_a_criterion_the_last_finished_epoch_is_kept():
    net = torch.nn.Linear(1, 1)
    holder, callback = SimpleNamespace(module=net), KeepWeights(None)
    callback.on_train_start(SimpleNamespace(), holder)
    for epoch in range(3):
        callback.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), holder)
        torch.nn.init.constant_(net.weight, float(epoch))
    assert callback.best_epoch == 1
    callback.on_train_end(SimpleNamespace(), holder)
    assert float(net.weight.detach()) == 2.0
    callback.put_back(holder)
    assert float(net.weight.detach()) == 1.0
