"""Files of models, whatever happens while they are written and whoever wrote them."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import warnings
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi.train import SaveCheckpoint

from scvci.model import VCI
from scvci.model._saving import encode

STATE, ATTRIBUTES = "model_state_dict", "attr_dict"


def _experiment(n_cells, seed=0):
    rng = np.random.default_rng(seed)
    treatments = ["control", "A", "B"]
    return anndata.AnnData(
        rng.poisson(4, (n_cells, 5)).astype(np.float32),
        obs=pd.DataFrame(
            {"treatment": [treatments[i % 3] for i in range(n_cells)]},
            index=[f"cell{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(5)]),
    )


def _fit(n_cells, seed=0, **options):
    data = _experiment(n_cells, seed)
    VCI.setup_anndata(data)
    model = VCI(data, n_latent=2, architecture={"n_hidden": 8}, seed=seed)
    _train(model, **options)
    return model


def _train(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu", **options)


@pytest.fixture(scope="module")
def old():
    return _fit(60, seed=1)


@pytest.fixture(scope="module")
def new():
    return _fit(90, seed=2)


@pytest.fixture
def folder(old, tmp_path):
    old.save(tmp_path / "model", save_anndata=True)
    return tmp_path / "model"


def _load(folder, adata=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return VCI.load(folder, adata, accelerator="cpu")


def _held(folder):
    """Seed and number of cells of the model in a folder; ``None`` without a model."""
    try:
        model = _load(folder)
    except ValueError as error:
        assert "No saved model" in str(error)  # noqa: PT017
        return None
    return model.seed_, None if model.adata is None else model.adata.n_obs


def _forked(work):
    """Exit status of a process of its own that does some work."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- a process that ends ------------------------------------------------------------------------


