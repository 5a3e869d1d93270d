"""A training that fails or is stopped: the model is as before, or has the best weights so far."""

from __future__ import annotations

import copy
import os
import signal
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import Wreck

import scvci
from scvci.model import VCI

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 64}


@pytest.fixture(autouse=True)
def _listens_to_ctrl_c():
    """Processes that a shell starts in the background ignore SIGINT; tests may be among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Raise(pl.Callback):
    """Raise in an epoch."""

    def __init__(self, error, epoch=3):
        self.error, self.epoch = error, epoch

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == self.epoch:
            raise self.error


class _CtrlC(_Raise):
    """What a terminal does when a user presses Ctrl-C."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGINT)


def _model(adata, trained):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, n_latent=3, seed=0)
    if trained:
        _train(model, max_epochs=2)
    return model


def _train(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{"max_epochs": 6, **QUIET, **arguments})


def _predict(model):
    [layer] = model.predict_counterfactual("IFNb")
    return model.adata.layers[layer].copy()


def _state(model):
    weights = copy.deepcopy(model.module.state_dict())
    attributes = {k: v for k, v in vars(model).items() if k not in ("module", "cache")}
    history = {} if model.history_ is None else {k: len(v) for k, v in model.history_.items()}
    return weights, attributes, history, copy.deepcopy(model.parts_), model.module.training


def _fail_in_calibration(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("scvci.model._training.fit_calibration", fail)
    return {}


FAILURES = {
    "an argument of the trainer": (TypeError, lambda _: {"no_such_argument": 1}),
    "the device": (Exception, lambda _: {"accelerator": "no_such_device"}),
    "an epoch": (ValueError, lambda _: {"callbacks": [_Raise(ValueError("stop"))]}),
    "the calibration": (ValueError, lambda m: _fail_in_calibration(ValueError("stop"), m)),
    "Ctrl-C in the calibration": (
        KeyboardInterrupt,
        lambda m: _fail_in_calibration(KeyboardInterrupt(), m),
    ),
    "Ctrl-C in the first epoch": (KeyboardInterrupt, lambda _: {"callbacks": [_CtrlC(0, 0)]}),
    "sys.exit of a callback": (SystemExit, lambda _: {"callbacks": [_Raise(SystemExit(3))]}),
}


@pytest.fixture(scope="module")
def model_of():
    """A model that is not trained, and one that is."""
    data = scvci.datasets.simulate_perturbation(n_cells=200, n_genes=10, n_treatments=3, seed=0)
    models = {trained: _model(data.copy(), trained) for trained in (False, True)}
    for model in models.values():
        model.cache["kept"] = "by an analysis"
    return models


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("where", list(FAILURES))
def test_a_model_whose_training_fails_is_as_it_was(model_of, monkeypatch, where, trained):
    error, arrange = FAILURES[where]
    model = model_of[trained]
    before, predicted = _state(model), _predict(model) if trained else None
    with monkeypatch.context() as patched, pytest.raises(error):
        _train(model, **arrange(patched))
    after = _state(model)
    for name, weights in before[0].items():
        assert torch.equal(weights, after[0][name]), name
    assert before[1].keys() == after[1].keys()
    assert all(before[1][name] is value for name, value in after[1].items())
    assert before[2:] == after[2:]
    assert model.cache == {"kept": "by an analysis"}
    if trained:
        np.testing.assert_array_equal(_predict(model), predicted)


def test_nothing_of_a_failure_is_left_for_the_next_training(adata):
    models = [_model(data, trained=False) for data in (adata, adata.copy())]
    with pytest.raises(ValueError, match="stop"):
        _train(models[0], callbacks=[_Raise(ValueError("stop"))])
    for model in models:
        _train(model)
    np.testing.assert_array_equal(*map(_predict, models))


@pytest.mark.parametrize(("trained", "early_stopping"), [(False, True), (True, False)])
def test_ctrl_c_keeps_the_best_weights_so_far(adata, trained, early_stopping):
    handler = signal.getsignal(signal.SIGINT)
    model = _model(adata, trained)
    callbacks = [Wreck(3), _CtrlC(None, 4)]
    best = 2 if early_stopping else 3
    with (
        pytest.warns(UserWarning, match=rf"stopped. The model has the weights of epoch {best} "),
        pytest.raises(KeyboardInterrupt),
    ):
        model.train(10, callbacks=callbacks, early_stopping=early_stopping, **QUIET)
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.is_trained_
    assert not model.module.training
    assert model.n_trainings_ == 1 + trained
    assert len(model.history["train_loss"]) == 2 * trained + 4
    assert len(model.train_indices) + len(model.validation_indices) == adata.n_obs


def test_what_is_stopped_equals_a_training_of_so_many_epochs(adata):
    """Weights and calibration, where the schedule does not depend on the number of epochs."""
    models = [_model(data, trained=False) for data in (adata, adata.copy())]
    plan = {"lr_decay": None}
    with pytest.warns(UserWarning, match="stopped"), pytest.raises(KeyboardInterrupt):
        models[0].train(10, callbacks=[_CtrlC(None, 4)], plan_kwargs=plan, **QUIET)
    _train(models[1], max_epochs=4, plan_kwargs=plan)
    np.testing.assert_array_equal(*map(_predict, models))


def test_a_script_that_is_stopped_ends_unless_it_says_otherwise(adata, tmp_path):
    model = _model(adata, trained=False)
    try:
        _train(model, callbacks=[_CtrlC(None)])
    except KeyboardInterrupt:
        model.save(tmp_path / "model")
    again = VCI.load(tmp_path / "model", adata.copy(), accelerator="cpu")
    np.testing.assert_array_equal(_predict(again), _predict(model))
