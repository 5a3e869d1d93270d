"""Counterfactual images: known truth, files, and what users get wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from scvci.model import VCI, ImageVCI
from tests.image_data import SIDE, blobs

TREATMENTS = ("brightness", "size")
SMALL = {"width": 8, "n_latent": 8, "n_maps": 4, "depth": 1, "n_condition": 16}


def _fit(adata, *, epochs=12, **settings):
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    settings = {"architecture": SMALL, "seed": 0, **settings}
    model = ImageVCI(adata, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(epochs, accelerator="cpu", batch_size=64, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model():
    return _fit(blobs(2500), epochs=14)


def _error(a, b):
    return float(((a - b) ** 2).mean())


def test_counterfactuals_of_cells_that_training_did_not_see(model):
    """One attribute or both, on other cells than the model's, against the truth."""
    factual = blobs(400, seed=1)
    cases = [
        {"brightness": 0.9},
        {"size": "small"},
        {"brightness": 0.3, "size": "large"},
    ]
    for values in cases:
        adata = factual.copy()
        predicted = adata.obsm[model.predict_counterfactual(values, adata)]
        truth = blobs(400, seed=1, **values).obsm["image"]
        no_change = _error(factual.obsm["image"], truth)
        assert _error(predicted, truth) < 0.5 * no_change, values


def test_columns_give_each_cell_its_own_value(model):
    wanted = np.linspace(0.2, 1.0, 50)
    adata = blobs(50, seed=2)
    adata.obs["wanted"] = wanted
    key = model.predict_counterfactual(adata=adata, target_keys={"brightness": "wanted"})
    assert key == "counterfactual_brightness=wanted"
    single = [
        adata.obsm[
            model.predict_counterfactual({"brightness": wanted[i]}, adata, key_added="one")
        ][i]
        for i in (3, 40)
        if adata.obsm.pop("one", None) is None or adata.uns["scvci"].pop("one", None)
    ]
    np.testing.assert_allclose(adata.obsm[key][[3, 40]], single, atol=1e-6)


def test_no_change_is_a_reconstruction_and_batches_do_not_matter(model):
    adata = blobs(60, seed=3)
    key = model.predict_counterfactual(adata=adata)
    assert key == "counterfactual_own values"
    own = {"brightness": "brightness", "size": "size"}
    again = model.predict_counterfactual(adata=adata, target_keys=own, batch_size=7)
    np.testing.assert_allclose(adata.obsm[key], adata.obsm[again], atol=1e-6)
    assert _error(adata.obsm[key], adata.obsm["image"]) < 0.02


def test_rows_outside_are_nan_and_nothing_else_changes(model):
    adata = blobs(30, seed=4)
    before = adata.copy()
    key = model.predict_counterfactual({"size": "small"}, adata, indices=[2, 5])
    filled = np.isfinite(adata.obsm[key]).all(axis=(1, 2, 3))
    assert np.flatnonzero(filled).tolist() == [2, 5]
    np.testing.assert_array_equal(adata.obsm["image"], before.obsm["image"])
    assert adata.obs.equals(before.obs)
    record = adata.uns["scvci"][key]
    assert (record["treatment"], record["place"]) == ("size=small", "obsm")


def test_eight_bit_images_give_the_same(model):
    adata = blobs(20, seed=5)
    whole = adata.copy()
    whole.obsm["image"] = np.round(adata.obsm["image"] * 255).astype(np.uint8)
    adata.obsm["image"] = whole.obsm["image"].astype(np.float32) / 255
    keys = [model.predict_counterfactual({"size": "small"}, a) for a in (adata, whole)]
    np.testing.assert_array_equal(adata.obsm[keys[0]], whole.obsm[keys[1]])


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    adata = blobs(20, seed=6)
    key = model.predict_counterfactual({"brightness": 0.5}, adata)
    expected = adata.obsm.pop(key)
    adata.uns.pop("scvci")
    for source in (None, False):
        loaded = ImageVCI.load(tmp_path / "model", source)
        found = adata.copy()
        loaded.predict_counterfactual({"brightness": 0.5}, found)
        np.testing.assert_array_equal(found.obsm[key], expected)
    np.testing.assert_array_equal(
        ImageVCI.load(tmp_path / "model").train_indices, model.train_indices
    )
    with pytest.raises(ValueError, match="'ImageVCI', not a VCI"):
        VCI.load(tmp_path / "model")
    other = blobs(5)
    other.obsm["image"] = other.obsm["image"][..., :-1]
    with pytest.raises(ValueError, match=rf"trained on \(1, {SIDE}, {SIDE}\)"):
        ImageVCI.load(tmp_path / "model", other)


