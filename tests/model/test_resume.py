"""A training that goes on from a checkpoint ends as one that was never stopped."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from scvci.model import VCI, ImageVCI
from scvci.train._resume import FILE_NAME
from tests.image_data import blobs

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 64}
SMALL = {"width": 8, "n_latent": 8, "n_maps": 4, "depth": 1, "n_condition": 16}
#: Stops two epochs before the last, two or three after a checkpoint.
N_EPOCHS = 9


class _Stop(pl.Callback):
    """The process dies in the middle of an epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == N_EPOCHS - 2 and batch_idx == 1:
            raise MemoryError


def _vci(data, **settings):
    VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    return VCI(data, **{"n_latent": 3, "seed": 0, **settings})


def _critic(data):
    return _vci(data, covariate_term="discriminator")


def _images(data):
    images = blobs(200)
    ImageVCI.setup_anndata(images, treatment_keys=["brightness", "size"])
    return ImageVCI(images, architecture=SMALL, seed=0)


def _train(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{"max_epochs": N_EPOCHS, **QUIET, **arguments})


def _stopped(model, folder, **arguments):
    with pytest.raises(MemoryError):
        _train(
            model,
            checkpoint_dir=folder,
            checkpoint_every_n_epochs=3,
            callbacks=[_Stop()],
            **arguments,
        )


def _assert_same(model, other):
    for name, weights in model.module.state_dict().items():
        assert torch.equal(weights, other.module.state_dict()[name]), name
    assert model.history.keys() == other.history.keys()
    for name, frame in model.history.items():
        # Files of models keep numbers and index, not the type of the column.
        found = other.history[name]
        assert frame.astype(float).equals(found.astype(float)), name
    assert model.parts_ == other.parts_
    assert model.trained_cells_ == other.trained_cells_
    if isinstance(model, VCI):
        np.testing.assert_array_equal(model.calibration.shift, other.calibration.shift)
        layers = [m.adata.layers[m.predict_counterfactual("IFNb")[0]] for m in (model, other)]
        np.testing.assert_array_equal(*layers)


@pytest.mark.parametrize(
    ("build", "options"), [(_vci, {"early_stopping": False}), (_critic, {}), (_images, {})]
)
def test_it_ends_as_if_it_had_not_stopped(adata, tmp_path, build, options):
    reference = build(adata.copy())
    _train(reference, **options)
    _stopped(build(adata.copy()), tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    resumed = build(adata.copy())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    _train(resumed, resume_from=tmp_path, **options)
    assert torch.equal(torch.get_rng_state(), state)
    _assert_same(reference, resumed)


def test_it_can_stop_and_go_on_several_times(adata, tmp_path):
    """In a second training, of a model read from a file."""
    first = _vci(adata.copy())
    _train(first, max_epochs=2)
    first.save(tmp_path / "first")
    _train(first, plan_kwargs={"n_epochs_kl_warmup": 5})

    def load():
        return VCI.load(tmp_path / "first", adata.copy(), accelerator="cpu")

    options = {"plan_kwargs": {"n_epochs_kl_warmup": 5}}
    _stopped(load(), tmp_path, **options)
    _stopped(load(), tmp_path, resume_from=tmp_path, **options)
    resumed = load()
    _train(resumed, resume_from=tmp_path / FILE_NAME, checkpoint_dir=tmp_path, **options)
    _assert_same(first, resumed)


def test_early_stopping_counts_on(adata, tmp_path):
    options = {"early_stopping_patience": 2, "plan_kwargs": {"lr": 0.1}, "max_epochs": 40}
    reference, with_files = _vci(adata.copy()), _vci(adata.copy())
    _train(reference, **options)
    assert len(reference.history["train_loss"]) < 40
    _train(with_files, checkpoint_dir=tmp_path, checkpoint_every_n_epochs=1, **options)
    _assert_same(reference, with_files)
    resumed = _vci(adata.copy())
    _train(resumed, resume_from=tmp_path, **options)
    _assert_same(reference, resumed)


def test_checkpoints_of_another_training_are_refused(adata, tmp_path):
    _stopped(_vci(adata.copy()), tmp_path)
    counts = adata.copy()
    counts.layers["counts"] = counts.layers["counts"] * 2
    genes = adata[:, ::-1].copy()
    cells = adata.copy()
    cells.obs_names = [f"other {name}" for name in cells.obs_names]
    for data, settings, arguments, message in (
        (adata, {"n_latent": 4}, {}, r"n_latent \(3 then, 4 now\)\."),
        (adata, {"seed": 5}, {}, r"seed \(0 then, 5 now\); training cells"),
        (adata, {}, {"max_epochs": 12}, r"differs: max_epochs \(9 then, 12 now\)\."),
        (adata, {}, {"plan_kwargs": {"lr": 0.1}}, r"differs: plan_kwargs\.lr"),
        (adata, {}, {"train_size": 0.8}, r"differs: training cells; validation cells"),
        (counts, {}, {}, r"differs: values of X\."),
        (genes, {}, {}, r"differs: variables; values of X\."),
        (cells, {}, {}, r"differs: cells; training cells; validation cells\."),
    ):
        model = _vci(data.copy(), **settings)
        with pytest.raises(ValueError, match=message):
            _train(model, resume_from=tmp_path, **arguments)
        assert not model.is_trained_
    model = _critic(adata.copy())
    with pytest.raises(ValueError, match="covariate_term"):
        _train(model, resume_from=tmp_path)


def test_damaged_and_missing_files_are_refused(adata, tmp_path):
    model, file = _vci(adata), tmp_path / FILE_NAME
    with pytest.raises(ValueError, match="no such checkpoint"):
        _train(model, resume_from=tmp_path)
    _stopped(model, tmp_path)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-1], bytes(flipped)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            _train(model, resume_from=tmp_path)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        _train(model, resume_from=tmp_path)