def _save_until(model, folder, step, **options):
    """Save, and be killed at a step of what concerns the disk."""
    left = step

    def tick():
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function):
        def run(*args, **kwargs):
            tick()
            return function(*args, **kwargs)

        return run

    def write_bytes(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            tick()
            file.write(content[len(content) // 2 :])

    Path.write_bytes = write_bytes
    for name in ("replace", "fsync", "unlink"):
        setattr(os, name, watched(getattr(os, name)))
    model.save(folder, overwrite=True, **options)
    os._exit(0)


@pytest.mark.parametrize(
    ("before", "after"),
    [(True, True), (True, False), (False, True), (None, True)],
    ids=["cells by cells", "cells by none", "none by cells", "nothing by cells"],
)
def test_killed_at_any_step_the_old_or_the_new_is_whole(old, new, tmp_path, before, after):
    first = tmp_path / "first"
    if before is not None:
        old.save(first, save_anndata=before)
    was = None if before is None else (1, 60 if before else None)
    will_be = (2, 90 if after else None)
    found, step, status = [], 0, None
    while status != 0:
        folder = tmp_path / str(step)
        if before is not None:
            shutil.copytree(first, folder)
        status = _forked(lambda f=folder, s=step: _save_until(new, f, s, save_anndata=after))
        assert status in (0, -signal.SIGKILL)
        found.append(_held(folder))
        step += 1
    # First the old one and then the new one.
    assert found == [was] * found.count(was) + [will_be] * found.count(will_be)
    assert found.count(was) > 2
    assert found.count(will_be) > 1
    names = ["adata.h5ad", "model.pt"] if after else ["model.pt"]
    assert sorted(os.listdir(folder)) == names
    for leftover in range(step - 1):
        new.save(tmp_path / str(leftover), overwrite=True)
        assert os.listdir(tmp_path / str(leftover)) == ["model.pt"]


@pytest.mark.parametrize("limit", [500, 2_000, 5_000, 20_000])
def test_a_full_disk_leaves_the_old_model(new, folder, limit):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for target, names in ((folder, set(before)), (folder / "new", None)):
            try:
                new.save(target, overwrite=True, save_anndata=True)
            except OSError as error:
                assert "cannot be written (File too large)" in str(error)  # noqa: PT017
                assert str(target) in str(error)  # noqa: PT017
            assert (set(os.listdir(target)) if target.exists() else None) == names
        os._exit(0)

    assert _forked(save) == 0
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_what_cannot_be_written_is_named(old, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(OSError, match=r"file.*cannot be made"):
            old.save(target, overwrite=True)
    taken = tmp_path / "taken"
    (taken / "model.pt").mkdir(parents=True)
    with pytest.raises(OSError, match=r"model\.pt cannot be written.*folder of this name"):
        old.save(taken, overwrite=True, save_anndata=True)
    assert os.listdir(taken) == ["model.pt"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = _fit(30)
    with torch.no_grad():
        model.module.encoder.mean.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"cannot be saved.*'encoder\.mean\.bias' is not finite"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# -- cells ----------------------------------------------------------------------------------------


def test_cells_go_with_their_model(new, folder):
    new.save(folder, overwrite=True)
    assert os.listdir(folder) == ["model.pt"]
    assert VCI.load(folder).adata is None


def test_cells_of_a_user_stay_and_are_not_attached(new, folder):
    _experiment(7).write_h5ad(folder / "adata.h5ad")
    new.save(folder, overwrite=True)
    assert anndata.read_h5ad(folder / "adata.h5ad").n_obs == 7
    with pytest.warns(UserWarning, match=r"adata\.h5ad was not saved with the model"):
        assert VCI.load(folder).adata is None


def test_other_cells_in_their_place_are_refused_by_name(folder):
    (folder / "adata.h5ad").rename(folder / "elsewhere.h5ad")
    with pytest.warns(UserWarning, match=r"adata\.h5ad.*is gone"):
        assert VCI.load(folder).adata is None
    _experiment(60).write_h5ad(folder / "adata.h5ad")
    with pytest.raises(ValueError, match=r"adata\.h5ad is not what was saved with the model"):
        VCI.load(folder)
    cells = anndata.read_h5ad(folder / "adata.h5ad")
    assert VCI.load(folder, cells).adata is cells


def test_prefixes_share_a_folder(old, new, tmp_path):
    old.save(tmp_path, prefix="a_", overwrite=True, save_anndata=True)
    new.save(tmp_path, prefix="b_", overwrite=True, save_anndata=True)
    for prefix, n_cells in (("a_", 60), ("b_", 90)):
        assert VCI.load(tmp_path, prefix=prefix).adata.n_obs == n_cells


def test_backed_cells_stay_where_they_are(tmp_path):
    _experiment(60).write_h5ad(tmp_path / "cells.h5ad")
    data = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    VCI.setup_anndata(data)
    VCI(data, seed=0).save(tmp_path / "model", save_anndata=True, compression="gzip")
    assert data.filename == tmp_path / "cells.h5ad"
    assert data[:3].to_memory().shape == (3, 5)
    assert VCI.load(tmp_path / "model").adata.n_obs == 60


# -- damage ---------------------------------------------------------------------------------------


def test_no_damage_passes(folder, rng):
    file = folder / "model.pt"
    good = file.read_bytes()
    damaged = [good[: rng.integers(len(good))] for _ in range(40)] + [b"", good + b"\0"]
    for at, bit in zip(rng.integers(len(good), size=150), rng.integers(8, size=150), strict=True):
        flipped = bytearray(good)
        flipped[at] ^= 1 << bit
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.pt (has no checksum|is damaged)"):
            VCI.load(folder, adata=False)
    cells = folder / "adata.h5ad"
    content = bytearray(cells.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(good)
    cells.write_bytes(content)
    with pytest.raises(ValueError, match=r"adata\.h5ad is not what was saved"):
        VCI.load(folder)


def test_what_is_no_file_is_named(folder):
    file = folder / "model.pt"
    for make, message in (
        (lambda: None, "No saved model at"),
        (file.mkdir, r"model\.pt is no file"),
        (lambda: os.mkfifo(file), r"model\.pt is no file"),
        (lambda: file.symlink_to(file), r"model\.pt cannot be read \(Too many levels"),
    ):
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        make()
        for read in (VCI.load, VCI.load_registry):
            with pytest.raises(ValueError, match=message):
                read(folder)


# -- files of others ------------------------------------------------------------------------------


def _state(registry, key):
    return registry["field_registries"][key]["state_registry"]


def _nested(depth):
    value = "end"
    for _ in range(depth):
        value = [value]
    return value


def _shared(depth):
    value = "end"
    for _ in range(depth):
        value = [value, value]
    return value


def _parameters(payload):
    return payload[ATTRIBUTES]["init_params_"]["non_kwargs"]


def _fewer_genes(payload):
    payload["var_names"].pop()
    _state(payload[ATTRIBUTES]["registry_"], "X")["column_names"].pop()


def _many_arms(payload):
    arms = _state(payload[ATTRIBUTES]["registry_"], "treatment")
    arms["names"] = [f"arm{i}" for i in range(20_000)]
    payload[STATE]["treatment_codes"] = torch.zeros(20_000, 2)


def _calibration(name, value):
    return lambda p: p[ATTRIBUTES]["calibration_"].update({name: {"__array__": value}})


NAN = float("nan")
EDITS = {
    "a future format": (lambda p: p.update(format=4), "saved in format 4.*reads format 3"),
    "no format": (lambda p: p.pop("format"), "saved in format None"),
    "another class": (lambda p: p.update({"class": "Other"}), "holds a 'Other', not a VCI"),
    "no tensors": (lambda p: p.pop(STATE), STATE),
    "weights are NaN": (
        lambda p: p[STATE].update(feature_mean=torch.full((5,), NAN)),
        "'feature_mean' is not finite",
    ),
    "a tensor is missing": (
        lambda p: p[STATE].pop("encoder.mean.bias"),
        r"tensor 'encoder\.mean\.bias' is missing",
    ),
    "a tensor too many": (
        lambda p: p[STATE].update(more=torch.zeros(2)),
        "tensor 'more' is unknown",
    ),
    "a tensor of doubles": (
        lambda p: p[STATE].update(feature_mean=torch.zeros(5, dtype=torch.float64)),
        r"'feature_mean' has type torch\.float64",
    ),
    "a text for a tensor": (lambda p: p[STATE].update(feature_mean="x"), "model.pt"),
    "a tensor of what is not there": (
        lambda p: p[STATE].update(feature_mean=torch.zeros(1).expand(10**9)),
        "larger or smaller than what it holds",
    ),
    "a name fewer": (lambda p: p["var_names"].pop(), "names of variables"),
    "a gene fewer": (_fewer_genes, r"'feature_mean' has shape \(5,\), not \(4,\)"),
    "a million latents": (
        lambda p: _parameters(p).update(n_latent=10**6),
        r"has shape .* not \(1000000",
    ),
    "a million layers": (
        lambda p: _parameters(p).update(architecture={"n_layers": 10**6}),
        "more weights than it holds",
    ),
    "an impossible size": (lambda p: _parameters(p).update(n_latent=-3), "model.pt"),
    "an unknown setting": (lambda p: _parameters(p).update(colour="red"), "colour"),
    "treatments without tensors": (_many_arms, "it names 20000 treatments"),
    "an attribute that shadows a method": (
        lambda p: p[ATTRIBUTES].update(predict_counterfactual="x"),
        "attribute 'predict_counterfactual' is unknown",
    ),
    "an attribute is missing": (lambda p: p[ATTRIBUTES].pop("seed_"), "'seed_' is missing"),
    "an attribute of another type": (
        lambda p: p[ATTRIBUTES].update(is_trained_="yes"),
        "'is_trained_' is a str",
    ),
    "an unknown setup argument": (
        lambda p: p[ATTRIBUTES]["registry_"]["setup_args"].update(x=1),
        "setup argument 'x' is unknown",
    ),
    "names of cells are numbers": (
        lambda p: p[ATTRIBUTES]["parts_"].update(train=[1, 2]),
        "'train' holds something else than names",
    ),
    "rows that are none": (
        lambda p: p[ATTRIBUTES].update(train_indices_={"__array__": torch.tensor([0.5])}),
        "'train_indices_' holds something else than rows",
    ),
    "calibrated by NaN": (
        _calibration("shift", torch.full((3, 5), NAN)),
        "'shift' is not finite",
    ),
    "calibration of fewer genes": (
        _calibration("further", torch.zeros(3, 4)),
        r"'further' has shape \(3, 4\), not \(3, 5\)",
    ),
    "calibration in whole numbers": (
        _calibration("base", torch.zeros((1, 5), dtype=torch.int64)),
        "'base' is no array of the right type",
    ),
    "pairs of other treatments": (
        lambda p: p[ATTRIBUTES]["calibration_"]["pairs"].update(
            treatment={"__array__": torch.tensor([0, 1, 9])}
        ),
        "'treatment' holds codes beyond 3",
    ),
    "trained without calibration": (
        lambda p: p[ATTRIBUTES].update(calibration_=None),
        "has no calibration",
    ),
    "nested": (lambda p: p[ATTRIBUTES].update(x=_nested(200)), "nested too deeply"),
    "lists of lists of one list": (
        lambda p: p[ATTRIBUTES].update(x=_shared(40)),
        "nested too deeply",
    ),
    "tuples": (lambda p: p[ATTRIBUTES].update(x=(1, 2)), "holds a tuple"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_does_not_fit_is_named(folder, edit):
    file = folder / "model.pt"
    change, message = EDITS[edit]
    payload = torch.load(file, weights_only=True)
    change(payload)
    file.write_bytes(encode(payload))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        VCI.load(folder, adata=False)
    assert str(file) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


class _Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from the file was run')",))


def test_code_and_compressed_data_are_refused(folder, monkeypatch):
    file = folder / "model.pt"
    file.write_bytes(encode({"format": 3, "class": "VCI", "x": _Malicious()}))
    for read in (VCI.load, VCI.load_registry, VCI.view_setup_args):
        with pytest.raises(ValueError, match=r"holds code \(__builtin__ exec\), which is not run"):
            read(folder)
    file.write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(ValueError, match="has no checksum"):
        VCI.load(folder)

    def save(payload, buffer):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model/data.pkl", pickle.dumps([0] * 10**6, protocol=2))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        compressed = encode({})
        patch.setattr(torch, "save", lambda payload, buffer: buffer.write(b"no zip at all"))
        no_zip = encode({})
    for content, message in ((compressed, "it is compressed"), (no_zip, "not a zip file")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            VCI.load(folder)


def test_torch_reads_the_files(folder):
    """Scvi-tools and its hub read them by torch."""
    file = folder / "model.pt"
    assert torch.load(file, weights_only=True)["class"] == "VCI"
    with zipfile.ZipFile(file) as archive:
        assert archive.comment.startswith(b"sha256:")


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_amid_training_is_not_taken_for_a_trained_model(tmp_path):
    model = _fit(60)
    for name in ("second", "third"):
        callback = SaveCheckpoint(dirpath=str(tmp_path / name), monitor="validation_loss")
        _train(model, enable_checkpointing=True, callbacks=[callback])
        (checkpoint,) = (tmp_path / name).iterdir()
        loaded = _load(checkpoint, _experiment(60))
        assert not loaded.is_trained_
        with pytest.raises(RuntimeError, match="not trained; call train.*checkpoint"):
            loaded.predict_counterfactual("A")
    _train(loaded)
    (layer,) = loaded.predict_counterfactual(["A"])
    assert loaded.adata.uns["scvci"][layer]["calibrated"]
    model.save(tmp_path / "end")
    assert _load(tmp_path / "end").is_trained_


def test_a_checkpoint_of_a_query_knows_what_to_leave(old, tmp_path):
    cells = _experiment(60)
    cells.obs["treatment"] = cells.obs["treatment"].replace({"B": "C"})
    query = VCI.load_query_data(cells, old)
    callback = SaveCheckpoint(dirpath=str(tmp_path), monitor="validation_loss")
    _train(query, enable_checkpointing=True, callbacks=[callback])
    (checkpoint,) = tmp_path.iterdir()
    loaded = _load(checkpoint, cells.copy())
    assert not loaded.module.encoder.mean.weight.requires_grad
    assert not loaded.is_trained_
    _train(loaded)
    assert loaded.calibration.reference is not None
