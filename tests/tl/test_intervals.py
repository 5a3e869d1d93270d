"""Conformal intervals of single cells."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import torch
from helpers import without_layers

import scvci
from scvci import tl
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
    return _train(data, **_PARTS), data


def _covered(cells, layers, treatment, rows):
    truth = cells.layers[f"counts_{treatment}"][rows].toarray()
    low, high = (cells.layers[name][rows] for name in layers)
    return ((low <= truth) & (truth <= high)).mean()


def test_intervals_cover_true_counterfactuals_although_the_model_is_hardly_trained():
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


def test_rows_that_were_not_asked_for_are_missing(fitted):
    model, data = fitted
    cells = without_layers(data)
    rows = np.flatnonzero((cells.obs["treatment"] == "control").to_numpy())
    for name in tl.predict_interval(model, "IFNb", adata=cells, indices=rows, layer_added="mine"):
        assert name in ("mine_low", "mine_high")
        missing = np.isnan(cells.layers[name])
        assert not missing[rows].any()
        assert missing[np.setdiff1d(np.arange(cells.n_obs), rows)].all()
        assert cells.uns["scvci"][name]["calibration"]["guarantee"].all()


def test_intervals_are_whole_numbers_nested_in_the_level_and_repeatable(fitted):
    model, data = fitted
    cells = without_layers(data)
    before, state = cells.X.copy(), torch.get_rng_state()
    rows = np.arange(80)
    bounds = {}
    for level in (0.5, 0.8, 0.9):
        names = tl.predict_interval(model, "IFNb", level=level, adata=cells, indices=rows)
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
    _, high = tl.predict_interval(
        model, "TNFa", level=0.8, adata=cells, indices=[1, 2], n_samples=50
    )
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
        layers = tl.predict_interval(model, "IFNb", level=0.999)
    assert set(data.uns["scvci"][layers[0]]["calibration"]["basis"]) == {"model"}
    assert np.isfinite(data.layers[layers[1]]).all()


def test_validation_cells_give_no_guarantee_and_cells_of_an_earlier_training_are_not_used():
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
    # Its test cells are cells that the first training saw.
    assert len(model.test_indices)
    with pytest.raises(
        ValueError, match="no held-out cells.*an earlier training saw all of them; build a new"
    ):
        tl.predict_interval(model, "IFNb", indices=[0, 1])
    with pytest.raises(ValueError, match="5 cells that the model was trained on"):
        tl.predict_interval(model, "IFNb", calibration_indices=model.test_indices[:5])


def test_cells_that_no_training_saw_keep_the_guarantee():
    data = _simulate(900, seed=2)
    model = _train(data, max_epochs=3, **_PARTS)
    never = set(model.test_indices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", **_PARTS)
    rows = sorted(never & set(model.test_indices))
    assert 0 < len(rows) < len(model.test_indices)
    layers = tl.predict_interval(model, "IFNb", level=0.5, indices=[0, 1])
    record = data.uns["scvci"][layers[0]]["calibration"]
    of_treatment = data.obs.iloc[rows].query("treatment == 'IFNb'")["cell_type"].value_counts()
    np.testing.assert_array_equal(record["n_cells"], of_treatment[model.strata])
    assert record["cells"] == "test"
    assert record["guarantee"].all()


def test_cells_of_a_new_combination_are_missing():
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
        low, _ = tl.predict_interval(model, "IFNb", adata=data)
    assert np.isnan(data.layers[low][new]).all()
    assert not np.isnan(data.layers[low][~new]).any()


def test_bad_requests(fitted):
    model, data = fitted
    cells = without_layers(data)
    with pytest.raises(ValueError, match=r"level=1\.2"):
        tl.predict_interval(model, "IFNb", level=1.2, adata=cells)
    with pytest.raises(ValueError, match="n_samples=1"):
        tl.predict_interval(model, "IFNb", adata=cells, n_samples=1)
    with pytest.raises(ValueError, match="'IFNg'"):
        tl.predict_interval(model, "IFNg", adata=cells)
    with pytest.raises(ValueError, match="5 cells that the model was trained on"):
        tl.predict_interval(
            model, "IFNb", adata=cells, calibration_indices=model.train_indices[:5]
        )
    with pytest.raises(ValueError, match="no held-out cells"):
        tl.predict_interval(model, "IFNb", adata=cells, calibration_indices=[])
    VCI.setup_anndata(cells, layer="counts", categorical_covariate_keys=["cell_type"])
    with pytest.raises(RuntimeError, match="not trained"):
        tl.predict_interval(VCI(cells), "IFNb")


def test_donors_that_training_saw_give_no_guarantee_and_new_ones_do():
    data = _simulate(900, n_genes=20, seed=5)
    data.obs["donor"] = np.arange(900) % 30
    donor = data.obs["donor"].to_numpy()
    data.obs["donor"] = data.obs["donor"].astype(str)
    new = np.flatnonzero(donor >= 15)
    old = np.flatnonzero(donor < 15)
    parts = {"datasplitter_kwargs": {"external_indexing": [old[:400], old[400:], new]}}
    model = _train(data, max_epochs=3, **parts)
    with pytest.warns(UserWarning, match="cluster_key='donor' the guarantee is for cells"):
        low = tl.predict_interval(model, "IFNb", layer_added="cells")[0]
    assert data.uns["scvci"][low]["calibration"]["guarantee"].all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = tl.predict_interval(model, "IFNb", cluster_key="donor", layer_added="donors")
    assert data.uns["scvci"][low]["calibration"]["guarantee"].all()
    # Five new donors are too few at 0.9, and three quarters of the old ones are no new ones.
    few = np.flatnonzero(donor >= 25)
    with pytest.warns(UserWarning, match="needs 9 clusters of cluster_key="):
        low, high = tl.predict_interval(
            model, "IFNb", cluster_key="donor", calibration_indices=few, layer_added="few"
        )
    assert not data.uns["scvci"][low]["calibration"]["guarantee"].any()
    assert np.isfinite(data.layers[high]).all()
    with pytest.raises(KeyError, match="argument cluster_key"):
        tl.predict_interval(model, "IFNb", cluster_key="mouse")


def test_intervals_are_extended_at_the_edge_of_the_latent_state_and_nowhere_else(monkeypatch):
    data = _simulate(1500, seed=3)
    model = _train(data, max_epochs=40, **_PARTS)
    rows = np.flatnonzero((data.obs["treatment"] == "control").to_numpy())
    low, high = (data.layers[n][rows] for n in tl.predict_interval(model, "IFNb", indices=rows))
    monkeypatch.setattr("scvci.tl._predictive.INNER_SHARE", 1.0)
    plain = tl.predict_interval(model, "IFNb", indices=rows, layer_added="plain")
    plain_low, plain_high = (data.layers[name][rows] for name in plain)
    assert (low <= plain_low).all()
    assert (high >= plain_high).all()
    z, code = model.get_latent_representation(), data.obs["cell_type"].cat.codes.to_numpy()
    for x in np.unique(code):
        z[code == x] -= z[code == x].mean(axis=0)
    distance = np.einsum("ni,ij,nj->n", z, np.linalg.inv(np.cov(z.T)), z)[rows]
    extended = ((low < plain_low) | (high > plain_high)).any(axis=1)
    assert 0.1 < extended.mean() < 0.3
    assert extended[distance > np.quantile(distance, 0.9)].mean() > 0.9
    assert not extended[distance < np.median(distance)].any()
    truth = data.layers["counts_IFNb"][rows].toarray()
    far = np.abs(data.obsm["latent"][rows]).max(axis=1) > 2
    covered = ((low <= truth) & (truth <= high)).mean(axis=1)
    without = ((plain_low <= truth) & (truth <= plain_high)).mean(axis=1)
    assert covered[far].mean() > max(0.88, without[far].mean() + 0.02)
    assert covered.mean() < without.mean() + 0.03


def test_donors_that_training_saw_calibrate_without_a_guarantee():
    """An ordinary split leaves no donor out."""
    data = _simulate(900, seed=4)
    data.obs["donor"] = np.random.default_rng(0).choice(list("abcdefghijkl"), data.n_obs)
    model = _train(data, max_epochs=3, **_PARTS)
    with pytest.warns(UserWarning, match="no guarantee in.*clusters of cluster_key="):
        low, high = tl.predict_interval(model, "IFNb", cluster_key="donor")
    assert np.isfinite(data.layers[high]).all()
    assert not data.uns["scvci"][low]["calibration"]["guarantee"].any()


def test_a_stratum_that_training_did_not_see_has_no_interval_and_no_guarantee():
    data = _simulate(900, seed=5)
    VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(data, n_latent=3, seed=0)
    rows = np.random.default_rng(0).permutation(data.n_obs)
    seen = (data.obs["cell_type"] != "B").to_numpy()[rows]
    parts = [
        rows[seen][:400],
        rows[seen][400:450],
        np.concatenate([rows[seen][450:], rows[~seen]]),
    ]
    model.train(
        max_epochs=2,
        enable_progress_bar=False,
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": parts},
    )
    with pytest.warns(UserWarning, match=r"no guarantee in B .*training saw no cell"):
        low, _ = tl.predict_interval(model, "IFNb")
    missing = np.isnan(data.layers[low]).all(axis=1)
    np.testing.assert_array_equal(missing, data.obs["cell_type"] == "B")
    record = data.uns["scvci"][low]["calibration"]
    assert dict(zip(record["stratum"], record["basis"], strict=True))["B"] == "none"
    assert list(record["guarantee"]) == [x != "B" for x in model.strata]
