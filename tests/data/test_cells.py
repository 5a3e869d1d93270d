"""The table of cells: order, what is judged, and where expression lies."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scvi import REGISTRY_KEYS

from scvci.data import Cells
from scvci.data import _constants as keys
from scvci.data._cells import resolve_indices
from scvci.model import VCI

_SETUP = {
    "categorical_covariate_keys": ["cell_type"],
    "continuous_covariate_keys": ["age"],
    "size_factor_key": "size",
    "batch_key": "lane",
    "dose_key": "dose",
}


@pytest.fixture
def data(rng):
    """Sixty cells with everything that can be registered."""
    n = 60
    obs = pd.DataFrame(
        {
            "treatment": np.resize(["control", "A", "B"], n),
            "cell_type": np.repeat(["x", "y"], n // 2),
            "lane": np.resize(["l1", "l2"], n),
            "age": rng.normal(size=n),
            "size": rng.uniform(1, 2, size=n),
            "dose": np.resize(["0", "1", "2.5"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    counts = rng.poisson(3, size=(n, 8)).astype(np.float32)
    counts[:, 0] += 1
    var = pd.DataFrame(index=[f"gene{i}" for i in range(8)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


@pytest.fixture
def registry(data):
    source = data.copy()
    VCI.setup_anndata(source, **_SETUP)
    return VCI.registry_of(source)


def _dense(data):
    return data.X.toarray()


# -- order --------------------------------------------------------------------------------------


def test_codes_and_names_are_those_of_the_registry(data, registry):
    cells = Cells.from_registry(data, registry)
    names = np.array(cells.treatments.names)[cells.treatment]
    np.testing.assert_array_equal(names[:3], ["control", "A@1", "B@2.5"])
    np.testing.assert_array_equal(np.array(cells.strata)[cells.stratum], data.obs["cell_type"])
    np.testing.assert_array_equal(cells.batch, np.resize([0, 1], 60))
    np.testing.assert_array_equal(cells.continuous[:, 0], data.obs["age"])
    np.testing.assert_array_equal(cells.size_factor, data.obs["size"])
    assert (cells.n_obs, cells.n_treatments, cells.n_strata) == (60, 3, 2)
    assert cells.is_count
    assert not [c for c in data.obs if c.startswith("_scvi")]


@pytest.mark.parametrize("order", [[7, 3, 3, 59, 0], [5], [], [2, 3, 4], list(range(59, -1, -1))])
def test_rows_keep_their_order_and_repetitions(data, registry, order):
    cells = Cells.from_registry(data, registry, np.array(order, dtype=int))
    np.testing.assert_array_equal(cells.rows, order)
    np.testing.assert_array_equal(cells.expression(cells.rows), _dense(data)[order])
    np.testing.assert_array_equal(cells.counts(cells.rows).toarray(), _dense(data)[order])
    parts = list(cells.batches(2))
    rows = np.concatenate([np.zeros(0, int), *(part for part, _ in parts)])
    np.testing.assert_array_equal(rows, order)
    for part, tensors in parts:
        np.testing.assert_array_equal(tensors[REGISTRY_KEYS.X_KEY], _dense(data)[part])
        np.testing.assert_array_equal(tensors[keys.TREATMENT_KEY][:, 0], cells.treatment[part])
        np.testing.assert_array_equal(tensors[keys.STRATUM_KEY][:, 0], cells.stratum[part])
        np.testing.assert_array_equal(tensors[keys.BATCH_KEY][:, 0], cells.batch[part])
        size = cells.size_factor[part].astype(np.float32)
        np.testing.assert_array_equal(tensors[keys.SIZE_FACTOR_KEY][:, 0], size)


@pytest.mark.parametrize(
    ("indices", "rows"),
    [
        ([-1, 0], [59, 0]),
        (["cell4", "cell2", "cell4"], [4, 2, 4]),
        (np.arange(60) < 3, [0, 1, 2]),
        (slice(50, None, 5), [50, 55]),
        (7, [7]),
        (pd.Index(["cell9"]), [9]),
    ],
)
def test_cells_are_chosen_by_rows_masks_slices_and_names(data, registry, indices, rows):
    np.testing.assert_array_equal(resolve_indices(data, indices), rows)
    np.testing.assert_array_equal(Cells.from_registry(data, registry, indices).rows, rows)


def test_cells_that_do_not_exist_are_refused(data):
    with pytest.raises(IndexError, match="Index 60 lies outside 60 cells"):
        resolve_indices(data, [3, 60])
    with pytest.raises(IndexError, match="Mask of 3 values for 60 cells"):
        resolve_indices(data, np.ones(3, dtype=bool))
    with pytest.raises(KeyError, match="'cell60' is not in adata.obs_names"):
        resolve_indices(data, ["cell1", "cell60"])


# -- what is judged -------------------------------------------------------------------------------


def _spoil(data, row, what):
    """One thing that a model cannot read in a cell."""
    if what == "count":
        data.X[row, 2] = 0.5
    else:
        column, value = what
        data.obs[column] = data.obs[column].astype(object)
        data.obs.iloc[row, data.obs.columns.get_loc(column)] = value


_FAULTS = [
    (("treatment", "C"), "Treatment 'C@1' is unknown"),
    (("treatment", None), r"obs\['treatment'\] has 1 missing"),
    (("treatment", " "), r"obs\['treatment'\] has 1 empty"),
    (("dose", "much"), "Dose 'much' of treatment 'A'"),
    (("dose", "3"), "Treatment 'A@3' is unknown"),
    (("cell_type", "z"), "Level of covariate 'cell_type' 'z' is unknown"),
    (("cell_type", None), r"obs\['cell_type'\] has 1 missing"),
    (("lane", "l3"), "Level of covariate 'lane' 'l3' is unknown"),
    (("age", np.nan), "must hold finite numbers"),
    (("size", np.inf), "must hold finite numbers"),
    ("count", "cell 'cell1', gene 'gene2' is 0.5"),
]


@pytest.mark.parametrize(("what", "message"), _FAULTS, ids=[str(f[0]) for f in _FAULTS])
def test_only_the_cells_in_question_are_judged(data, registry, what, message):
    _spoil(data, 1, what)
    others = np.delete(np.arange(60), 1)
    cells = Cells.from_registry(data, registry, others)
    cells.check_expression(is_count=True)
    assert (cells.treatment[others] >= 0).all()
    assert (cells.stratum[others] >= 0).all()
    for indices in (None, [0, 1], ["cell1"]):
        with pytest.raises(ValueError, match=message):
            Cells.from_registry(data, registry, indices).check_expression(is_count=True)


def test_labels_are_read_as_they_are_now(data, registry):
    VCI.setup_anndata(data, **_SETUP)
    before = Cells.from_registry(data, registry)
    data.obs["treatment"] = data.obs["treatment"].replace({"A": "B"})
    data.obs["dose"] = data.obs["dose"].replace({"1": "2.5"})
    after = Cells.from_registry(data, registry)
    assert before.treatments.names == after.treatments.names
    a, b = (before.treatments.name_index[name] for name in ("A@1", "B@2.5"))
    np.testing.assert_array_equal(
        after.treatment, np.where(before.treatment == a, b, before.treatment)
    )
    # What setup_anndata wrote is that of the labels that it saw.
    np.testing.assert_array_equal(data.obs["_scvi_treatment"], before.treatment)


def test_combinations_that_training_did_not_see_become_strata(data):
    data.obs["donor"] = np.where(data.obs["cell_type"] == "x", "d1", "d2")
    VCI.setup_anndata(data, categorical_covariate_keys=["cell_type", "donor"])
    new = data.copy()
    new.obs["donor"] = "d2"
    cells = Cells.from_registry(new, VCI.registry_of(data), np.arange(40))
    assert cells.strata == ["x | d1", "y | d2"]
    np.testing.assert_array_equal(cells.stratum, np.repeat([-1, 1], 30))
    grown = cells.with_new_strata()
    assert grown.strata == ["x | d1", "y | d2", "x | d2"]
    np.testing.assert_array_equal(grown.stratum, np.repeat([2, 1], 30))
    assert grown.take(np.array([3])).with_new_strata().strata == grown.strata


# -- expression -----------------------------------------------------------------------------------


_STORES = [
    (store, dtype)
    for store in (np.asarray, sparse.csr_matrix, sparse.csc_matrix)
    for dtype in (np.float16, np.float32, np.float64, np.int32, np.uint8)
    # scipy has no sparse matrices in half precision.
    if store is np.asarray or dtype != np.float16
]


@pytest.mark.parametrize(("store", "dtype"), _STORES)
def test_expression_is_the_same_whatever_it_is_stored_as(data, registry, store, dtype):
    expected = _dense(data)
    data.X = store(expected.astype(dtype))
    rows = np.array([9, 2, 2, 40])
    cells = Cells.from_registry(data, registry, rows)
    cells.check_expression(is_count=True)
    found = cells.expression(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[rows])
    counts = cells.counts(rows)
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts.toarray(), expected[rows])


def test_sums_of_half_precision_do_not_overflow(data, registry):
    """Half precision ends at 65,504, which a cell's total exceeds."""
    large = np.full(data.shape, 3e4, dtype=np.float16)
    data.X = large
    registry["setup_args"]["size_factor_key"] = None
    cells = Cells.from_registry(data, registry)
    rows = np.array([3, 1])
    expected = large[rows].astype(float).sum(axis=1)
    np.testing.assert_array_equal(cells.size(rows, cells.block(rows)), expected)
    np.testing.assert_array_equal(cells.counts(rows).sum(axis=1), expected[:, None])


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
def test_backed_files_are_read_in_any_order(data, registry, store, tmp_path):
    expected = _dense(data)
    data.X = store(expected)
    shuffled = data[:, np.random.default_rng(0).permutation(data.n_vars)].copy()
    for source in (data, shuffled):
        source.write_h5ad(tmp_path / "cells.h5ad")
        backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        rows = np.array([31, 4, 59, 4, 0])
        cells = Cells.from_registry(backed, registry, rows)
        cells.check_expression(is_count=True)
        np.testing.assert_array_equal(cells.expression(rows), expected[rows])
        read = np.concatenate([t[REGISTRY_KEYS.X_KEY] for _, t in cells.batches(2)])
        np.testing.assert_array_equal(read, expected[rows])
        assert cells.is_count
        backed.file.close()


