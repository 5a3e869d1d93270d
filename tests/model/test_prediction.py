"""Layers: aligned, scaled, recorded, and nothing else touched."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
import torch
from helpers import without_layers
from scipy import sparse

import scvci
from scvci.model import VCI, Block


def test_x_is_untouched_and_provenance_recorded(trained):
    model, data = trained
    cells = without_layers(data)
    before = cells.X.copy()
    columns = list(cells.obs.columns)
    assert model.predict_counterfactual("IFNb", cells) == ["counterfactual_IFNb"]
    assert (cells.X != before).nnz == 0
    assert list(cells.obs.columns) == columns
    record = cells.uns["scvci"]["counterfactual_IFNb"]
    assert record["treatment"] == "IFNb"
    assert record["scale"] == "expected counts at own library size"
    assert record["likelihood"] == "nb"
    assert record["version"] == scvci.__version__
    assert record["seed"] == model.seed_


def test_expected_counts_keep_the_library_size_of_the_cell(trained):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual(["IFNb", "control"], cells)
    own = np.asarray(cells.layers["counts"].sum(1)).ravel()
    for layer in ("counterfactual_IFNb", "counterfactual_control"):
        np.testing.assert_allclose(cells.layers[layer].sum(1), own, rtol=1e-4)


def test_scales_agree_with_each_other(trained):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual("IFNb", cells, library_size=1e4)
    model.predict_counterfactual("IFNb", cells, library_size=1e4, log1p=True, layer_added="log")
    model.predict_counterfactual("IFNb", cells, layer_added="own")
    own = np.asarray(cells.layers["counts"].sum(1))
    np.testing.assert_allclose(
        np.log1p(cells.layers["counterfactual_IFNb"]), cells.layers["log"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        cells.layers["own"] / own * 1e4, cells.layers["counterfactual_IFNb"], rtol=1e-3, atol=1e-4
    )
    assert cells.uns["scvci"]["log"]["scale"] == "log1p of expected counts at library size 10000"


def test_samples_are_counts_around_the_expectation(trained):
    model, data = trained
    cells = without_layers(data)
    torch.manual_seed(0)
    layers = model.predict_counterfactual("TNFa", cells, n_samples=40)
    assert layers[0] == "counterfactual_TNFa_1"
    assert len(layers) == 40
    draws = np.stack([cells.layers[name].toarray() for name in layers])
    assert sparse.issparse(cells.layers[layers[0]])
    assert np.issubdtype(cells.layers[layers[0]].dtype, np.integer)
    assert draws.min() >= 0
    model.predict_counterfactual("TNFa", cells)
    ratio = draws.mean() / cells.layers["counterfactual_TNFa"].mean()
    assert ratio == pytest.approx(1, abs=0.03)


def test_indices_leave_the_other_rows_missing(trained):
    model, data = trained
    cells, all_cells = without_layers(data), without_layers(data)
    model.predict_counterfactual("IFNb", all_cells)
    rows = np.array([5, 3, 250])
    for indices in (rows, np.isin(np.arange(cells.n_obs), rows), cells.obs_names[rows]):
        model.predict_counterfactual("IFNb", cells, indices=indices)
        layer = cells.layers["counterfactual_IFNb"]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(layer[:, 0])), [3, 5, 250])
        np.testing.assert_allclose(
            layer[rows], all_cells.layers["counterfactual_IFNb"][rows], rtol=1e-5
        )
    with pytest.raises(IndexError, match="300"):
        model.predict_counterfactual("IFNb", cells, indices=[300])
    with pytest.raises(KeyError, match="nobody"):
        model.predict_counterfactual("IFNb", cells, indices=["nobody"])


@pytest.mark.parametrize("n_samples", [None, 2])
def test_genes_are_aligned_by_name(trained, n_samples):
    model, data = trained
    straight = without_layers(data)
    order = np.random.default_rng(0).permutation(data.n_vars)
    shuffled = straight[:, order].copy()
    for cells in (straight, shuffled):
        torch.manual_seed(0)
        layers = model.predict_counterfactual("IFNb", cells, n_samples=n_samples)
    for layer in layers:
        a, b = straight.layers[layer], shuffled.layers[layer]
        a, b = (m.toarray() if sparse.issparse(m) else m for m in (a, b))
        np.testing.assert_allclose(a[:, order], b, rtol=1e-5)


def test_missing_genes_are_listed_and_extra_ones_are_nan(trained):
    model, data = trained
    cells = without_layers(data)
    with pytest.raises(ValueError, match="lacks 2 of the model's 30 genes: Gene0000, Gene0001"):
        model.predict_counterfactual("IFNb", cells[:, 2:].copy())
    extra = anndata.concat([cells, cells[:, :1].copy()], axis=1, merge="first", uns_merge="first")
    extra.var_names = [*cells.var_names, "novel"]
    with pytest.warns(UserWarning, match="1 genes of adata are not the model's"):
        model.predict_counterfactual("IFNb", extra)
    layer = extra.layers["counterfactual_IFNb"]
    assert np.isnan(layer[:, -1]).all()
    assert not np.isnan(layer[:, :-1]).any()


def test_views_and_backed_files(trained, tmp_path):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual("IFNb", cells)
    rows = np.array([200, 10, 77])
    view = without_layers(data)[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.predict_counterfactual("IFNb", view)
    expected = cells.layers["counterfactual_IFNb"][rows]
    np.testing.assert_allclose(view.layers["counterfactual_IFNb"], expected, rtol=1e-5)

    plain = VCI(_registered_on_x(data), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    path = tmp_path / "cells.h5ad"
    in_memory = without_layers(data)
    in_memory.write_h5ad(path)
    backed = anndata.read_h5ad(path, backed="r")
    plain.predict_counterfactual("IFNb", in_memory)
    plain.predict_counterfactual("IFNb", backed, indices=[7, 2, 90])
    np.testing.assert_allclose(
        backed.layers["counterfactual_IFNb"][[7, 2, 90]],
        in_memory.layers["counterfactual_IFNb"][[7, 2, 90]],
        rtol=1e-5,
    )
    backed.file.close()


def _registered_on_x(data):
    cells = without_layers(data)
    VCI.setup_anndata(cells, categorical_covariate_keys=["cell_type"])
    return cells


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_batch_size_and_cell_order_do_not_matter(trained, batch_size):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual("IFNb", cells)
    order = np.random.default_rng(1).permutation(cells.n_obs)
    shuffled = without_layers(data)[order].copy()
    model.predict_counterfactual("IFNb", shuffled, batch_size=batch_size)
    np.testing.assert_allclose(
        shuffled.layers["counterfactual_IFNb"],
        cells.layers["counterfactual_IFNb"][order],
        rtol=1e-4,
        atol=1e-5,
    )


def test_cells_of_a_new_combination_and_of_unknown_levels(trained):
    model, data = trained
    cells = without_layers(data)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace("B", "Treg")
    with pytest.raises(ValueError, match="'Treg'.*Known: 'B'"):
        model.predict_counterfactual("IFNb", cells)


def test_layers_survive_a_file_and_are_plotted_by_scanpy(trained, tmp_path):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual(None, cells)
    cells.write_h5ad(tmp_path / "out.h5ad")
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert again.uns["scvci"]["counterfactual_TNFa"]["treatment"] == "TNFa"
    plot = sc.pl.dotplot(
        again,
        list(again.var_names[:3]),
        groupby="cell_type",
        layer="counterfactual_TNFa",
        return_fig=True,
    )
    plot.make_figure()


def test_latent_representation(trained):
    model, data = trained
    z = model.get_latent_representation()
    assert z.shape == (300, 3)
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(z, mean)
    assert (variance > 0).all()
    reordered = without_layers(data)[:, ::-1].copy()
    np.testing.assert_allclose(model.get_latent_representation(reordered), z, rtol=1e-4, atol=1e-5)
    assert model.get_latent_representation(indices=[2, 5]).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_samples": 0}, "n_samples=0"),
        ({"library_size": -1}, "library_size=-1"),
        ({"n_samples": 1, "log1p": True}, "log1p"),
        ({"keep": "noise"}, "keep='noise'"),
    ],
)
def test_impossible_scales_are_refused(trained, arguments, match):
    model, data = trained
    with pytest.raises(ValueError, match=match):
        model.predict_counterfactual("IFNb", without_layers(data), **arguments)


def test_no_cells_give_an_empty_layer(trained):
    model, data = trained
    cells = without_layers(data)
    model.predict_counterfactual("IFNb", cells, indices=[])
    assert np.isnan(cells.layers["counterfactual_IFNb"]).all()
    assert model.get_latent_representation(indices=[]).shape == (0, 3)


def test_molecules_leave_a_cell_as_it_was_measured(trained):
    model, data = trained
    cells = without_layers(data)
    for received in ("control", "IFNb"):
        rows = (cells.obs["treatment"] == received).to_numpy()
        (layer,) = model.predict_counterfactual(received, cells, keep="molecules")
        (draw,) = model.predict_counterfactual(
            received, cells, keep="molecules", n_samples=1, layer_added=f"{received}_draw"
        )
        counts = cells.layers["counts"].toarray()
        np.testing.assert_allclose(cells.layers[layer][rows], counts[rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(cells.layers[draw].toarray()[rows], counts[rows])
        assert np.abs(cells.layers[layer][~rows] - counts[~rows]).max() > 0.1
    assert cells.uns["scvci"][layer]["keep"] == "molecules"


def test_molecules_move_at_another_size_and_scale(trained):
    model, data = trained
    cells = without_layers(data)
    counts = cells.layers["counts"].toarray()
    settings = {"keep": "molecules", "library_size": 10 * counts.sum(axis=1).max()}
    model.predict_counterfactual("control", cells, layer_added="large", **settings)
    assert (cells.layers["large"] >= counts - 1e-3).all()
    model.predict_counterfactual("control", cells, layer_added="log", log1p=True, **settings)
    np.testing.assert_allclose(
        np.expm1(cells.layers["log"]), cells.layers["large"], rtol=1e-3, atol=1e-3
    )
    low, high = model.predict_counterfactual(
        "IFNb", cells, keep="molecules", quantiles=(0.1, 0.9), n_samples=20
    )
    assert (cells.layers[low] <= cells.layers[high]).all()
    with pytest.raises(ValueError, match="keep='molecules' moves the cell's own"):
        model.predict_counterfactual(
            "IFNb", cells, n_samples=1, keep_totals=True, keep="molecules"
        )


def test_rates_keep_half_of_what_a_cell_shows_beyond_its_state(trained):
    model, data = trained
    cells = without_layers(data)
    counts = cells.layers["counts"].toarray()
    (state,) = model.predict_counterfactual("control", cells, keep="state", layer_added="state")
    (layer,) = model.predict_counterfactual("control", cells)
    own = cells.obs["treatment"].to_numpy() == "control"
    mean, kept = cells.layers[state][own], cells.layers[layer][own]
    theta = model.module.likelihood.log_theta.exp().detach().numpy()
    expected = mean * (1 + 0.5 * (counts[own] - mean) / (theta + mean))
    expected *= mean.sum(axis=1, keepdims=True) / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(kept, expected, rtol=1e-3)
    assert cells.uns["scvci"][layer]["keep"] == "rates"


@pytest.mark.parametrize(("keep", "times"), [("rates", 1), ("state", 0), ("molecules", 1)])
def test_the_treatment_received_is_decoded_once_for_all_arms(trained, monkeypatch, keep, times):
    model, data = trained
    decoded = []
    original = type(model).reconstruct

    def count(self, tensors, *args, **kwargs):
        decoded.append(len(tensors["X"]))
        return original(self, tensors, *args, **kwargs)

    monkeypatch.setattr(type(model), "reconstruct", count)
    model.predict_counterfactual(None, data, keep=keep, batch_size=data.n_obs, output="means")
    assert decoded == [data.n_obs] * times


# -- means and blocks in place of layers ----------------------------------------------------------


def test_means_are_those_of_the_layers(trained):
    model, data = trained
    cells = without_layers(data)
    layers = model.predict_counterfactual(None, cells, log1p=True)
    kept, records = list(cells.layers), dict(cells.uns["scvci"])
    means = model.predict_counterfactual(None, cells, log1p=True, output="means")
    assert list(cells.layers) == kept
    assert cells.uns["scvci"].keys() == records.keys()
    assert means.var_names.tolist() == data.var_names.tolist()
    assert means.obs_names[:2].tolist() == ["control | B", "control | CD14 Mono"]
    assert len(means) == len(layers) * 3
    sizes = data.obs["cell_type"].value_counts()
    for (_, row), values in zip(means.obs.iterrows(), means.X, strict=True):
        own = (data.obs["cell_type"] == row["stratum"]).to_numpy()
        expected = cells.layers[f"counterfactual_{row['treatment']}"][own].mean(axis=0)
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        assert row["n_cells"] == sizes[row["stratum"]]
        assert row["basis"] == "measured"
    record = means.uns["scvci"]["X"]
    assert record["scale"] == "log1p of expected counts at own library size"
    assert record["seed"] == model.seed_


def test_means_of_some_cells_weigh_a_cell_as_often_as_it_is_asked_for(trained):
    model, data = trained
    rows = np.flatnonzero(data.obs["cell_type"] == "B")[[5, 2, 2]]
    cells = without_layers(data)
    model.predict_counterfactual("IFNb", cells, batch_size=2)
    means = model.predict_counterfactual(["IFNb"], cells, indices=rows, output="means")
    assert means.obs["n_cells"].tolist() == [3]
    expected = cells.layers["counterfactual_IFNb"][rows].mean(axis=0)
    np.testing.assert_allclose(means.X[0], expected, rtol=1e-4)


def test_means_of_draws_and_what_has_no_mean(trained):
    model, data = trained
    expected = model.predict_counterfactual("IFNb", data, output="means")
    drawn = model.predict_counterfactual("IFNb", data, n_samples=1, output="means")
    np.testing.assert_allclose(drawn.X.sum(axis=1), expected.X.sum(axis=1), rtol=0.05)
    for arguments in ({"n_samples": 2}, {"quantiles": (0.2, 0.8)}):
        with pytest.raises(ValueError, match="takes one prediction"):
            model.predict_counterfactual("IFNb", data, output="means", **arguments)
    with pytest.raises(ValueError, match="target_key= is for single cells"):
        model.predict_counterfactual(adata=data, target_key="treatment", output="means")
    with pytest.raises(ValueError, match="output='mean' must be"):
        model.predict_counterfactual("IFNb", data, output="mean")


def test_blocks_are_the_layers_in_pieces(trained):
    model, data = trained
    cells = without_layers(data)
    names = ["TNFa", "control"]
    layers = model.predict_counterfactual(names, cells)
    plain = without_layers(data)
    rows = np.array([7, 3, 250, 3, 11])
    found = {name: [] for name in names}
    seen = {name: [] for name in names}
    for block in model.predict_counterfactual(
        names, plain, indices=rows, batch_size=2, output="blocks"
    ):
        assert isinstance(block, Block)
        assert block.values.shape == (len(block.rows), 30)
        found[block.treatment].append(block.values)
        seen[block.treatment].append(block.rows)
    assert "scvci" not in plain.uns
    assert not [name for name in plain.layers if name and name.startswith("counterfactual")]
    for name, layer in zip(names, layers, strict=True):
        np.testing.assert_array_equal(np.concatenate(seen[name]), rows)
        np.testing.assert_allclose(
            np.concatenate(found[name]), cells.layers[layer][rows], rtol=1e-4, atol=1e-5
        )


def test_blocks_of_draws_have_the_draws_first(trained):
    model, data = trained
    cells = without_layers(data)
    scvi.settings.seed = 3
    (block,) = model.predict_counterfactual(
        "IFNb", cells, n_samples=2, batch_size=300, output="blocks"
    )
    assert block.values.shape == (2, 300, 30)
    scvi.settings.seed = 3
    layers = model.predict_counterfactual("IFNb", cells, n_samples=2, batch_size=300)
    for draw, layer in zip(block.values, layers, strict=True):
        np.testing.assert_array_equal(draw, cells.layers[layer].toarray())


def test_blocks_of_targets_hold_each_cell_under_its_own(trained):
    model, data = trained
    cells = without_layers(data)
    (layer,) = model.predict_counterfactual(adata=cells, target_key="treatment")
    blocks = list(
        model.predict_counterfactual(
            adata=cells, target_key="treatment", batch_size=120, output="blocks"
        )
    )
    assert [len(block.rows) for block in blocks] == [120, 120, 60]
    values = np.concatenate([block.values for block in blocks])
    np.testing.assert_allclose(values, cells.layers[layer], rtol=1e-4, atol=1e-5)


# -- order and names ------------------------------------------------------------------------------


def test_order_and_repetitions_of_indices_are_kept(trained):
    model, data = trained
    rows = np.array([9, 4, 250, 4, -1])
    names = data.obs_names[rows]
    latent = model.get_latent_representation()
    expression = model.get_normalized_expression(treatment="IFNb", return_numpy=True)
    for indices in (rows, rows.tolist(), names, names.tolist()):
        options = {"indices": indices, "batch_size": 2}
        np.testing.assert_allclose(
            model.get_latent_representation(**options), latent[rows], rtol=1e-4, atol=1e-5
        )
        table = model.get_normalized_expression(treatment="IFNb", **options)
        assert table.index.tolist() == names.tolist()
        np.testing.assert_allclose(table, expression[rows], rtol=1e-4)


_TWO = ["TNFa", "IFNb"]


@pytest.mark.parametrize(
    "names",
    [
        _TWO,
        tuple(_TWO),
        set(_TWO),
        dict.fromkeys(_TWO),
        np.array(_TWO),
        np.array(_TWO, dtype=object),
        pd.Series(_TWO, index=[4, 2]),
        pd.Index(_TWO),
        pd.array(_TWO, dtype="string"),
        pd.Categorical(_TWO, ["control", "IFNb", "TNFa"]),
        pd.CategoricalIndex(_TWO),
        pd.Series(_TWO, dtype="category"),
    ],
    ids=lambda names: type(names).__name__,
)
def test_names_come_in_any_container(trained, names):
    model, data = trained
    order = sorted(_TWO) if isinstance(names, set) else _TWO
    cells = without_layers(data)[:5].copy()
    layers = model.predict_counterfactual(names, cells)
    assert layers == [f"counterfactual_{name}" for name in order]
    assert [cells.uns["scvci"][layer]["treatment"] for layer in layers] == order
    with pytest.raises(ValueError, match="asked for more than once"):
        model.predict_counterfactual([*names, "IFNb"], cells)


@pytest.mark.parametrize("name", ["IFNb", np.str_("IFNb")])
def test_a_single_name_is_one_name(trained, name):
    model, data = trained
    cells = without_layers(data)[:5].copy()
    assert model.predict_counterfactual(name, cells) == ["counterfactual_IFNb"]
    assert model.predict_counterfactual(name, cells, layer_added="mine") == ["mine"]


@pytest.mark.parametrize(
    "container", [tuple, np.array, pd.Series, pd.Index, pd.Categorical, pd.CategoricalIndex]
)
def test_cells_genes_and_columns_come_in_any_container(trained, adata, container):
    model, data = trained
    names = container(data.obs_names[[8, 5]].tolist())
    latent = model.get_latent_representation()
    np.testing.assert_allclose(
        model.get_latent_representation(indices=names), latent[[8, 5]], rtol=1e-4, atol=1e-5
    )
    genes = container(data.var_names[[8, 5]].tolist())
    table = model.get_normalized_expression(gene_list=genes)
    assert table.columns.tolist() == data.var_names[[8, 5]].tolist()
    VCI.setup_anndata(
        adata, control=container(["control"]), categorical_covariate_keys=container(["cell_type"])
    )
    assert VCI(adata).strata == model.strata
