"""Rankings of genes have scanpy's shape, and scanpy's tables and plots read them."""

from __future__ import annotations

import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData, read_h5ad
from scipy import stats

from scvci import tl
from scvci.datasets import simulate_screen
from scvci.model import VCI
from scvci.tl import _ranking
from scvci.tl._ranking import rank_effects

mpl.use("Agg")

GENES = [f"gene{i}" for i in range(12)]
KEY = "rank_genes_counterfactual"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def adata(rng):
    """Cells of two strata and three treatments: counts, and their logarithms in ``X``."""
    obs = pd.DataFrame(
        {
            "treatment": pd.Categorical(np.repeat(["control", "a", "b"], 40)),
            "cell_type": pd.Categorical(np.tile(["B cell", "T cell"], 60)),
        },
        index=[f"cell{i}" for i in range(120)],
    )
    counts = rng.poisson(3, (120, 12)).astype(np.float32)
    var = pd.DataFrame(index=GENES)
    return AnnData(np.log1p(counts), obs=obs, var=var, layers={"counts": counts})


def _table(treatments, strata, scale="lfc", skipped=("gene3", "gene4"), seed=0):
    """Effects of every sign; skipped genes have no p-value."""
    rng = np.random.default_rng(seed)
    keys = pd.MultiIndex.from_product([treatments, strata, GENES])
    table = keys.to_frame(index=False, name=["treatment", "stratum", "gene"])
    table["reference"] = "control"
    table["estimate"] = rng.normal(size=len(table)) / (np.log(2) if scale == "lfc" else 1)
    table["std_error"] = rng.uniform(0.1, 0.5, len(table))
    table["estimator"] = "observed"
    table["p_value"] = 2 * stats.norm.sf(np.abs(table["estimate"] / table["std_error"]))
    none = table["gene"].isin(skipped)
    table.loc[none, ["estimate", "std_error", "p_value"]] = np.nan
    table["q_value"] = np.nan
    for _, rows in table[~none].groupby(["treatment", "stratum"]):
        table.loc[rows.index, "q_value"] = stats.false_discovery_control(rows["p_value"])
    table["mean_counterfactual"] = rng.uniform(0.5, 2, len(table))
    table["mean_factual"] = table["mean_counterfactual"] * rng.uniform(0.8, 1.2, len(table))
    table.attrs["scale"] = scale
    return table


def _model(adata, **arguments):
    """An untrained model."""
    layer = None if arguments.get("likelihood") == "normal" else "counts"
    VCI.setup_anndata(adata, layer=layer, categorical_covariate_keys=["cell_type"])
    return VCI(adata, seed=0, **arguments)


@pytest.fixture
def calls(monkeypatch):
    """Effects from :func:`_table` in place of estimates; what was asked for."""
    made = []

    def estimate(adata, treatment, *, reference=None, groupby=None, scale=None, **kwargs):
        scale = scale or "lfc"
        made.append({"adata": adata, "groupby": groupby, "scale": scale, **kwargs})
        warnings.warn("a column looks like clusters", UserWarning, stacklevel=2)
        treatments = [treatment] if isinstance(treatment, str) else treatment
        return _table(treatments, ["all"] if groupby is None else ["B cell", "T cell"], scale)

    monkeypatch.setattr(_ranking, "estimate_effects", estimate)
    return made


