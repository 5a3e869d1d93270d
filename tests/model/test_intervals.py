"""Quantile layers and conformal intervals of single cells."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import scvi
import torch
from helpers import without_layers

from scvci import tl
import scvci
from scvci.model import VCI


def _train(data, seed=0, max_epochs=10, **parts):
    VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(data, n_latent=3, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=max_epochs,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            **parts,
        )
    return model


_PARTS = {"train_size": 0.6, "validation_size": 0.1}


def _simulate(n_cells=1200, **kwargs):
    settings = {"n_genes": 40, "n_treatments": 3, "n_latent": 2, "depth": 1500, "confounding": 0.5}
    return scvci.datasets.simulate_perturbation(
        n_cells=n_cells, counterfactual_counts=True, **{**settings, **kwargs}
    )


@pytest.fixture(scope="module")
def fitted():
    """A model with test cells, and its AnnData; do not change it."""
    data = _simulate(seed=0)
    return _train(data, max_epochs=100, **_PARTS), data


# -- quantiles --------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_draws(fitted):
    model, data = fitted
    cells = without_layers(data)
    rows = np.arange(40)
    scvi.settings.seed = 1
    draws = model.predict_counterfactual("IFNb", cells, rows, n_samples=60)
    drawn = np.stack([cells.layers[name][rows] for name in draws])
    scvi.settings.seed = 1
    names = model.predict_counterfactual(
        "IFNb", cells, rows, n_samples=60, quantiles=(0.05, 0.5, 0.975)
    )
    assert names == [f"counterfactual_IFNb_q{q}" for q in ("05", "50", "975")]
    for name, q in zip(names, (0.05, 0.5, 0.975), strict=True):
        expected = np.quantile(drawn, q, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(cells.layers[name][rows], expected)
        record = cells.uns["scvci"][name]
        assert (record["quantile"], record["n_samples"]) == (q, 60)
        assert record["scale"] == "quantile of sampled counts at own library size"
    assert np.isnan(cells.layers[names[0]][40:]).all()


def test_quantiles_are_ordered_and_rise_with_the_library_size(fitted):
    model, data = fitted
    cells = without_layers(data)
    rows = np.arange(60)
    arguments = {"adata": cells, "indices": rows, "quantiles": [0.05, 0.5, 0.95]}
    low, middle, high = (
        cells.layers[n][rows] for n in model.predict_counterfactual("TNFa", **arguments)
    )
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert cells.uns["scvci"]["counterfactual_TNFa_q95"]["n_samples"] == 100
    layers = model.predict_counterfactual(
        "TNFa", **arguments, library_size=1e5, layer_added="large"
    )
    assert layers == ["large_q05", "large_q50", "large_q95"]
    assert (cells.layers["large_q50"][rows].mean() / middle.mean()) > 30


def test_quantiles_commute_with_the_logarithm_and_repeat_by_seed(fitted):
    model, data = fitted
    cells = without_layers(data)
    arguments = {"adata": cells, "indices": np.arange(30), "quantiles": 0.9}
    written = []
    for name, log1p, seed in (("a", False, 3), ("b", True, 3), ("c", False, 4)):
        scvi.settings.seed = seed
        (layer,) = model.predict_counterfactual("IFNb", layer_added=name, log1p=log1p, **arguments)
        written.append(cells.layers[layer][:30])
    np.testing.assert_allclose(np.log1p(written[0]), written[1], rtol=1e-6)
    assert (written[0] != written[2]).any()
    assert cells.uns["scvci"]["b_q90"]["scale"].startswith("log1p of quantile")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"quantiles": (0.0, 0.5)}, r"quantiles=\(0\.0, 0\.5\)"),
        ({"quantiles": 1.0}, "strictly between"),
        ({"quantiles": ()}, "strictly between"),
        ({"quantiles": (0.5, 0.5)}, "more than once"),
        ({"quantiles": 0.001}, "at least 1000"),
        ({"quantiles": 0.05, "n_samples": 10}, "at least 20"),
        ({"quantiles": 0.05, "n_samples": 0}, "n_samples=0"),
    ],
)
def test_impossible_quantiles_are_refused(fitted, arguments, match):
    model, data = fitted
    with pytest.raises(ValueError, match=match):
        model.predict_counterfactual("IFNb", without_layers(data), **arguments)


# -- intervals --------------------------------------------------------------------------------


def _covered(cells, layers, treatment, rows):
    truth = cells.layers[f"counts_{treatment}"][rows].toarray()
    low, high = (cells.layers[name][rows] for name in layers)
    return ((low <= truth) & (truth <= high)).mean()


def test_stratum_intervals_cover_true_counterfactuals_although_the_model_is_hardly_trained():
    coverage, quantiles = [], []
    for seed in range(3):
        data = _simulate(seed=seed)
        model = _train(data, seed, **_PARTS)
        for treatment in ("IFNb", "TNFa"):
            rows = np.flatnonzero((data.obs["treatment"] != treatment).to_numpy())[:500]
            layers = tl.predict_interval(model, treatment, indices=rows)
            assert layers == [f"counterfactual_{treatment}_{end}" for end in ("low", "high")]
            coverage.append(_covered(data, layers, treatment, rows))
            raw = model.predict_counterfactual(treatment, indices=rows, quantiles=(0.05, 0.95))
            quantiles.append(_covered(data, raw, treatment, rows))
    assert 0.88 <= np.mean(coverage) <= 0.92
    # The room for the mean to be off by is the spread that these few sets have.
    assert np.std(coverage) < 0.04
    assert abs(np.mean(quantiles) - 0.9) > abs(np.mean(coverage) - 0.9)


def test_individual_intervals_differ_between_cells_and_are_shorter(fitted):
    model, data = fitted
    cells = without_layers(data)
    rows = np.flatnonzero((cells.obs["treatment"] == "control").to_numpy())
    widths = {}
    for method in ("stratum", "individual"):
        low, high = tl.predict_interval(model, "IFNb", 0.9, method, cells, rows, layer_added=method)
        widths[method] = np.log1p(cells.layers[high]) - np.log1p(cells.layers[low])
        record = cells.uns["scvci"][low]
        assert record["method"] == method
        assert record["calibration"]["guarantee"].all() == (method == "stratum")
    assert np.nanmean(widths["individual"]) < np.nanmean(widths["stratum"])
    outside = np.setdiff1d(np.arange(cells.n_obs), rows)
    assert np.isnan(cells.layers["stratum_low"][outside]).all()
    assert not np.isnan(cells.layers["stratum_low"][rows]).any()


def test_intervals_are_whole_numbers_nested_in_the_level_and_repeatable(fitted):
    model, data = fitted
    cells = without_layers(data)
    before, state = cells.X.copy(), torch.get_rng_state()
    rows = np.arange(80)
    bounds = {}
    for level in (0.5, 0.8, 0.9):
        names = tl.predict_interval(model, "IFNb", level, adata=cells, indices=rows)
        bounds[level] = [cells.layers[name][rows] for name in names]
    assert (cells.X != before).nnz == 0
    assert torch.equal(torch.get_rng_state(), state)
    for low, high in bounds.values():
        np.testing.assert_array_equal(low, np.rint(low))
        assert ((low >= 0) & (low <= high)).all()
    for narrow, wide in ((0.5, 0.8), (0.8, 0.9)):
        # An empty interval is given the central count, which may lie beside a wider one.
        assert (bounds[wide][0] <= bounds[narrow][0]).mean() > 0.999
        assert (bounds[wide][1] >= bounds[narrow][1]).mean() > 0.999
    again = tl.predict_interval(model, ["IFNb", "TNFa"], adata=cells, indices=rows)
    assert again[2:] == ["counterfactual_TNFa_low", "counterfactual_TNFa_high"]
    for name, expected in zip(again, bounds[0.9], strict=False):
        np.testing.assert_array_equal(cells.layers[name][rows], expected)
    other = tl.predict_interval(model, "IFNb", adata=cells, indices=rows, seed=5)
    assert (cells.layers[other[1]][rows] != bounds[0.9][1]).any()


def test_what_calibrated_an_interval_is_recorded_and_survives_a_file(fitted, tmp_path):
    model, data = fitted
    cells = without_layers(data)
    (_, high) = tl.predict_interval(model, "TNFa", 0.8, adata=cells, indices=[1, 2], n_samples=50)
    for name in [n for n in cells.layers if n and n.startswith(("true", "counts_"))]:
        del cells.layers[name]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    record = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["scvci"][high]
    assert (record["treatment"], record["level"], record["n_samples"]) == ("TNFa", 0.8, 50)
    assert record["scale"] == "high end of an interval of counts at own library size"
    assert record["version"] == scvci.__version__
    calibration = record["calibration"]
    assert calibration["cells"] == "test"
    assert list(calibration["stratum"]) == model.strata
    test = data.obs.iloc[model.test_indices]
    expected = test["cell_type"][test["treatment"] == "TNFa"].value_counts()
    np.testing.assert_array_equal(calibration["n_cells"], expected[model.strata])
    assert list(calibration["basis"]) == ["own stratum"] * 3
    assert calibration["guarantee"].all()


def test_a_saved_model_knows_its_test_cells(fitted, tmp_path):
    model, data = fitted
    cells, again = without_layers(data), without_layers(data)
    layers = tl.predict_interval(model, "IFNb", adata=cells, indices=[0, 5, 9])
    model.save(str(tmp_path / "model"))
    loaded = VCI.load(str(tmp_path / "model"), adata=again, accelerator="cpu")
    assert tl.predict_interval(loaded, "IFNb", indices=[0, 5, 9]) == layers
    for layer in layers:
        np.testing.assert_array_equal(again.layers[layer], cells.layers[layer])
        assert again.uns["scvci"][layer]["calibration"]["cells"] == "test"
    unread = VCI.load(str(tmp_path / "model"), accelerator="cpu")
    with pytest.raises(ValueError, match="loaded without cells"):
        tl.predict_interval(unread, "IFNb", adata=cells)


def test_pairs_without_cells_are_calibrated_elsewhere_and_flagged():
    data = _simulate(900, held_out=[("IFNb", "B")], seed=1)
    model = _train(data, **_PARTS)
    with pytest.warns(UserWarning, match=r"'IFNb' have no guarantee in B \(0\).*needs 9"):
        layers = tl.predict_interval(model, "IFNb")
    calibration = data.uns["scvci"][layers[0]]["calibration"]
    expected = ["other strata" if x == "B" else "own stratum" for x in model.strata]
    assert list(calibration["basis"]) == expected
    assert list(calibration["guarantee"]) == [x != "B" for x in model.strata]
    assert np.isfinite(data.layers[layers[1]]).all()
    # A level that no number of these cells reaches leaves the model's own quantiles.
    with pytest.warns(UserWarning, match=r"CD14 Mono \(37\).*needs 999"):
        layers = tl.predict_interval(model, "IFNb", 0.999)
    assert set(data.uns["scvci"][layers[0]]["calibration"]["basis"]) == {"model"}
    assert np.isfinite(data.layers[layers[1]]).all()


def test_validation_cells_and_retraining_give_no_guarantee():
    data = _simulate(700, seed=2)
    model = _train(data, train_size=0.7)
    with pytest.warns(UserWarning, match="chose when training stopped"):
        layers = tl.predict_interval(model, "IFNb", indices=[0, 1])
    record = data.uns["scvci"][layers[0]]["calibration"]
    assert record["cells"] == "validation"
    assert not record["guarantee"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", **_PARTS)
    with pytest.warns(UserWarning, match="earlier training"):
        layers = tl.predict_interval(model, "IFNb", indices=[0, 1])
    assert not data.uns["scvci"][layers[0]]["calibration"]["guarantee"].any()


def test_cells_of_a_new_combination_are_missing_by_stratum_and_predicted_by_themselves():
    data = _simulate(900, seed=3)
    data.obs["donor"] = np.where(np.arange(900) % 2, "a", "b")
    known = data[~((data.obs["donor"] == "a") & (data.obs["cell_type"] == "B"))].copy()
    VCI.setup_anndata(known, layer="counts", categorical_covariate_keys=["cell_type", "donor"])
    model = VCI(known, n_latent=3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=3,
            enable_progress_bar=False,
            accelerator="cpu",
            train_size=0.5,
            validation_size=0.1,
        )
        new = ((data.obs["donor"] == "a") & (data.obs["cell_type"] == "B")).to_numpy()
        by_stratum = tl.predict_interval(model, "IFNb", adata=data, layer_added="s")
        alone = tl.predict_interval(model, "IFNb", method="individual", adata=data, layer_added="i")
    assert np.isnan(data.layers[by_stratum[0]][new]).all()
    assert not np.isnan(data.layers[by_stratum[0]][~new]).any()
    assert not np.isnan(data.layers[alone[0]]).any()


def test_bad_requests(fitted):
    model, data = fitted
    cells = without_layers(data)
    with pytest.raises(ValueError, match=r"level=1\.2"):
        tl.predict_interval(model, "IFNb", level=1.2, adata=cells)
    with pytest.raises(ValueError, match="'median' is neither"):
        tl.predict_interval(model, "IFNb", method="median", adata=cells)
    with pytest.raises(ValueError, match="n_samples=1"):
        tl.predict_interval(model, "IFNb", adata=cells, n_samples=1)
    with pytest.raises(ValueError, match="'IFNg'"):
        tl.predict_interval(model, "IFNg", adata=cells)
    with pytest.raises(ValueError, match="5 cells that the model was trained on"):
        tl.predict_interval(model, "IFNb", adata=cells, calibration_indices=model.train_indices[:5])
    with pytest.raises(ValueError, match="no held-out cells"):
        tl.predict_interval(model, "IFNb", adata=cells, calibration_indices=[])
    VCI.setup_anndata(cells, layer="counts", categorical_covariate_keys=["cell_type"])
    with pytest.raises(RuntimeError, match="not trained"):
        tl.predict_interval(VCI(cells), "IFNb")
