"""Each step of the preparation of sci-Plex 3, against another computation of its rule."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.model_selection import train_test_split

from scvci.datasets import CellFilter, prepare_sciplex, simulate_sciplex_raw
from scvci.datasets._preparation import (
    Steps,
    filter_cells,
    highly_variable,
    largest_differences,
    measure,
    mitochondrial,
    unbiased_effects,
)
from scvci.datasets._raw_cells import RawCells
from scvci.model import VCI

SIZES = {"n_cells": 2000, "n_genes": 300, "n_drugs": 5, "n_strong": 2, "n_chunks": 3, "depth": 600}
FILTER = CellFilter(min_counts=150, min_genes=120, max_mitochondrial=0.2)
OPTIONS = {"cell_filter": FILTER, "n_genes": 50, "n_ood": 2}


@pytest.fixture(scope="module")
def chunks():
    return simulate_sciplex_raw(**SIZES)


@pytest.fixture(scope="module")
def paths(chunks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sciplex")
    names = [folder / f"sciplex_raw_chunk_{i}.h5ad" for i in range(len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        chunk.write_h5ad(name)
    return names


@pytest.fixture(scope="module")
def published(paths):
    return prepare_sciplex(paths, **OPTIONS)


@pytest.fixture(scope="module")
def corrected(chunks):
    return prepare_sciplex(chunks, **OPTIONS, protocol="corrected")


def _by_hand(chunks):
    """The published rules on dense arrays, with scanpy where they name it."""
    raw = ad.concat(chunks)
    counts = raw.X.toarray()
    total, detected = counts.sum(1), (counts > 0).sum(1)
    with np.errstate(invalid="ignore"):
        share = counts[:, raw.var_names.str.contains("MT-")].sum(1) / total
    raw.obs["share"] = share
    raw = raw[total > 150]
    raw = raw[(raw.X > 0).sum(1).A1 > 120]
    raw = raw[raw.obs["share"] < 0.2].copy()
    n = {
        "filtered": raw.n_obs,
        "first": [(total > 150).sum(), ((total > 150) & (detected > 120)).sum()],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.subsample(raw, fraction=0.5, random_state=0)
    raw.layers["counts"] = raw.X.copy()
    raw.X = raw.X.toarray().astype(np.float64)
    sc.pp.normalize_total(raw)
    sc.pp.log1p(raw)
    sc.pp.highly_variable_genes(raw, n_top_genes=50, subset=True)
    product = raw.obs["product_name"].astype(str).to_numpy()
    values = raw.X
    norms = {
        p: np.linalg.norm(values[product == p].mean(0) - values[product != p].mean(0))
        for p in set(product) - {"Vehicle"}
    }
    ood = sorted(norms, key=norms.get)[-2:]
    split = np.full(raw.n_obs, "ood", dtype=object)
    rest = np.flatnonzero(~((raw.obs["cell_type"] == "MCF7") & np.isin(product, ood)))
    train, test = train_test_split(rest, test_size=0.2, random_state=42)
    split[train], split[test] = "train", "test"
    return raw, norms, ood[::-1], split, n


def test_published_protocol_is_what_its_rules_give(chunks, published):
    expected, norms, ood, split, n = _by_hand(chunks)
    assert list(published.obs_names) == list(expected.obs_names)
    assert list(published.var_names) == list(expected.var_names)
    np.testing.assert_allclose(published.X.toarray(), expected.X, rtol=1e-5)
    assert (published.layers["counts"] != expected.layers["counts"]).nnz == 0
    np.testing.assert_array_equal(published.obs["split"].astype(str), split)
    record = published.uns["preparation"]
    assert record["ood_treatments"] == [name.split(" ")[0] for name in ood]
    assert record["n_cells"] == {
        "raw": 2000,
        "counts": n["first"][0],
        "genes": n["first"][1],
        "mitochondrial": n["filtered"],
        "subsample": n["filtered"] // 2,
        "assigned": n["filtered"] // 2,
    }
    assert sum(record["n_split"].values()) == published.n_obs
    effects = record["effects"].set_index("treatment")["effect"]
    for product, norm in norms.items():
        np.testing.assert_allclose(effects[product.split(" ")[0]], norm, rtol=1e-5)


def test_strong_drugs_are_held_out_of_one_cell_type(chunks, published):
    obs = published.obs
    strong = chunks[0].uns["simulation"]["strong"]
    assert set(published.uns["preparation"]["ood_treatments"]) == set(strong)
    is_ood = (obs["cell_type"] == "MCF7") & obs["treatment"].isin(strong)
    np.testing.assert_array_equal(obs["split"] == "ood", is_ood)
    assert abs((obs["split"] == "test").sum() / (~is_ood).sum() - 0.2) < 0.01


def test_names_and_doses(published):
    obs = published.obs
    drugs = {"(+)-JQ1", "Patupilone", "Quisinostat", "Dasatinib", "Enzastaurin"}
    assert set(obs["treatment"]) == {"Vehicle", *drugs}
    treated = obs["treatment"] != "Vehicle"
    assert (obs.loc[~treated, "dose"] == 0).all()
    np.testing.assert_allclose(obs["dose"][treated], obs["dose_nM"][treated] / 10_000)
    assert set(obs["dose"][treated].round(6)) == {0.001, 0.01, 0.1, 1.0}
    assert (
        obs["product_name"][obs["treatment"] == "Enzastaurin"] == "Enzastaurin (LY317615)"
    ).all()


def test_prepared_data_can_be_set_up_and_saved(published, tmp_path):
    published.write_h5ad(tmp_path / "prepared.h5ad")
    adata = ad.read_h5ad(tmp_path / "prepared.h5ad")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have no cells")
        VCI.setup_anndata(
            adata,
            layer="counts",
            control=adata.uns["preparation"]["control"],
            dose_key="dose",
            categorical_covariate_keys=["cell_type", "replicate"],
        )
        model = VCI(adata)
    assert model.control == "Vehicle"
    assert {"(+)-JQ1@0.001", "(+)-JQ1@1"} <= set(model.treatments)
    assert len(model.treatments) == 1 + 5 * 4
    assert len(model.strata) == 6


# -- the ways in which raw cells can come ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["in memory", "one file", "columns", "dense", "small blocks"])
def test_any_form_of_the_raw_cells_gives_the_same(kind, chunks, published, tmp_path, monkeypatch):
    raw = chunks
    if kind == "small blocks":
        monkeypatch.setattr("scvci.datasets._raw_cells._BLOCK", 97)
    elif kind != "in memory":
        whole = ad.concat(chunks, merge="same")
        whole.obs.index.name = whole.var.index.name = "index"
        if kind != "one file":
            whole.X = whole.X.tocsc() if kind == "columns" else whole.X.toarray()
        raw = str(tmp_path / "raw.h5ad")
        whole.write_h5ad(raw)
    adata = prepare_sciplex(raw, **OPTIONS)
    assert (adata.X != published.X).nnz == 0
    assert (adata.layers["counts"] != published.layers["counts"]).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, published.obs)
    assert list(adata.var_names) == list(published.var_names)


def test_genes_of_one_symbol_stay_apart(chunks):
    renamed = [chunk.copy() for chunk in chunks]
    for chunk in renamed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = chunk.var_names.to_numpy().copy()
            names[20:24] = "Y_RNA"
            chunk.var_names = names
    adata = prepare_sciplex(renamed, **OPTIONS | {"n_genes": 300})
    assert {"Y_RNA", "Y_RNA-1", "Y_RNA-2", "Y_RNA-3"} <= set(adata.var_names)


# -- single steps ---------------------------------------------------------------------------------


def test_filters_at_their_bounds():
    """Bounds are exclusive: 4 counts, 2 genes, a share of one half."""
    counts = np.array([
        [4, 0, 0], [1, 1, 2], [0, 3, 2], [0, 2, 3], [1, 3, 1], [2, 2, 1], [3, 1, 1], [0, 0, 0],
    ], dtype=np.float32)  # fmt: skip
    cells = ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(index=list("abcdefgh")),
        var=pd.DataFrame(index=["MT-ND1", "A", "B"]),
    )
    with RawCells(cells, []) as raw:
        table = measure(raw, mitochondrial(cells.var_names, "published"))
    np.testing.assert_array_equal(table["n_counts"], counts.sum(1))
    np.testing.assert_array_equal(table["n_genes"], [1, 3, 2, 2, 3, 3, 3, 0])
    np.testing.assert_allclose(table["mt_frac"], [1, 0.25, 0, 0, 0.2, 0.4, 0.6, np.nan])
    steps = Steps()
    kept = filter_cells(table, CellFilter(4, 2, 0.4), steps)
    assert list(kept.index) == ["e"]
    assert steps.n_cells == {"counts": 5, "genes": 3, "mitochondrial": 1}
    every = filter_cells(table[table["n_genes"] > 0], CellFilter(0, 0, 1.0), Steps())
    assert len(every) == 7


def test_mitochondrial_genes_by_substring_and_by_prefix():
    genes = pd.Index(["MT-ND1", "COMT-AS1", "MTOR", "mt-Nd1"])
    assert list(mitochondrial(genes, "published")) == [True, True, False, False]
    assert list(mitochondrial(genes, "corrected")) == [True, False, False, False]


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
@pytest.mark.parametrize("n_genes", [10, 100, 1000])
def test_variable_genes_are_scanpys(flavor, n_genes):
    rng = np.random.default_rng(1)
    rates = rng.lognormal(-1, 1.5, 300) * rng.gamma(1, size=(200, 300)) ** rng.uniform(0, 1, 300)
    counts = rng.poisson(rates).astype(float)
    counts[:, 5] = 0
    counts[:, 6] = 60 + rng.poisson(5, 200)  # alone in its bin
    normalised = counts * np.median(counts.sum(1)) / counts.sum(1, keepdims=True)
    log = np.log1p(normalised)
    values = normalised if flavor == "seurat" else log
    adata = ad.AnnData(log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, flavor=flavor)
    chosen = highly_variable(values.mean(0), values.var(0, ddof=1), n_genes, flavor)
    np.testing.assert_array_equal(chosen, adata.var["highly_variable"])


def test_the_published_rank_favours_small_groups_and_the_corrected_does_not():
    """Without any effect, ranks follow noise in one and are centred at zero in the other."""
    rng = np.random.default_rng(2)
    treatment = pd.Series(np.repeat(["control", "few", "many", "true"], [200, 8, 300, 8]))
    stratum = rng.integers(2, size=len(treatment))
    shift = np.zeros((len(treatment), 50))
    shift[treatment == "true", :10] = 0.8
    published, corrected = [], []
    for _ in range(100):
        values = sparse.csr_matrix(rng.normal(size=shift.shape) + stratum[:, None] + shift)
        published.append(largest_differences(values, treatment))
        corrected.append(unbiased_effects(values, treatment, stratum, "control"))
    published, corrected = pd.DataFrame(published), pd.DataFrame(corrected)
    assert (published["few"] > published["many"]).all()
    error = corrected.std() / np.sqrt(len(corrected))
    expected = {"few": 0, "many": 0, "true": 10 * 0.8**2}
    for name, value in expected.items():
        assert abs(corrected[name].mean() - value) < 3.5 * error[name], name


def test_strata_without_enough_cells_do_not_count():
    treatment = pd.Series(["control", "control", "a", "a", "control", "a", "a", "b"])
    stratum = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    values = sparse.csr_matrix(np.array([[1.0, 3, 4, 8, 100, 0, 0, 5]]).T)
    effects = unbiased_effects(values, treatment, stratum, "control")
    # Means 2 and 6, variances 2 and 8, two cells each; stratum 1 has one control, b one cell.
    assert effects.to_dict() == {"a": 16 - 2 / 2 - 8 / 2}


# -- the corrected protocol -----------------------------------------------------------------------


def test_nothing_is_learned_from_cells_that_are_not_for_training(chunks, corrected):
    """Test cells, and all treated cells of the held-out context, can hold anything."""
    changed = [chunk.copy() for chunk in chunks]
    obs = corrected.obs
    hidden = (obs["split"] == "test") | (
        (obs["cell_type"] == "MCF7") & (obs["treatment"] != "Vehicle")
    )
    rng = np.random.default_rng(0)
    for chunk in changed:
        rows = chunk.obs_names.isin(obs.index[hidden])
        counts = chunk.X.toarray()
        # Still of good quality: genes change places, mitochondrial ones do not.
        counts[np.ix_(rows, np.arange(14, 300))] = (
            3 * counts[rows][:, rng.permutation(np.arange(14, 300))]
        )
        chunk.X = sparse.csr_matrix(counts)
    again = prepare_sciplex(changed, **OPTIONS, protocol="corrected")
    assert (again.layers["counts"] != corrected.layers["counts"]).nnz > 0
    assert list(again.var_names) == list(corrected.var_names)
    assert list(again.obs["split"]) == list(obs["split"])
    first, second = corrected.uns["preparation"], again.uns["preparation"]
    assert first["target_sum"] == second["target_sum"]
    pd.testing.assert_frame_equal(first["effects"], second["effects"])
    published = [prepare_sciplex(raw, **OPTIONS) for raw in (chunks, changed)]
    assert list(published[0].var_names) != list(published[1].var_names)


def test_the_corrected_effects_are_those_of_training_cells_elsewhere(corrected):
    obs = corrected.obs
    rows = ((obs["split"] == "train") & (obs["cell_type"] != "MCF7")).to_numpy()
    stratum = obs["cell_type"].astype(str) + obs["replicate"].astype(str)
    expected = unbiased_effects(
        corrected.X[rows], obs["treatment"][rows], pd.factorize(stratum[rows])[0], "Vehicle"
    )
    effects = corrected.uns["preparation"]["effects"].set_index("treatment")["effect"]
    enough = obs["treatment"][rows].value_counts() >= 30
    assert set(effects.index) == {name for name in expected.index if enough[name]}
    np.testing.assert_allclose(effects, expected[effects.index])
    assert effects.is_monotonic_decreasing


def test_groups_are_not_split(chunks):
    grouped = [chunk.copy() for chunk in chunks]
    for chunk in grouped:
        chunk.obs["well"] = [name[:3] for name in chunk.obs_names]
    options = {**OPTIONS, "fraction": 1.0}
    adata = prepare_sciplex(grouped, **options, protocol="corrected", split_by="well")
    obs = adata.obs[adata.obs["split"] != "ood"]
    assert (obs.groupby("well", observed=True)["split"].nunique() == 1).all()
    assert set(obs["split"]) == {"train", "test"}
    assert adata.uns["preparation"]["split_by"] == "well"


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_drugs_that_are_named_are_held_out(chunks, protocol):
    names = ["Enzastaurin", "(+)-JQ1"]
    adata = prepare_sciplex(
        chunks, **OPTIONS, protocol=protocol, ood_treatments=names, ood_cell_type="K562"
    )
    obs = adata.obs
    is_ood = (obs["cell_type"] == "K562") & obs["treatment"].isin(names)
    np.testing.assert_array_equal(obs["split"] == "ood", is_ood)
    assert adata.uns["preparation"]["ood_treatments"] == names


# -- bad input ------------------------------------------------------------------------------------


def _with(chunks, **columns):
    changed = [chunk.copy() for chunk in chunks]
    for chunk in changed:
        for name, value in columns.items():
            chunk.obs[name] = value
    return changed


def _without(chunks, rule):
    return [chunk[rule(chunk.obs)].copy() for chunk in chunks if rule(chunk.obs).any()]


def _with_value(chunks, value):
    first = chunks[0].copy()
    first.X.data[0] = value
    return [first, *chunks[1:]]


def _lone_zero_dose(chunks):
    first = chunks[0].copy()
    first.obs["dose"] = np.where(first.obs["product_name"] == "Dasatinib", 0, first.obs["dose"])
    return [first, *chunks[1:]]


BAD = {
    "column": (
        lambda chunks: [
            ad.AnnData(c.X, obs=c.obs.rename(columns={"product_name": "product"}), var=c.var)
            for c in chunks
        ],
        {},
        KeyError,
        r"chunk 0 has no 'product_name'\. Nearest to 'product_name': 'product_dose', 'product'\.",
    ),
    "vehicle": (
        lambda chunks: _without(chunks, lambda obs: obs["product_name"] != "Vehicle"),
        {},
        ValueError,
        r"control 'Vehicle' is no treatment.*Known: '\(\+\)-JQ1'",
    ),
    "negative": (
        lambda chunks: _with_value(chunks, -1),
        {},
        ValueError,
        r"X of cell '.*' holds -1 for gene '.*'; raw counts are whole",
    ),
    "fraction of a count": (
        lambda chunks: _with_value(chunks, 0.5),
        {},
        ValueError,
        "holds 0.5 for gene",
    ),
    "nan": (lambda chunks: _with_value(chunks, np.nan), {}, ValueError, "holds nan for gene"),
    "twice": (
        lambda chunks: [chunks[0], chunks[1], chunks[0]],
        {},
        ValueError,
        r"\d+ names of cells occur more than once in raw, such as '.*'. Give each chunk once",
    ),
    "genes": (
        lambda chunks: [chunks[0], chunks[1][:, ::-1].copy()],
        {},
        ValueError,
        "Genes of chunk 1 are not those of chunk 0",
    ),
    "context": (
        lambda chunks: _without(chunks, lambda obs: obs["cell_type"] != "MCF7"),
        {},
        ValueError,
        r"No cell is of \{'cell_type': 'MCF7'\}.*Found: \{'cell_type': \['A549', 'K562'\]\}",
    ),
    "one stratum": (
        lambda chunks: _without(
            chunks, lambda obs: (obs["cell_type"] == "MCF7") & (obs["replicate"] == "rep1")
        ),
        {},
        ValueError,
        "has no cell elsewhere to learn from. Prepare more strata",
    ),
    "one stratum, corrected": (
        lambda chunks: _without(
            chunks, lambda obs: (obs["cell_type"] == "MCF7") & (obs["replicate"] == "rep1")
        ),
        {"protocol": "corrected"},
        ValueError,
        r"No training cell is outside \{'cell_type': 'MCF7'\}",
    ),
    "dose": (
        _lone_zero_dose,
        {"fraction": 1.0},
        ValueError,
        "of 'Dasatinib' has the dose 0.0; a treated cell needs one above 0",
    ),
    "label": (
        lambda chunks: _with(chunks, cell_type=None),
        {},
        ValueError,
        "has no cell_type; fill it in",
    ),
    "nothing": (lambda chunks: [], {}, ValueError, "raw is empty"),
    "no file": (lambda chunks: "nowhere.h5ad", {}, FileNotFoundError, "no file 'nowhere.h5ad'"),
    "quality": (
        lambda chunks: chunks,
        {"cell_filter": CellFilter(min_genes=5000)},
        ValueError,
        r"No cell is left after 'genes' \(2000 after 'raw', \d+ after 'counts'\)",
    ),
    "protocol": (
        lambda chunks: chunks,
        {"protocol": "paper"},
        ValueError,
        "protocol='paper' must be 'published'",
    ),
    "groups": (
        lambda chunks: chunks,
        {"split_by": "replicate"},
        ValueError,
        "split_by='replicate', but the published split",
    ),
    "one group": (
        lambda chunks: _with(chunks, plate="a"),
        {"split_by": "plate", "protocol": "corrected"},
        ValueError,
        "All cells have plate='a'; split_by needs at least two groups",
    ),
    "too many": (
        lambda chunks: chunks,
        {"n_ood": 6},
        ValueError,
        "n_ood=6, but 5 treatments can be held out",
    ),
    "unknown drug": (
        lambda chunks: chunks,
        {"ood_treatments": ["Dasatinob"]},
        ValueError,
        "ood_treatments 'Dasatinob' is no treatment. Nearest: 'Dasatinib'",
    ),
    "one drug": (
        lambda chunks: chunks,
        {"ood_treatments": "Dasatinib"},
        ValueError,
        r"is one name; give a list: \['Dasatinib'\]",
    ),
    "no drug": (lambda chunks: chunks, {"ood_treatments": []}, ValueError, "is empty; name one"),
    "share": (lambda chunks: chunks, {"fraction": 0}, ValueError, "fraction=0 must be in"),
    "number": (lambda chunks: chunks, {"n_genes": 0}, ValueError, "n_genes=0 must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(chunks, case):
    change, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        prepare_sciplex(change(chunks), **OPTIONS | options)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_counts": -1}, "min_counts=-1 must be at least 0"),
        ({"max_mitochondrial": 0}, r"max_mitochondrial=0 must be in \(0, 1\]"),
    ],
)
def test_bad_bounds_are_named(bounds, message):
    with pytest.raises(ValueError, match=message):
        CellFilter(**bounds)


def test_products_that_share_their_first_word_are_told(chunks):
    renamed = _with(chunks)
    for chunk in renamed:
        chunk.obs["product_name"] = chunk.obs["product_name"].cat.rename_categories(
            {"Dasatinib": "Enzastaurin HCl"}
        )
    with pytest.warns(
        UserWarning, match=r"'Enzastaurin': Enzastaurin \(LY317615\), Enzastaurin HCl"
    ):
        adata = prepare_sciplex(renamed, **OPTIONS)
    assert "Dasatinib" not in set(adata.obs["treatment"])


# -- the simulation -------------------------------------------------------------------------------


def test_simulated_chunks_have_the_form_of_the_real_ones(chunks):
    assert [chunk.n_obs for chunk in chunks] == [667, 667, 666]
    for chunk in chunks:
        assert list(chunk.obs) == [
            "cell_type", "dose", "dose_character", "dose_pattern", "g1s_score", "g2m_score",
            "pathway", "pathway_level_1", "pathway_level_2", "product_dose", "product_name",
            "proliferation_index", "replicate", "size_factor", "target", "vehicle",
        ]  # fmt: skip
        assert chunk.X.format == "csr"
        assert chunk.X.dtype == np.float32
    obs = pd.concat([chunk.obs for chunk in chunks])
    assert obs.index.is_unique
    assert set(zip(obs["cell_type"], obs["replicate"], strict=True)) == {
        (line, rep) for line in ("A549", "MCF7", "K562") for rep in ("rep1", "rep2")
    }
    assert set(obs["dose"][obs["vehicle"] == 0]) == {10, 100, 1000, 10_000}
    assert (obs["dose"][obs["vehicle"] == 1] == 0).all()
    totals = np.concatenate([chunk.X.sum(axis=1).A1 for chunk in chunks])
    assert (totals == 0).any()
    # Of good quality: 70 %, of shallow cells 0.6 × 30 %.
    assert abs((totals > 150).mean() - 0.8) < 0.04


def test_simulated_counts_do_not_depend_on_how_they_are_drawn(monkeypatch):
    """Molecule by molecule and gene by gene: the same law."""
    sizes = {"n_cells": 1500, "n_genes": 40, "n_drugs": 1, "n_chunks": 1, "n_strong": 1}
    means = []
    for dense in (0.0, np.inf):
        monkeypatch.setattr("scvci.datasets._simulate_raw._DENSE", dense)
        counts = simulate_sciplex_raw(**sizes, depth=200, low_quality=0)[0].X.toarray()
        assert abs(np.median(counts.sum(1)) - 200) < 8
        means.append((counts.mean(0), counts.std(0) / np.sqrt(1500)))
    (first, error), (second, _) = means
    assert (np.abs(first - second) < 5 * error).all()


def test_simulation_is_seeded(chunks):
    again = simulate_sciplex_raw(**SIZES)
    other = simulate_sciplex_raw(**SIZES, seed=1)
    assert (again[0].X != chunks[0].X).nnz == 0
    assert again[0].obs.equals(chunks[0].obs)
    assert (other[0].X != chunks[0].X).nnz > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_genes": 15}, "n_genes=15 must be at least 26"),
        ({"n_strong": 13}, "n_strong=13 must be from 0 to n_drugs=12"),
        ({"n_chunks": 0}, "n_chunks=0 must be from 1 to n_cells=6000"),
        ({"low_quality": 1}, r"low_quality=1 must be in \[0, 1\)"),
        ({"n_drugs": 0}, "n_drugs=0 must be at least 1"),
    ],
)
def test_simulation_refuses_sizes_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_sciplex_raw(**wrong)