def test_seeds_repeat(model):
    first, second = (_fit(blobs(200), epochs=1) for _ in range(2))
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_the_divergence_reconstructions_are_as_good_and_counterfactuals_are_not(model):
    """The latent state then keeps the treatment, and the decoder need not be told it."""
    truth = blobs(400, seed=7, brightness=0.3, size="large").obsm["image"]

    def errors(fitted):
        adata = blobs(400, seed=7)
        same = fitted.predict_counterfactual(adata=adata)
        changed = fitted.predict_counterfactual({"brightness": 0.3, "size": "large"}, adata)
        return _error(adata.obsm[same], adata.obsm["image"]), _error(adata.obsm[changed], truth)

    without = errors(_fit(blobs(2500), epochs=14, weights={"divergence": 0.0}))
    assert without[0] < 0.005
    assert without[1] > 2 * errors(model)[1]


class _Dense(nn.Module):
    def __init__(self, n_codes):
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE + n_codes, 10)

    def forward(self, images, treatment, covariates):
        inputs = torch.cat([images.flatten(1), treatment, covariates], dim=1)
        mean, raw = self.linear(inputs).chunk(2, dim=1)
        return Normal(mean, torch.nn.functional.softplus(raw) + 1e-3)


def test_own_networks_train_and_are_asked_for_when_loading(tmp_path):
    adata = blobs(300)
    decoder = nn.Linear(5 + 4, SIDE * SIDE)

    class Decode(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = decoder

        def forward(self, z, treatment, covariates):
            flat = self.linear(torch.cat([z, treatment, covariates], dim=1))
            return flat.unflatten(1, (1, 1, SIDE, SIDE))

    fitted = _fit(adata, epochs=1, encoder=_Dense(4), decoder=Decode())
    assert fitted.get_latent_representation().shape == (300, 5)
    fitted.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"networks of your own \(encoder, decoder\)"):
        ImageVCI.load(tmp_path / "own", adata)
    loaded = ImageVCI.load(tmp_path / "own", adata, encoder=_Dense(4), decoder=Decode())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), fitted.get_latent_representation()
    )


def test_strata_and_flat_images_in_x():
    adata = blobs(200)
    flat = adata.obsm.pop("image").reshape(200, -1)
    from anndata import AnnData

    adata = AnnData(flat, obs=adata.obs)
    ImageVCI.setup_anndata(
        adata,
        None,
        treatment_keys=["brightness"],
        categorical_covariate_keys=["well"],
        image_shape=(1, SIDE, SIDE),
    )
    model = ImageVCI(adata, architecture=SMALL, likelihood="normal", covariate_term="classifier")
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    assert adata.obsm[model.predict_counterfactual({"brightness": 0.5})].shape == (200, 1, 8, 8)
    assert model.image_shape == (1, 8, 8)
    assert model.treatments == ["brightness"]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.predict_counterfactual({"bright": 1}), ValueError, "'bright'.*'brightness'"),
        (lambda m: m.predict_counterfactual({"size": "big"}), ValueError, "'big'"),
        (lambda m: m.predict_counterfactual({"brightness": "much"}), ValueError, "finite number"),
        (
            lambda m: m.predict_counterfactual({"size": "small"}, target_keys={"size": "size"}),
            ValueError,
            "set twice",
        ),
        (
            lambda m: m.predict_counterfactual(target_keys={"size": "nowhere"}),
            KeyError,
            "no column 'nowhere'",
        ),
        (
            lambda m: m.predict_counterfactual({"size": "small"}, key_added="image"),
            ValueError,
            "registered",
        ),
    ],
)
def test_bad_requests_are_refused_and_write_nothing(model, call, error, text):
    before = set(model.adata.obsm)
    with pytest.raises(error, match=text):
        call(model)
    assert set(model.adata.obsm) == before


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a.obs.__setitem__("brightness", 1.0), ValueError, "single value"),
        (lambda a: a.obsm.pop("image"), KeyError, "no entry 'image'"),
        (lambda a: setattr(a, "obs_names", ["x"] * a.n_obs), ValueError, "cell names"),
    ],
)
def test_a_refused_setup_writes_nothing(change, error, text):
    adata = blobs(20)
    change(adata)
    before = (set(adata.obsm), set(adata.uns))
    with pytest.raises(error, match=text):
        ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    assert (set(adata.obsm), set(adata.uns)) == before


def test_treatments_have_to_be_named():
    with pytest.raises(ValueError, match="names no column"):
        ImageVCI.setup_anndata(blobs(5), treatment_keys=[])
    with pytest.raises(TypeError, match="must be a list"):
        ImageVCI.setup_anndata(blobs(5), treatment_keys="size")


