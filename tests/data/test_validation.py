"""Checks of expression, and of what is registered."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import table_of_cells
from scipy import sparse

from scvci.data._conditions import TreatmentKeys
from scvci.data._validation import check_pairs, is_integral, validate_setup, warn_about_empty
from scvci.pooling import Pairs


def _check(values, is_count, layer=None, raw=None, rows=None, store=np.asarray):
    adata = anndata.AnnData(store(values))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    if raw is not None:
        adata.raw = anndata.AnnData(store(raw), var=adata.var)
    if layer is not None:
        adata.layers[layer], adata.X = adata.X, np.ones(adata.shape, dtype=np.float32)
    codes = np.zeros(adata.n_obs, dtype=np.int64)
    cells = table_of_cells(adata, codes, codes, 1, 1, rows, layer=layer)
    cells.check_expression(is_count)


@pytest.fixture
def counts(rng):
    return rng.poisson(2, size=(20, 6)).astype(np.float32)


@pytest.fixture
def logs(counts):
    return np.log1p(counts / 0.7)


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
def test_expression_in_the_likelihood_s_support_passes_without_a_word(counts, logs, store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check(counts, is_count=True, store=store)
        _check(logs, is_count=False, store=store)


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(6.0000005), "6.0000005"),
        (2.5, "2.5"),
        (-1.0, "-1"),
        (123456.75, "123456.75"),
        (1e-7, "1e-07"),
        (np.nan, "nan"),
        (np.inf, "inf"),
    ],
)
def test_no_count_is_named_with_its_digits(counts, value, text, store):
    counts[7, 3] = value
    with pytest.raises(ValueError, match="is not counts") as error:
        _check(counts, is_count=True, store=store)
    assert f"adata.X is not counts: cell 'cell7', gene 'gene3' is {text}." in str(error.value)


def test_what_to_do_about_fractions(counts, logs):
    with pytest.raises(ValueError, match="raw counts.*or use likelihood='normal'"):
        _check(logs, is_count=True)
    near = counts + np.float32(2e-7) * (counts > 1)
    near[0, 0] = 6.0000005
    with pytest.raises(ValueError, match=r"near whole numbers: round them \(np.rint\)"):
        _check(near, is_count=True)
    with pytest.raises(ValueError, match="Replace it, or drop the cell or the gene"):
        _check(np.where(counts == counts.max(), np.nan, counts), is_count=True)
    # A single fraction among counts is no rounding error.
    counts[1, 1] = 0.4
    with pytest.raises(ValueError, match="pass the layer of raw counts"):
        _check(counts, is_count=True)


def test_counts_in_raw_are_pointed_to(counts, logs):
    with pytest.raises(ValueError, match=r"adata.raw holds counts: copy them to a layer"):
        _check(logs, is_count=True, raw=counts)
    with pytest.raises(ValueError, match="is not counts") as error:
        _check(logs, is_count=True, raw=logs)
    assert "raw holds" not in str(error.value)
    with pytest.raises(ValueError, match=r"adata.layers\['log'\] is not counts") as error:
        _check(logs, is_count=True, raw=counts, layer="log")
    assert "raw holds" not in str(error.value)


def test_scaled_data_and_numbers_that_are_no_logarithms_are_refused(counts, logs):
    scaled = logs - logs.mean(axis=0)
    with pytest.raises(ValueError, match="adata.X is scaled or centred: cell 'cell0'"):
        _check(scaled, is_count=False)
    logs[4, 2] = 20.5
    with pytest.raises(ValueError, match="is not logarithms: cell 'cell4', gene 'gene2' is 20.5"):
        _check(logs, is_count=False)
    normalised = counts * 1e4 / counts.sum(axis=1, keepdims=True)
    with pytest.raises(ValueError, match=r"not logarithms.*scanpy.pp.log1p"):
        _check(normalised, is_count=False)
    logs[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite value: cell 'cell4', gene 'gene2'"):
        _check(logs, is_count=False)


def test_whole_numbers_under_a_normal_likelihood_are_warned_of(counts):
    with pytest.warns(UserWarning, match="holds whole numbers.*likelihood='nb'"):
        _check(counts, is_count=False)


def test_only_rows_in_question_are_checked(counts):
    counts[7, 3] = 0.5
    _check(counts, is_count=True, rows=np.array([8, 2, 6]))
    with pytest.raises(ValueError, match="cell 'cell7', gene 'gene3'"):
        _check(counts, is_count=True, rows=np.array([8, 7, 2]))


def test_integral_matrices(counts):
    assert is_integral(counts)
    assert is_integral(sparse.csr_matrix(counts))
    assert is_integral(counts.astype(int))
    assert not is_integral(counts + 0.5)
    assert not is_integral(-counts)


def test_cells_and_genes_without_counts_are_named(counts):
    counts += 1
    counts[3] = 0
    counts[:, 5] = 0
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    codes = np.zeros(20, dtype=np.int64)
    with pytest.warns(UserWarning, match="have no counts at all") as caught:
        warn_about_empty(table_of_cells(adata, codes, codes, 1, 1))
    text = " ".join(str(warning.message) for warning in caught)
    assert "1 cells have no counts at all (first: '3')" in text
    assert "1 genes have no counts at all (first: '5')" in text


# -- what is registered ---------------------------------------------------------------------------


def _validate(adata, **settings):
    given = {
        "layer": None,
        "treatment_keys": TreatmentKeys("treatment", ("control",)),
        "categorical_covariate_keys": ["cell_type"],
        "continuous_covariate_keys": [],
        "size_factor_key": None,
    }
    validate_setup(adata, **{**given, **settings})


@pytest.fixture
def registrable(counts):
    obs = pd.DataFrame(
        {
            "treatment": np.resize(["control", "A"], 20),
            "cell_type": "x",
            "age": np.arange(20.0),
            "size": np.arange(20.0) + 1,
        },
        index=[f"cell{i}" for i in range(20)],
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def test_an_experiment_without_faults_passes(registrable):
    _validate(registrable, continuous_covariate_keys=["age"], size_factor_key="size")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layer": "spliced"}, KeyError, "no 'spliced'"),
        ({"categorical_covariate_keys": ["treatment"]}, ValueError, "used twice"),
        ({"categorical_covariate_keys": ["a", "a"]}, ValueError, "used twice"),
        ({"batch_key": "cell_type"}, ValueError, "used twice"),
        ({"continuous_covariate_keys": ["weight"]}, KeyError, "no column 'weight'"),
        ({"continuous_covariate_keys": ["treatment"]}, ValueError, "used twice"),
        ({"size_factor_key": "age"}, ValueError, "positive numbers .*; 1 cells .*'cell0'"),
        ({"size_factor_key": "treatment"}, ValueError, "positive numbers .*; 20 cells"),
        ({"continuous_strata": 0}, ValueError, "whole number from 1"),
        ({"continuous_strata": 1.5}, ValueError, "whole number from 1"),
    ],
)
def test_faulty_settings_are_named(registrable, settings, error, message):
    with pytest.raises(error, match=message):
        _validate(registrable, **settings)


def test_faulty_data_are_named(registrable):
    with pytest.raises(ValueError, match="adata has 0 cells and 6 genes"):
        _validate(registrable[:0])
    repeated = registrable.copy()
    repeated.var_names = ["g0", "g0", "g2", "g3", "g4", "g5"]
    with pytest.raises(ValueError, match="gene names are not unique: 'g0'.*var_names_make"):
        _validate(repeated)
    repeated = registrable.copy()
    repeated.obs_names = ["cell0", *repeated.obs_names[:-1]]
    with pytest.raises(ValueError, match="cell names are not unique: 'cell0'"):
        _validate(repeated)
    for store in (np.asarray, sparse.csr_matrix):
        broken = registrable.copy()
        broken.X[5, 1] = np.nan
        broken.X = store(broken.X)
        with pytest.raises(ValueError, match="NaN or infinite value .cell 'cell5', gene 'g1'"):
            _validate(broken)


def test_strata_without_control_are_refused_and_pairs_without_cells_listed():
    pairs, _ = Pairs.count(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 2)
    with pytest.raises(ValueError, match=r"without a single 'DMSO' cell: \['y'\]"):
        check_pairs(pairs, ["DMSO", "A"], ["x", "y"])
    pairs, _ = Pairs.count(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 2)
    with pytest.warns(UserWarning, match=r"1 \(treatment, stratum\) pairs .*: \(A, y\)"):
        check_pairs(pairs, ["DMSO", "A"], ["x", "y"])
