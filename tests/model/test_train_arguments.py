"""Numbers and choices of cells that users pass, refused by name before anything changes."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from scvci.model import VCI

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def model(trained):
    """Built anew on a copy; not trained."""
    data = trained[1].copy()
    VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    return VCI(data, n_latent=3, seed=0)


@pytest.mark.parametrize("name", ["max_epochs", "batch_size", "checkpoint_every_n_epochs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan, "5", True])
def test_counts_must_be_whole_and_positive(model, name, value):
    error = ValueError if type(value) is int else TypeError
    with pytest.raises(error, match=f"^{name}={value!r} must be (at least 1|a whole number)"):
        model.train(**{"max_epochs": 1, name: value}, **QUIET)
    assert not model.parts_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, r"train_size=0 must be in \(0, 1\]"),
        ({"train_size": -1}, r"train_size=-1 must be in \(0, 1\]"),
        ({"train_size": 2}, r"train_size=2 must be in \(0, 1\]"),
        ({"train_size": np.nan}, r"train_size=nan must be in \(0, 1\]"),
        ({"train_size": "x"}, "train_size='x' must be a number"),
        ({"train_size": None}, "train_size=None must be a number"),
        ({"validation_size": -0.1}, r"validation_size=-0.1 must be in \[0, 1\)"),
        ({"validation_size": np.nan}, r"validation_size=nan must be in \[0, 1\)"),
        ({"validation_size": True}, "validation_size=True must be a number"),
        ({"train_size": 0.9, "validation_size": 0.2}, "must not exceed 1"),
        ({"datasplitter_kwargs": {"drop_last": True}}, r"datasplitter_kwargs has \['drop_last'\]"),
    ],
)
def test_shares_of_cells(model, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.train(max_epochs=1, **arguments, **QUIET)
    assert not model.parts_


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "0"])
def test_seeds(model, seed):
    with pytest.raises((TypeError, ValueError), match=f"^seed={seed!r} must be"):
        VCI(model.adata, seed=seed)


@pytest.mark.parametrize(
    ("external", "message"),
    [
        (
            [[0, 1, 2], [2, 3]],
            r"1 cells more than once \(first: row 2, among the training and val",
        ),
        ([[0, 1, 1], [3]], r"1 cells more than once \(first: row 1, among the training cells"),
        ([[0.5, 1.9, 4], [7]], "training cells: Index 0.5 is not a whole number"),
        ([[0, 1], [999]], "validation cells: Index 999 lies outside 300 cells"),
        ([[0], [1], ["nobody"]], "test cells: Cell 'nobody' is not in"),
        ([np.ones(7, dtype=bool)], "training cells: Mask of 7 values for 300 cells"),
        ([[], [1]], "names no training cells"),
        ([None, [1]], "names no training cells"),
        ([], "has 0 parts; it must have one to three"),
        ([[0], [1], [2], [3]], "has 4 parts; it must have one to three"),
        (np.arange(5), "must be a list of up to three choices"),
        (5, "must be a list of up to three choices"),
    ],
)
def test_parts_that_make_no_sense(model, external, message):
    with pytest.raises(ValueError, match=f"external_indexing.*{message}"):
        model.train(1, datasplitter_kwargs={"external_indexing": external}, **QUIET)
    assert not model.parts_


def test_parts_are_rows_masks_or_names(model):
    train = np.arange(300) < 250
    test = model.adata.obs_names[280:].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        external = [train, range(250, 280), test]
        model.train(1, datasplitter_kwargs={"external_indexing": external}, **QUIET)
    np.testing.assert_array_equal(model.train_indices, np.arange(250))
    np.testing.assert_array_equal(model.validation_indices, np.arange(250, 280))
    np.testing.assert_array_equal(model.test_indices, np.arange(280, 300))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"batch_size": n}, f"batch_size={n!r} must be") for n in (0, -1, 1.5, "x", True)],
        *[({"n_samples": n}, f"n_samples={n!r} must be") for n in (0, 1.5, "2", True)],
        *[
            ({"library_size": size}, f"library_size={re.escape(repr(size))} must be")
            for size in (0, -1, np.inf, np.nan, 1e300, "1e4", True)
        ],
        *[({"quantiles": q}, "quantiles=.* must lie") for q in (0, 1, np.nan, "0.5", [], [True])],
        ({"indices": [0.5]}, "Index 0.5 is not a whole number"),
        ({"indices": [np.nan]}, "Index nan is not a whole number"),
    ],
)
def test_numbers_of_a_prediction(trained, arguments, message):
    model, data = trained
    layers = list(data.layers)
    with pytest.raises((IndexError, TypeError, ValueError), match=message):
        model.predict_counterfactual("IFNb", **arguments)
    assert list(data.layers) == layers


def test_numbers_of_other_calls(trained):
    model, _ = trained
    for call in (model.get_latent_representation, model.get_normalized_expression):
        with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
            call(batch_size=0)
    with pytest.raises(ValueError, match="library_size=inf must be"):
        model.get_normalized_expression(library_size=np.inf)
    for n in (0, 1.5):
        with pytest.raises((TypeError, ValueError), match=f"n_samples={n} must be"):
            model.posterior_predictive_sample(n_samples=n)