def test_pixels_outside_the_likelihoods_support():
    adata = blobs(20)
    adata.obsm["image"] = adata.obsm["image"] * 255
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        ImageVCI(adata)
    ImageVCI(adata, likelihood="normal", architecture=SMALL)


def test_an_untrained_model_says_so():
    adata = blobs(20)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    with pytest.raises(RuntimeError, match="not trained"):
        ImageVCI(adata, architecture=SMALL).predict_counterfactual({"size": "small"})


def test_labels_that_changed_after_setup_are_refused():
    adata = blobs(20)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    model = ImageVCI(adata, architecture=SMALL)
    adata.obs.loc["cell3", "brightness"] = 0.5
    with pytest.raises(ValueError, match=r"'brightness'\] has changed in 1 cells .*'cell3'"):
        model.train(1)


def test_requests_outside_what_was_measured_are_warned_of(model):
    adata = blobs(20, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict_counterfactual({"brightness": 0.6}, adata, key_added="inside")
    with pytest.warns(UserWarning, match=r"20 of 20 .* brightness=9, .* extrapolated"):
        model.predict_counterfactual({"brightness": 9.0}, adata, key_added="outside")


def test_a_model_says_what_it_is(model):
    text = repr(model)
    assert "treatments: brightness, size" in text
    assert "trained:    yes, seed 0" in text
    assert f"{SIDE} × {SIDE} pixels" in text


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_are_finite_and_not_negative(weight):
    adata = blobs(20)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    with pytest.raises(ValueError, match=r"weights\['individual'\]="):
        ImageVCI(adata, weights={"individual": weight})


@pytest.mark.parametrize(
    "broken",
    [
        {"decoder": nn.Identity()},
        {"encoder": nn.Flatten()},
        {"encoder": lambda *inputs: inputs[0]},
    ],
)
def test_networks_of_another_form_are_refused_when_the_model_is_built(broken):
    adata = blobs(20)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    with pytest.raises(ValueError, match="coder="):
        ImageVCI(adata, architecture=SMALL, **broken)


def test_numbers_that_networks_cannot_compute_with_are_refused(model):
    adata = blobs(10, seed=4)
    with pytest.raises(ValueError, match="brightness must be set to a finite number of at most"):
        model.predict_counterfactual({"brightness": 1e39}, adata)
    adata.obs["wanted"] = 1e39
    with pytest.raises(ValueError, match=r"obs\['wanted'\] must hold finite numbers of at most"):
        model.predict_counterfactual(adata=adata, target_keys={"brightness": "wanted"})
    adata.obs["wanted"] = pd.Timestamp("2020-01-01")
    with pytest.raises(ValueError, match="a treatment is a number or a name"):
        model.predict_counterfactual(adata=adata, target_keys={"brightness": "wanted"})
    assert not [key for key in adata.obsm if key.startswith("counterfactual")]


def test_requests_that_differ_have_names_that_differ(model):
    adata = blobs(10, seed=4)
    keys = {
        model.predict_counterfactual({"brightness": value}, adata) for value in (0.5, 0.5000001)
    }
    assert keys == {"counterfactual_brightness=0.5", "counterfactual_brightness=0.5000001"}


def test_images_in_a_data_frame_are_read_by_rows_and_masked_pixels_are_missing():
    adata = blobs(40)
    images = adata.obsm["image"].reshape(40, -1)
    shape = adata.obsm["image"].shape[1:]
    adata.obsm["table"] = pd.DataFrame(images, index=adata.obs_names)
    ImageVCI.setup_anndata(adata, "table", treatment_keys=TREATMENTS, image_shape=shape)
    cells = ImageVCI(adata, architecture=SMALL).cells()
    np.testing.assert_allclose(cells.pixels(np.array([3, 1])), images[[3, 1]], rtol=1e-6)
    masked = np.ma.array(adata.obsm["image"], mask=False)
    masked[2] = np.ma.masked
    adata = blobs(40)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    model = ImageVCI(adata, architecture=SMALL)
    adata.obsm["image"] = masked
    if np.ma.isMaskedArray(adata.obsm["image"]):
        with pytest.raises(ValueError, match="missing or infinite pixels"):
            model.cells()


def test_a_model_whose_cells_were_set_up_anew_says_so():
    adata = blobs(40)
    ImageVCI.setup_anndata(adata, treatment_keys=TREATMENTS)
    model = ImageVCI(adata, architecture=SMALL)
    ImageVCI.setup_anndata(adata, treatment_keys=["size"])
    with pytest.raises(ValueError, match="set up anew"):
        model.train(1)
    for arguments, text in (
        ({"max_epochs": 0}, "max_epochs=0"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=text):
            ImageVCI(adata, architecture=SMALL).train(**arguments)