def _rank(model, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.rank_genes_counterfactual(model, *args, **kwargs)


@pytest.mark.usefixtures("calls")
def test_ranking_has_the_shape_of_scanpys(adata):
    _rank(_model(adata), ["a", "b"])
    sc.tl.rank_genes_groups(adata, "treatment", reference="control", groups=["a", "b"])
    ours, theirs = adata.uns[KEY], adata.uns["rank_genes_groups"]
    assert set(ours) == set(theirs)
    assert set(ours["params"]) == set(theirs["params"])
    assert ours["params"] | {"method": None, "layer": None} == theirs["params"] | {"method": None}
    for column in set(theirs) - {"params"}:
        assert type(ours[column]) is type(theirs[column])
        assert ours[column].dtype == theirs[column].dtype
        assert ours[column].shape == theirs[column].shape


@pytest.mark.usefixtures("calls")
def test_table_holds_the_effects_by_descending_score(adata):
    table = _rank(_model(adata), ["a", "b"])
    fold = _table(["a", "b"], ["all"], "lfc").set_index(["treatment", "gene"])["estimate"]
    for treatment in ("a", "b"):
        ranked = sc.get.rank_genes_groups_df(adata, treatment, key=KEY).set_index("names")
        rows = table[table["treatment"] == treatment].set_index("gene").loc[ranked.index]
        tested = rows["p_value"].notna().to_numpy()
        score = (rows["estimate"] / rows["std_error"]).to_numpy()
        np.testing.assert_allclose(ranked["scores"][tested], score[tested], rtol=1e-6)
        assert (np.diff(ranked["scores"]) <= 0).all()
        np.testing.assert_array_equal(ranked["pvals"], rows["p_value"])
        np.testing.assert_array_equal(ranked["pvals_adj"], rows["q_value"])
        np.testing.assert_allclose(
            ranked["logfoldchanges"], fold[treatment].loc[ranked.index].fillna(0), rtol=1e-6
        )


def test_genes_without_p_value_have_score_zero_between_both_ends():
    table = _table(["a"], ["all"])
    table.loc[table["gene"] == "gene7", ["std_error", "p_value", "q_value"]] = np.nan
    table.loc[table["gene"] == "gene5", ["estimate", "p_value", "q_value"]] = [0.0, 1.0, 1.0]
    ranked = pd.DataFrame({k: v["a"] for k, v in rank_effects(table, table, "treatment").items()})
    zero = ranked[ranked["scores"] == 0]
    # The tested one first, then the one that has an estimate, then the skipped ones.
    assert zero["names"].tolist() == ["gene5", "gene7", "gene3", "gene4"]
    assert zero["pvals"].notna().tolist() == [True, False, False, False]
    assert zero["pvals_adj"].notna().tolist() == [True, False, False, False]
    assert (zero["logfoldchanges"].iloc[2:] == 0).all()
    assert ranked["scores"].iloc[0] > 0 > ranked["scores"].iloc[-1]


def test_extrapolated_effects_come_by_their_estimates():
    table = _table(["a"], ["all"])
    table[["std_error", "p_value", "q_value"]] = np.nan
    ranked = rank_effects(table, table, "treatment")
    order = table.dropna(subset="estimate").sort_values("estimate", ascending=False)["gene"]
    assert ranked["names"]["a"].tolist() == [*order, "gene3", "gene4"]
    assert not ranked["scores"]["a"].any()


def test_a_gene_that_one_group_lacks_is_not_tested_there():
    table = _table(["a", "b"], ["all"])
    table = table[~((table["treatment"] == "b") & (table["gene"] == "gene0"))]
    ranked = rank_effects(table, table, "treatment")
    assert set(ranked["names"]["b"]) == set(GENES)
    assert np.isnan(ranked["pvals"]["b"][ranked["names"]["b"] == "gene0"])


def test_several_effects_of_a_gene_name_it():
    table = _table(["a"], ["B cell", "T cell"])
    with pytest.raises(ValueError, match="'gene0' has several effects of treatment 'a'"):
        rank_effects(table, table, "treatment")


def test_levels_are_the_groups_of_one_treatment(adata, calls):
    model = _model(adata)
    _rank(model, "a", groupby="cell_type", key_added="key", estimator="robust")
    assert adata.uns["key"]["params"]["groupby"] == "cell_type"
    assert adata.uns["key"]["params"]["method"] == "observed"
    assert adata.uns["key"]["names"].dtype.names == ("B cell", "T cell")
    assert [call["scale"] for call in calls] == ["lfc"]
    assert all(call["estimator"] == "robust" for call in calls)
    with pytest.raises(ValueError, match="Call once for each treatment"):
        _rank(model, ["a", "b"], groupby="cell_type")
    with pytest.raises(ValueError, match="must be one column"):
        _rank(model, "a", groupby=["cell_type", "donor"])


def test_p_values_and_fold_changes_are_of_one_scale(adata, calls):
    model = _model(adata)
    for scale, ratio in (("counts", np.asarray), ("log1p", np.expm1)):
        table = _rank(model, "a", scale=scale, key_added=scale).set_index("gene")
        ranked = sc.get.rank_genes_groups_df(adata, "a", key=scale).set_index("names")
        rows = table.loc[ranked.index]
        expected = np.log2(ratio(rows["mean_factual"]) / ratio(rows["mean_counterfactual"]))
        expected[rows["estimate"].isna()] = 0
        np.testing.assert_allclose(ranked["logfoldchanges"], expected, rtol=1e-5)
    assert [call["scale"] for call in calls] == ["counts", "log1p"]


def test_fold_changes_are_estimated_once_and_other_cells_are_passed_on(adata, calls):
    model, other = _model(adata), adata.copy()
    with pytest.warns(UserWarning, match="clusters") as record:
        tl.rank_genes_counterfactual(model, "a", scale="lfc", adata=other)
    assert len(record) == 1
    assert [call["scale"] for call in calls] == ["lfc"]
    assert calls[0]["adata"] is other
    assert calls[0]["model"] is model
    assert KEY in other.uns
    assert KEY not in adata.uns
    with pytest.warns(UserWarning, match="clusters") as record:
        tl.rank_genes_counterfactual(model, "a")
    assert len(record) == 1
    assert all(call["adata"] is adata for call in calls[1:])


@pytest.mark.usefixtures("calls")
def test_nothing_of_the_users_is_overwritten(adata):
    model = _model(adata)
    adata.uns["mine"] = {"names": 1}
    with pytest.raises(ValueError, match=r"uns\['mine'\] exists and was not written by scvci"):
        _rank(model, "a", key_added="mine")
    _rank(model, "a")
    _rank(model, ["a", "b"])
    assert adata.uns[KEY]["names"].dtype.names == ("a", "b")
    assert adata.uns["scvci"][KEY]["kind"] == "ranking"


def test_fold_changes_of_log_normalised_data_come_from_their_means(adata, calls):
    table = _rank(_model(adata, likelihood="normal"), "a", scale="log1p").set_index("gene")
    assert len(calls) == 1
    ranked = sc.get.rank_genes_groups_df(adata, "a", key=KEY).set_index("names")
    means = np.expm1(table.loc[ranked.index, ["mean_factual", "mean_counterfactual"]])
    expected = np.log2(means["mean_factual"] / means["mean_counterfactual"])
    expected[table.loc[ranked.index, "estimate"].isna()] = 0
    np.testing.assert_allclose(ranked["logfoldchanges"], expected, rtol=1e-4)


def test_fold_changes_are_finite():
    table = _table(["a"], ["all"])
    fold = _table(["a"], ["all"], "lfc", skipped=("gene3",))
    fold.loc[fold["gene"].isin(["gene0", "gene1"]), "estimate"] = [-np.inf, np.inf]
    ranked = rank_effects(table, fold, "treatment")
    values = pd.Series(ranked["logfoldchanges"]["a"], ranked["names"]["a"])
    largest = fold["estimate"][np.isfinite(fold["estimate"])].abs().max()
    np.testing.assert_allclose(values[["gene0", "gene1", "gene3"]], [-largest, largest, 0])


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("n_genes", [4, -4])
@pytest.mark.parametrize("plot", ["dotplot", "heatmap", "matrixplot", "stacked_violin"])
def test_scanpys_plots_draw_it(adata, plot, n_genes):
    _rank(_model(adata), ["a", "b"])
    draw = getattr(sc.pl, f"rank_genes_groups_{plot}")
    kwargs = {} if plot == "heatmap" else {"return_fig": True}
    result = draw(adata, n_genes=n_genes, key=KEY, show=False, dendrogram=False, **kwargs)
    if kwargs:
        names = adata.uns[KEY]["names"]
        part = slice(n_genes, None) if n_genes < 0 else slice(n_genes)
        assert list(result.var_names) == [*names["a"][part], *names["b"][part]]
        assert not {"gene3", "gene4"} & set(result.var_names)


@pytest.mark.usefixtures("calls")
def test_scanpys_ranking_plot_shows_finite_scores(adata):
    _rank(_model(adata), ["a", "b"])
    # All genes, so that those without a p-value are drawn too.
    axes = sc.pl.rank_genes_groups(adata, n_genes=len(GENES), key=KEY, show=False)
    for ax, treatment in zip(axes, ("a", "b"), strict=True):
        texts = [text.get_text() for text in ax.texts]
        assert texts == adata.uns[KEY]["names"][treatment].tolist()
        assert ax.get_title() == f"{treatment} vs. control"
    sc.pl.rank_genes_groups_violin(adata, groups=["a"], n_genes=3, key=KEY, show=False)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("values", ["scores", "logfoldchanges", "log10_pvals_adj"])
def test_dotplot_of_values(adata, values):
    model = _model(adata)
    _rank(model, "a", groupby="cell_type")
    var_names = ["gene0", "gene3"]
    dots = sc.pl.rank_genes_groups_dotplot(
        adata, var_names=var_names, values_to_plot=values, key=KEY, dendrogram=False,
        return_fig=True,
    )  # fmt: skip
    # A gene that is not tested has neither score nor fold change.
    np.testing.assert_allclose(dots.dot_color_df["gene3"], 0)
    assert (dots.dot_color_df["gene0"] != 0).all()
    _rank(model, ["a", "b"])
    treated = adata[adata.obs["treatment"] != "control"].copy()
    sc.pl.rank_genes_groups_dotplot(
        treated, n_genes=3, values_to_plot=values, key=KEY, dendrogram=False, return_fig=True
    )


@pytest.mark.usefixtures("calls")
def test_ranking_is_saved_with_the_data(adata, tmp_path):
    _rank(_model(adata), "a", groupby="cell_type")
    adata.write_h5ad(tmp_path / "ranked.h5ad")
    read = read_h5ad(tmp_path / "ranked.h5ad")
    for group in ("B cell", "T cell"):
        before, after = (sc.get.rank_genes_groups_df(a, group, key=KEY) for a in (adata, read))
        pd.testing.assert_frame_equal(before, after, check_dtype=False)


def _screen(**kwargs):
    return simulate_screen(n_cells=400, n_genes=12, n_strata=1, n_members=2, seed=0, **kwargs)


def _dosed():
    cells = _screen(doses=(0.1, 1.0))
    doses = "@" + cells.obs["dose"].astype(float).map("{:g}".format)
    labels = cells.obs["treatment"].astype(str)
    return cells, {"dose_key": "dose"}, labels + doses.where(labels != "control", "")


def _combined():
    cells = _screen(n_combinations=1)
    labels = cells.obs["treatment"].astype(str)
    cells.obs["treatment"] = labels.replace("drug_1+drug_2", "drug_2 + drug_1")
    return cells, {"separator": "+"}, labels


def _matrix():
    cells = _screen(n_combinations=1)
    labels = cells.obs.pop("treatment").astype(str)
    members = {m: labels.str.contains(m).astype(float) for m in ("drug_1", "drug_2")}
    cells.obsm["given"] = pd.DataFrame(members, index=cells.obs_names)
    return cells, {"treatment_key": "given"}, labels


def _numbers():
    cells = _screen()
    labels = cells.obs["treatment"].astype(str)
    numbers = labels.map({"control": 0, "drug_1": 1, "drug_2": 2})
    cells.obs["treatment"] = numbers.astype(int)
    return cells, {"control": "0"}, numbers.astype(str)


@pytest.mark.parametrize("data", [_dosed, _combined, _matrix, _numbers])
def test_labels_that_are_not_the_arms_get_a_column_of_arms(data):
    cells, setup, labels = data()
    VCI.setup_anndata(cells, layer="counts", **setup)
    before = set(cells.obs)
    model = VCI(cells, seed=0)
    tl.rank_genes_counterfactual(model, key_added="key")
    assert set(cells.obs) - before == {"key_arm"}
    assert cells.uns["key"]["params"]["groupby"] == "key_arm"
    assert cells.obs["key_arm"].tolist() == labels.tolist()
    assert cells.obs["key_arm"].cat.categories.tolist() == model.treatments
    ranked = sc.get.rank_genes_groups_df(cells, None, key="key")
    assert ranked["group"].unique().tolist() == model.treatments[1:]
    cells.X = cells.layers["counts"]
    plot = sc.pl.rank_genes_groups_matrixplot(
        cells, n_genes=3, key="key", show=False, dendrogram=False, return_fig=True
    )
    assert plot.values_df.index.tolist() == model.treatments
    gene = plot.var_names[0]
    means = pd.Series(cells[:, gene].X.toarray()[:, 0]).groupby(labels.to_numpy()).mean()
    np.testing.assert_allclose(plot.values_df.iloc[:, 0], means[model.treatments], rtol=1e-5)


def test_only_other_cells_get_the_column_that_they_need():
    cells, setup, _ = _dosed()
    VCI.setup_anndata(cells, layer="counts", **setup)
    model, some = VCI(cells, seed=0), ["drug_2@0.1", "drug_2@1"]
    treated = cells.obs["treatment"].isin(["control", "drug_2"])
    other = cells[treated].copy()
    tl.rank_genes_counterfactual(model, some, adata=other)
    assert other.obs[f"{KEY}_arm"].cat.categories.tolist() == ["control", *some]
    assert f"{KEY}_arm" not in cells.obs


@pytest.mark.parametrize("separator", [None, "+"])
def test_labels_that_are_the_arms_need_no_column(separator):
    cells = _screen(n_combinations=1)
    VCI.setup_anndata(cells, layer="counts", separator=separator)
    before = cells.obs.copy()
    tl.rank_genes_counterfactual(VCI(cells, seed=0))
    assert cells.uns[KEY]["params"]["groupby"] == "treatment"
    pd.testing.assert_frame_equal(cells.obs, before)
