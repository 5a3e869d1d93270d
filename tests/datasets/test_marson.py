"""Each step of the preparation of the Marson screen, against another computation of its rule."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from sklearn.model_selection import train_test_split

from scvci.datasets import CellFilter, prepare_marson, simulate_marson_raw
from scvci.model import VCI

SIZES = {"n_cells": 2000, "n_genes": 300, "n_targets": 6, "n_strong": 2, "depth": 600}
FILTER = CellFilter(min_counts=150, min_genes=120, max_mitochondrial=0.2)
OPTIONS = {"cell_filter": FILTER, "n_genes": 20, "n_ood": 2}


@pytest.fixture(scope="module")
def raw():
    return simulate_marson_raw(**SIZES)


@pytest.fixture(scope="module")
def published(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("marson") / "marson_formatted_raw.h5ad"
    raw.write_h5ad(path)
    return prepare_marson(path, **OPTIONS)


def _by_hand(raw):
    """The published rules on a dense array, with scanpy where they name it."""
    adata = raw.copy()
    adata.var_names = adata.var["name"].astype(str).to_numpy()
    n = [adata.n_obs]
    adata = adata[adata.obs["nCount_RNA"] > 0]
    n.append(adata.n_obs)
    adata = adata[adata.obs["donor"] != "Unassigned"]
    n.append(adata.n_obs)
    counts = adata.X.toarray()
    is_mitochondrial = adata.var_names.str.contains("MT-")
    with np.errstate(invalid="ignore"):
        share = counts[:, is_mitochondrial].sum(1) / counts.sum(1)
    keep = np.ones(adata.n_obs, dtype=bool)
    for good in (counts.sum(1) > 150, (counts > 0).sum(1) > 120, share < 0.2):
        keep &= good
        n.append(keep.sum())
    adata = adata[keep].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray().astype(np.float64)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=20, flavor="cell_ranger")
    adata = adata[:, adata.var["highly_variable"] | adata.var_names.isin(set(adata.obs["target"]))]
    adata = adata[adata.obs["celltype"] != "Unassigned"].copy()
    n.append(adata.n_obs)
    target = adata.obs["target"].to_numpy()
    norms = {
        t: np.linalg.norm(adata.X[target == t].mean(0) - adata.X[target != t].mean(0))
        for t in set(target) - {"NTC"}
    }
    ood = sorted(norms, key=norms.get)[-2:]
    split = np.full(adata.n_obs, "ood", dtype=object)
    inside = adata.obs["stim_celltype"] == "restimulated_cd8"
    rest = np.flatnonzero(~(inside & np.isin(target, ood)))
    train, test = train_test_split(rest, test_size=0.2, random_state=42)
    split[train], split[test] = "train", "test"
    return adata, norms, ood[::-1], split, n


def test_published_protocol_is_what_its_rules_give(raw, published):
    expected, norms, ood, split, n = _by_hand(raw)
    assert list(published.obs_names) == list(expected.obs_names)
    assert list(published.var_names) == list(expected.var_names)
    np.testing.assert_allclose(published.X.toarray(), expected.X, rtol=1e-5)
    assert (published.layers["counts"] != expected.layers["counts"]).nnz == 0
    np.testing.assert_array_equal(published.obs["split"].astype(str), split)
    record = published.uns["preparation"]
    assert record["ood_treatments"] == ood
    steps = ["raw", "recorded counts", "donor", "counts", "genes", "mitochondrial", "assigned"]
    assert record["n_cells"] == dict(zip(steps, n, strict=True))
    effects = record["effects"].set_index("treatment")["effect"]
    for target, norm in norms.items():
        np.testing.assert_allclose(effects[target], norm, rtol=1e-5)


def test_every_step_drops_cells(published):
    """So that the comparison above sees each of them."""
    n = list(published.uns["preparation"]["n_cells"].values())
    assert (np.diff(n) < 0).all()


def test_columns(raw, published):
    obs, before = published.obs, raw.obs.loc[published.obs_names]
    names = {"target": "treatment", "celltype": "cell_type", "donor": "donor", "sgRNA": "guide"}
    for theirs, ours in {**names, "stim": "stimulation"}.items():
        np.testing.assert_array_equal(obs[ours].astype(str), before[theirs].astype(str))
    assert (obs["dose"] == 1).all()
    is_ood = (before["stim_celltype"] == "restimulated_cd8") & before["target"].isin(
        published.uns["preparation"]["ood_treatments"]
    )
    np.testing.assert_array_equal(obs["split"] == "ood", is_ood)


def test_targeted_genes_are_kept_and_go_up(raw, published):
    targets = set(raw.obs["target"]) - {"NTC"}
    assert targets <= set(published.var_names)
    assert published.n_vars > OPTIONS["n_genes"]
    assert published.uns["preparation"]["unmeasured_targets"] == []
    for target in targets:
        values = published[:, target].X.toarray().ravel()
        activated = (published.obs["treatment"] == target).to_numpy()
        assert values[activated].mean() > values[~activated].mean() + 0.3, target


def test_a_target_that_is_no_gene_is_told(raw):
    adata = raw.copy()
    adata.var["name"] = adata.var["name"].replace("GATA3", "GATA-3")
    record = prepare_marson(adata, **OPTIONS).uns["preparation"]
    assert record["unmeasured_targets"] == ["GATA3"]


@pytest.mark.parametrize("dose_key", [None, "dose"])
def test_prepared_data_can_be_set_up(published, dose_key):
    adata = published.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have no cells")
        VCI.setup_anndata(
            adata,
            layer="counts",
            control="NTC",
            dose_key=dose_key,
            categorical_covariate_keys=["cell_type", "donor", "stimulation"],
        )
        model = VCI(adata)
    assert len(model.treatments) == 1 + 6
    assert len(model.strata) == 8


def test_the_corrected_protocol_drops_unassigned_cells_first_and_keeps_guides_together(raw):
    adata = prepare_marson(raw, **OPTIONS, protocol="corrected", split_by="sgRNA")
    obs = adata.obs
    assert list(adata.uns["preparation"]["n_cells"])[-1] == "assigned"
    assert set(obs["cell_type"]) == {"CD4", "CD8"}
    guides = obs[obs["split"] != "ood"].groupby("guide", observed=True)["split"]
    assert (guides.nunique() == 1).all()
    learn = (obs["split"] == "train") & ~(
        (obs["cell_type"] == "CD8")
        & (obs["stimulation"] == "Re-stimulated")
        & (obs["treatment"] != "NTC")
    )
    assert adata.uns["preparation"]["target_sum"] == np.median(obs.loc[learn, "n_counts"])


def _changed(raw, **columns):
    adata = raw.copy()
    for name, value in columns.items():
        adata.obs[name] = value
    return adata


def _lacking(raw, *, obs=(), var=()):
    adata = raw.copy()
    adata.obs = adata.obs.drop(columns=list(obs))
    adata.var = adata.var.drop(columns=list(var))
    return adata


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda raw: _lacking(raw, obs=["stim"]), KeyError, "has no 'stim'"),
        (lambda raw: _lacking(raw, var=["name"]), KeyError, "var has no 'name'.*Found: 'ENSGNM'"),
        (
            lambda raw: raw[raw.obs["target"] != "NTC"].copy(),
            ValueError,
            "control 'NTC' is no treatment",
        ),
        (
            lambda raw: _changed(raw, stim="Resting"),
            ValueError,
            r"No cell is of .*'stimulation': \['Resting'\]",
        ),
        (lambda raw: _changed(raw, donor=""), ValueError, "No cell is left after 'donor'"),
        (lambda raw: _changed(raw, target=None), ValueError, "has no target; leave it out"),
        (
            lambda raw: _changed(raw, celltype="CD8", stim="Re-stimulated", donor="Donor1"),
            ValueError,
            "has no cell elsewhere to learn from",
        ),
    ],
)
def test_bad_input_is_named(raw, change, error, message):
    with pytest.raises(error, match=message):
        prepare_marson(change(raw), **OPTIONS)


def test_the_simulated_file_has_the_form_of_the_real_one(raw):
    assert list(raw.obs) == [
        "barcode", "nCount_RNA", "cluser_name", "celltype", "donor", "stim", "totally_qualified",
        "unabiguous_sgRNA", "sgRNA", "ntc", "target", "stim_celltype",
    ]  # fmt: skip
    assert list(raw.var) == ["ENSGNM", "name", "is_sgRNA"]
    obs = raw.obs
    assert set(obs["celltype"]) == {"CD4", "CD8", "Unassigned", ""}
    assert (obs["donor"] == "Unassigned").sum() == 2
    assert ((obs["nCount_RNA"] == 0) == (obs["donor"] == "")).all()
    assert (obs["ntc"] == (obs["target"] == "NTC")).all()
    assert obs["sgRNA"][obs["ntc"]].str.startswith("NO-TARGET-").all()
    assert set(obs["stim_celltype"]) == {
        "_",
        *(f"resting_{cell}" for cell in ("cd4", "cd8", "unassigned")),
        *(f"restimulated_{cell}" for cell in ("cd4", "cd8", "unassigned")),
    }


def test_the_simulation_is_seeded(raw):
    again = simulate_marson_raw(**SIZES)
    assert (again.X != raw.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs.astype(str), raw.obs.astype(str))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unassigned": 1.0}, r"unassigned=1.0 must be in \[0, 1\)"),
        ({"n_targets": 0}, "n_targets=0 must be at least 1"),
    ],
)
def test_the_simulation_refuses_sizes_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_marson_raw(**wrong)


def test_cells_without_a_label_are_dropped_or_named(raw):
    cells = raw.copy()
    cells.obs["stim"] = cells.obs["stim"].astype(object)
    cells.obs.iloc[3:60, cells.obs.columns.get_loc("stim")] = np.nan
    for protocol in ("published", "corrected"):
        prepared = prepare_marson(cells, protocol=protocol, **OPTIONS)
        assert prepared.obs["stimulation"].notna().all()
        assert "stimulation" in prepared.uns["preparation"]["n_cells"]
    cells = raw.copy()
    cells.obs["well"] = np.where(np.arange(len(cells)) % 2, "a", None)
    with pytest.raises(ValueError, match="cells have no well"):
        prepare_marson(cells, protocol="corrected", split_by="well", **OPTIONS)