def test_views_and_other_genes_are_read_as_they_are(data, registry):
    expected = _dense(data)
    other = data[:, :2].copy()
    other.var_names = ["other1", "other2"]
    more = anndata.concat([data, other], axis=1, merge="first")
    view = more[::-1, ::-1]
    assert view.is_view
    cells = Cells.from_registry(view, registry, ["cell3", "cell1"])
    np.testing.assert_array_equal(cells.genes, data.var_names)
    np.testing.assert_array_equal(cells.expression(cells.rows), expected[[3, 1]])
    assert view.is_view


def test_genes_that_are_missing_or_repeated_are_named(data, registry):
    with pytest.raises(ValueError, match="lacks 2 of the model's 8 genes: gene6, gene7"):
        Cells.from_registry(data[:, :6], registry)
    data.var_names = ["gene0", *data.var_names[:-1]]
    with pytest.raises(ValueError, match="Gene 'gene0' occurs more than once"):
        Cells.from_registry(data, registry)


def test_expression_that_is_not_there_is_named(data, registry):
    data.layers["counts"] = data.X.copy()
    data.X = None
    with pytest.raises(ValueError, match=r"adata.X is empty \(None\). Layers found: 'counts'"):
        Cells.from_registry(data, registry)
    with pytest.raises(ValueError, match=r"adata.X is empty \(None\).*Pass layer="):
        VCI.setup_anndata(data, **_SETUP)
    registry["setup_args"]["layer"] = "spliced"
    with pytest.raises(KeyError, match="no 'spliced'.*Layers found: 'counts'"):
        Cells.from_registry(data, registry)


@pytest.mark.parametrize("column", ["cell_type", "lane", "age", "size", "treatment", "dose"])
def test_columns_that_are_missing_are_named(data, registry, column):
    del data.obs[column]
    with pytest.raises(KeyError, match=f"no column {column!r}"):
        Cells.from_registry(data, registry)
