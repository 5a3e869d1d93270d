"""The test of differences between the effects on single cells."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import scvci
from scvci import tl
from scvci.model import VCI
from scvci.tl._heterogeneity import _split_counts

QUIET = {"accelerator": "cpu", "show_progress": False, "n_folds": 2}


def _model(data, max_epochs=2, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = {"layer": "counts", "categorical_covariate_keys": ["cell_type"]}
        VCI.setup_anndata(data, **{**setup, **arguments.pop("setup", {})})
        model = VCI(data, **{"n_latent": 3, "seed": 0, **arguments})
        model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def _test(model, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.heterogeneity_test(model, *arguments, **{**QUIET, "max_epochs": 2, **options})


@pytest.fixture
def model(adata):
    return _model(adata)


def test_what_cannot_be_tested_is_refused(adata):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    with pytest.raises(RuntimeError, match="not trained"):
        tl.heterogeneity_test(VCI(adata), "IFNb")
    adata.layers["counts"] = adata.layers["counts"].log1p()
    with pytest.raises(ValueError, match="likelihood='normal' has no counts"):
        _test(_model(adata, likelihood="normal"))


def test_parts_of_counts_are_independent_parts():
    data = scvci.datasets.simulate_perturbation(
        n_cells=2000, n_genes=20, n_treatments=2, n_latent=1, inverse_dispersion=1e6, seed=1
    )
    VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    cells = VCI(data, seed=0).cells()
    parts = [part.toarray() for part in _split_counts(cells, 0.3, seed=0)]
    counts = data.layers["counts"].toarray()
    np.testing.assert_array_equal(parts[0] + parts[1], counts)
    assert parts[0].sum() / counts.sum() == pytest.approx(0.3, abs=0.005)
    # Given the cell's own rate, the parts of a Poisson count say nothing about each other.
    mean = np.where(
        (data.obs["treatment"] == "control").to_numpy()[:, None],
        data.layers["true_control"],
        data.layers["true_IFNb"],
    )
    residuals = [
        (p - s * mean) / np.sqrt(s * mean) for p, s in zip(parts, (0.3, 0.7), strict=True)
    ]
    assert abs(np.mean(residuals[0] * residuals[1])) < 4 / np.sqrt(counts.size)
    again = _split_counts(cells, 0.3, seed=0)[0].toarray()
    np.testing.assert_array_equal(parts[0], again)


def test_table(model, adata):
    before = adata.copy()
    table = _test(model)
    assert list(table.columns[:5]) == ["treatment", "reference", "stratum", "gene", "estimate"]
    assert set(table["treatment"]) == {"IFNb", "TNFa"}
    assert set(table["stratum"]) == set(model.strata)
    sizes = table.groupby(["treatment", "stratum"]).size()
    assert (sizes == adata.n_vars + 2).all()
    cells = adata.obs.groupby(["treatment", "cell_type"], observed=True).size()
    row = table[(table["treatment"] == "TNFa") & (table["stratum"] == "B")].iloc[0]
    assert (row["n_treated"], row["n_reference"]) == (cells["TNFa", "B"], cells["control", "B"])
    assert list(adata.layers) == list(before.layers)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.layers["counts"] != before.layers["counts"]).nnz == 0
    pd.testing.assert_frame_equal(_test(model), table)


def test_groups_clusters_and_size_factors(adata):
    data = adata.copy()
    data.obs["tissue"] = np.where(data.obs["cell_type"] == "B", "blood", "other")
    data.obs["donor"] = np.arange(data.n_obs) % 6
    model = _model(data, setup={"size_factor_key": "library_size"})
    table = _test(model, "IFNb", groupby="tissue", cluster_key="donor", min_cells=10)
    assert set(table["stratum"]) == {"blood", "other"}
    assert np.isfinite(table.loc[table["gene"] == "all", "std_error"]).all()
    folds = model.cache["cross_fit"].fold
    assert all(len(np.unique(folds[data.obs["donor"] == d])) == 1 for d in range(6))


def test_small_groups_say_so(model):
    table = _test(model, "IFNb", min_cells=1000)
    assert table["estimate"].isna().all()
    assert (table["note"] == "fewer than min_cells=1000 cells in an arm").all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"treatment": "IFNg"}, "'IFNg' is unknown"),
        ({"treatment": "control"}, "compared with itself"),
        ({"share": 1.0}, "share=1.0"),
        ({"n_folds": 1}, "n_folds=1"),
    ],
)
def test_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        _test(model, **arguments)


@pytest.mark.parametrize(("heterogeneity", "differs"), [(0.0, False), (2.0, True)])
def test_heterogeneity_is_found_where_there_is_some(heterogeneity, differs):
    data = scvci.datasets.simulate_perturbation(
        n_cells=900,
        n_genes=60,
        n_strata=1,
        n_treatments=2,
        n_latent=2,
        heterogeneity=heterogeneity,
        seed=3,
    )
    model = _model(data, max_epochs=1)
    table = _test(model, "IFNb", max_epochs=40).set_index("gene")
    joint = table.loc["all"]
    genes = table.iloc[2:]
    assert not joint["leakage"]
    if not differs:
        assert joint["p_value"] > 0.01
        assert (genes["q_value"] < 0.1).sum() <= 2
        return
    assert joint["p_value"] < 1e-6
    assert joint["estimate"] > 0.5
    log_fold = np.log(data.layers["true_IFNb"] / data.layers["true_control"])
    truth = log_fold.std(axis=0)
    confirmed = genes["confirmed_sd"].to_numpy()
    tested = np.isfinite(confirmed)
    assert np.corrcoef(truth[tested], confirmed[tested])[0, 1] > 0.6
