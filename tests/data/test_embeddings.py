"""Features of treatments: fingerprints, loadings of genes, and tables with their errors."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvci.data import _embeddings
from scvci.data._embeddings import gene_loadings, morgan_fingerprints, read_embeddings

MEMBERS = ["G1", "G2", "G3"]
SMILES = {
    "ethanol": "CCO",
    "propanol": "CCCO",
    "benzene": "c1ccccc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
}


@pytest.fixture
def adata():
    """Two programmes of genes, G0 to G9 and G10 to G19, and ten genes of noise."""
    rng = np.random.default_rng(0)
    activity = rng.normal(size=(400, 2))
    rate = np.full((400, 30), 5.0)
    rate[:, :10] *= np.exp(0.7 * activity[:, :1])
    rate[:, 10:20] *= np.exp(0.5 * activity[:, 1:])
    names = pd.DataFrame(index=[f"G{i}" for i in range(30)])
    adata = AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), var=names)
    adata.layers["dense"] = adata.X.toarray()
    return adata


@pytest.fixture
def table():
    names = ["control", "new", "G3", "G1", "G2"]
    return pd.DataFrame({"a": np.arange(5), "b": np.arange(5) / 2, "c": np.eye(5)[1] > 0}, names)


def _read(table, adata, members=MEMBERS, separator="+", **kwargs):
    return read_embeddings(table, adata, members, "control", separator, **kwargs)


class TestMorganFingerprints:
    def test_bits_tell_compounds_apart(self):
        pytest.importorskip("rdkit")
        bits = morgan_fingerprints(SMILES)
        assert list(bits.index) == list(SMILES)
        assert bits.shape == (4, 2048)
        assert (bits.dtypes == np.float32).all()
        assert bits.isin([0, 1]).all(axis=None)
        x = bits.to_numpy()
        shared = x @ x.T
        tanimoto = shared / (x.sum(1)[:, None] + x.sum(1)[None] - shared)
        assert tanimoto[0, 1] > tanimoto[0, 2]
        assert tanimoto[2, 3] > tanimoto[2, 0]

    def test_the_same_compound_has_the_same_bits(self):
        pytest.importorskip("rdkit")
        bits = morgan_fingerprints(pd.Series(["CCO", "OCC"], index=["a", "b"]), n_bits=64)
        assert bits.shape == (2, 64)
        assert (bits.loc["a"] == bits.loc["b"]).all()

    def test_a_larger_radius_sees_more(self):
        pytest.importorskip("rdkit")
        small, large = (morgan_fingerprints(SMILES, radius=r) for r in (0, 3))
        assert large.loc["aspirin"].sum() > small.loc["aspirin"].sum()

    def test_bad_smiles_are_all_named(self):
        pytest.importorskip("rdkit")
        bad = {"x": "C1CC", "y": "", "z": None}
        with pytest.raises(ValueError, match=r"3 treatments.*'x' \('C1CC'\), 'y' \(''\), 'z'"):
            morgan_fingerprints({**SMILES, **bad})
        with pytest.raises(ValueError, match="and 5 more") as error:
            morgan_fingerprints({f"bad{i}": "?" for i in range(15)})
        assert str(error.value).count("'bad") == 10

    def test_names_must_be_there_and_differ(self):
        pytest.importorskip("rdkit")
        with pytest.raises(ValueError, match="more than once: 'a'"):
            morgan_fingerprints(pd.Series(["C", "CC"], index=["a", "a"]))
        with pytest.raises(ValueError, match="without a name"):
            morgan_fingerprints({" ": "C"})

    def test_missing_library_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rdkit", None)
        with pytest.raises(ImportError, match=r"scvci\[chem\]"):
            morgan_fingerprints(SMILES)


class TestGeneLoadings:
    def test_loadings_are_correlations(self, adata):
        loadings = gene_loadings(adata, n_components=5)
        assert list(loadings.columns) == ["PC1", "PC2", "PC3", "PC4", "PC5"]
        assert list(loadings.index) == list(adata.var_names)
        counts = adata.X.toarray().astype(float)
        x = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        scores = np.linalg.svd(x, full_matrices=False)[0][:, :5]
        expected = np.corrcoef(x.T, scores.T)[:30, 30:]
        assert np.allclose(np.abs(loadings), np.abs(expected), atol=1e-6)

    def test_genes_of_a_programme_are_alike(self, adata):
        x = gene_loadings(adata, n_components=2).to_numpy()
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = x @ x.T
        assert cosine[:10, :10].min() > 0.8
        assert cosine[10:20, 10:20].min() > 0.8
        assert np.abs(cosine[:10, 10:20]).max() < 0.8

    def test_dense_and_sparse_agree_and_signs_are_fixed(self, adata):
        loadings = gene_loadings(adata, n_components=3)
        assert np.allclose(loadings, gene_loadings(adata, "dense", n_components=3), atol=1e-6)
        shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)]
        assert np.allclose(loadings, gene_loadings(shuffled, n_components=3, seed=7), atol=1e-6)
        largest = np.abs(loadings.to_numpy()).argmax(axis=0)
        assert (loadings.to_numpy()[largest, range(3)] > 0).all()

    def test_data_are_not_changed(self, adata):
        before = adata.copy()
        gene_loadings(adata)
        gene_loadings(adata, "dense")
        assert (adata.X != before.X).nnz == 0
        assert (adata.layers["dense"] == before.layers["dense"]).all()

    def test_log_normalised_data_stay_as_they_are(self, adata):
        counts = adata.layers["dense"]
        adata.layers["log"] = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        first, second = (gene_loadings(adata, layer, n_components=3) for layer in (None, "log"))
        assert np.allclose(first, second, atol=1e-5)

    def test_constant_genes_are_zero(self, adata):
        adata.layers["dense"][:, 4] = 0
        assert np.allclose(gene_loadings(adata, "dense").loc["G4"], 0, atol=1e-12)

    def test_mask_and_draw_choose_cells(self, adata, monkeypatch):
        mask = np.arange(adata.n_obs) < 200
        some = gene_loadings(adata, n_components=3, cells=mask)
        assert np.allclose(some, gene_loadings(adata[:200], n_components=3), atol=1e-6)
        monkeypatch.setattr(_embeddings, "_MAX_CELLS", 150)
        drawn = [gene_loadings(adata, n_components=3, seed=s) for s in (0, 0, 1)]
        assert drawn[0].equals(drawn[1])
        assert not np.allclose(drawn[0], drawn[2])

    def test_components_are_bounded_by_the_data(self, adata):
        assert gene_loadings(adata, n_components=50).shape == (30, 29)
        assert gene_loadings(adata[:10], n_components=50).shape == (30, 9)

    def test_errors(self, adata):
        with pytest.raises(KeyError, match="no 'spliced'"):
            gene_loadings(adata, "spliced")
        with pytest.raises(ValueError, match="at least 1"):
            gene_loadings(adata, n_components=0)
        with pytest.raises(ValueError, match="2 cells"):
            gene_loadings(adata[:2])
        with pytest.raises(ValueError, match=r"mask of shape \(400,\)"):
            gene_loadings(adata, cells=np.arange(5))
        adata.layers["dense"][3, 7] = np.nan
        with pytest.raises(ValueError, match="'G7'"):
            gene_loadings(adata, "dense")


class TestReadEmbeddings:
    def test_members_first_then_the_unmeasured_without_control(self, adata, table):
        names, values = _read(table, adata)
        assert names == ["G1", "G2", "G3", "new"]
        assert values.dtype == float
        assert values.tolist() == [[3, 1.5, 0], [4, 2, 0], [2, 1, 0], [1, 0.5, 1]]

    def test_control_needs_no_row(self, adata, table):
        names, values = _read(table, adata)
        other, same = _read(table.drop("control"), adata)
        assert names == other
        assert (values == same).all()

    def test_entries_of_uns_and_varm(self, adata, table):
        adata.uns["features"] = table
        assert _read("features", adata)[0] == ["G1", "G2", "G3", "new"]
        loadings = np.random.default_rng(0).normal(size=(30, 4))
        adata.varm["array"] = loadings
        adata.varm["sparse"] = sparse.csr_matrix(loadings)
        adata.varm["frame"] = pd.DataFrame(loadings, adata.var_names).add_prefix("f")
        for key in ("array", "sparse", "frame"):
            names, values = _read(key, adata, ["G2", "G1"])
            assert names == ["G2", "G1", "G0", *(f"G{i}" for i in range(3, 30))]
            assert np.allclose(values[:3], loadings[[2, 1, 0]])

    def test_gene_loadings_of_chosen_cells(self, adata):
        mask = np.arange(adata.n_obs) % 2 == 0
        names, values = _read("gene_loadings", adata, layer="dense", cells=mask)
        assert values.shape == (30, 20)
        expected = gene_loadings(adata, "dense", cells=mask)
        assert np.allclose(values, expected.loc[names])

    def test_an_entry_named_gene_loadings_is_used(self, adata):
        adata.varm["gene_loadings"] = np.ones((30, 2))
        assert _read("gene_loadings", adata)[1].shape == (30, 2)

    def test_unknown_entry(self, adata, table):
        adata.uns["features"] = table
        adata.varm["PCs"] = np.ones((30, 2))
        with pytest.raises(KeyError, match=r"'feature'.*uns\['features'\], varm\['PCs'\]"):
            _read("feature", adata)
        adata.varm["features"] = np.ones((30, 2))
        with pytest.raises(ValueError, match="both uns and varm"):
            _read("features", adata)

    def test_what_is_no_table(self, adata):
        adata.uns["log1p"] = {"base": None}
        with pytest.raises(TypeError, match="it is dict"):
            _read("log1p", adata)
        with pytest.raises(TypeError, match="got ndarray"):
            _read(np.ones((3, 2)), adata)

    def test_missing_rows_are_listed_with_the_nearest(self, adata, table):
        with pytest.raises(ValueError, match=r"2 treatments.*'G2' \(nearest: .*'G1'.*'far'"):
            _read(table.drop("G2"), adata, [*MEMBERS, "far"])
        with pytest.raises(ValueError, match="and 3 more"):
            _read(table, adata, [f"drug{i}" for i in range(13)])

    def test_repeated_and_unnamed_rows(self, adata, table):
        with pytest.raises(ValueError, match="more than once: 'new'"):
            _read(pd.concat([table, table.loc[["new"]]]), adata)
        with pytest.raises(ValueError, match="more than once: '1'"):
            _read(pd.DataFrame({"a": [1, 2]}, index=[1, "1"]), adata, [])
        for name in (None, np.nan, " "):
            with pytest.raises(ValueError, match=r"without a name \(row 1\)"):
                _read(table.rename({"new": name}), adata)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_must_be_finite(self, adata, table, value):
        table.loc["G3", "b"] = value
        with pytest.raises(ValueError, match="row 'G3', column 'b'"):
            _read(table, adata)

    def test_missing_integers_are_found(self, adata, table):
        table["a"] = pd.array([0, 1, None, 3, 4], dtype="Int64")
        with pytest.raises(ValueError, match="row 'G3', column 'a'"):
            _read(table, adata)

    def test_columns_must_be_numeric(self, adata, table):
        with pytest.raises(TypeError, match="Column 'd'.*get_dummies"):
            _read(table.assign(d=["x"] * 5), adata)

    def test_joint_names_are_refused_in_tables_and_left_out_of_genes(self, adata, table):
        joint = table.rename({"new": "G1+G2"})
        with pytest.raises(ValueError, match=r"separator '\+': 'G1\+G2'"):
            _read(joint, adata)
        assert "G1+G2" in _read(joint, adata, separator=None)[0]
        adata.var_names = ["G+0", *adata.var_names[1:]]
        names, values = _read("gene_loadings", adata)
        assert "G+0" not in names
        assert len(names) == len(values) == 29

    @pytest.mark.parametrize("empty", [pd.DataFrame(), pd.DataFrame(index=MEMBERS)])
    def test_empty_table(self, adata, empty):
        with pytest.raises(ValueError, match="0 columns"):
            _read(empty, adata)
