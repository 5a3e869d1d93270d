"""Plots of effects show the table's numbers and follow scanpy's conventions."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from scipy import stats

from scvci import pl

mpl.use("Agg")

UP, DOWN = to_rgba("#D55E00"), to_rgba("#0072B2")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def _effects(strata=("B cell", "T cell"), n_genes=60, seed=0, scale="log1p"):
    """A quarter of the genes has an effect; every tenth is skipped, the next has no interval."""
    rng = np.random.default_rng(seed)
    keys = pd.MultiIndex.from_product([["IFNb"], strata, [f"gene{i}" for i in range(n_genes)]])
    table = keys.to_frame(index=False, name=["treatment", "stratum", "gene"])
    table["reference"] = "control"
    error = rng.uniform(0.05, 0.2, len(table))
    effect = np.tile(rng.normal(0, 0.5, n_genes) * (np.arange(n_genes) % 4 == 0), len(strata))
    estimate = effect + error * rng.normal(size=len(table))
    table["estimate"], table["std_error"] = estimate, error
    table["ci_low"], table["ci_high"] = estimate - 1.96 * error, estimate + 1.96 * error
    table["p_value"] = 2 * stats.norm.sf(np.abs(estimate / error))
    table["estimator"], table["note"], table["leakage"] = "observed", "", False
    number = np.arange(len(table)) % 10
    uncertain = ["std_error", "ci_low", "ci_high", "p_value"]
    table.loc[number >= 8, uncertain] = np.nan
    table.loc[number == 9, ["estimate", "note"]] = [np.nan, "too few cells"]
    table["q_value"] = np.nan
    for _, rows in table[number < 8].groupby("stratum"):
        table.loc[rows.index, "q_value"] = stats.false_discovery_control(rows["p_value"])
    table.attrs |= {"scale": scale, "level": 0.95}
    return table


def _points(ax, mark_size):
    """Positions and colours of the markers of one size."""
    groups = [c for c in ax.collections if getattr(c, "get_sizes", list)() == [mark_size]]
    offsets = np.concatenate([np.asarray(g.get_offsets()) for g in groups])
    colors = [tuple(g.get_edgecolor()[0]) for g in groups for _ in g.get_offsets()]
    return pd.DataFrame({"x": offsets[:, 0], "y": offsets[:, 1], "color": colors})


def _segments(ax):
    lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    return np.concatenate([np.array(c.get_segments()) for c in lines])


def test_forest_draws_estimates_and_intervals(tmp_path):
    table = _effects()
    genes = [f"gene{i}" for i in (0, 1, 2, 3, 4, 8, 9)]
    axes = pl.forest(table, genes=genes, save=tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 0
    assert [text.get_text() for text in axes[0].get_yticklabels()] == genes
    assert [ax.get_title() for ax in axes] == ["B cell", "T cell"]
    assert axes[0].get_xlabel() == "effect on mean expression (log1p)\nwith 95 % intervals"
    for ax, stratum in zip(axes, ("B cell", "T cell"), strict=True):
        rows = table[table["stratum"] == stratum].set_index("gene").loc[genes]
        points = _points(ax, 22).sort_values("y")
        np.testing.assert_allclose(points["x"], rows["estimate"].dropna())
        found = rows["q_value"].to_numpy()[:-1] < 0.1
        sign = rows["estimate"].to_numpy()[:-1] > 0
        assert ((points["color"] == UP) == (found & sign)).all()
        assert ((points["color"] == DOWN) == (found & ~sign)).all()
        segments = _segments(ax)
        segments = segments[np.argsort(segments[:, 0, 1])]
        tested = rows.dropna(subset="p_value")
        np.testing.assert_allclose(segments[:, :, 0], tested[["ci_low", "ci_high"]])
        # Gene 9 was skipped: a cross in its row.
        assert _points(ax, 18)["y"].tolist() == [6]
    labels = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert {"q ≥ 0.1", "without interval", "not estimated"} <= set(labels)


def test_forest_chooses_the_smallest_p_values():
    table = _effects()
    axes = pl.forest(table, n_genes=5)
    shown = [text.get_text() for text in axes[0].get_yticklabels()]
    best = table.groupby("gene")["p_value"].min().nsmallest(5).index
    assert set(shown) == set(best)
    mean = table.groupby("gene")["estimate"].mean()
    assert shown == mean[best].sort_values(ascending=False).index.tolist()


def test_forest_of_estimates_without_any_p_value_chooses_the_largest():
    table = _effects(strata=["all"], scale="lfc")
    table[["std_error", "ci_low", "ci_high", "p_value", "q_value"]] = np.nan
    table.loc[table["gene"] == "gene0", "estimate"] = np.inf
    (ax,) = pl.forest(table, n_genes=3)
    finite = table[np.isfinite(table["estimate"])].set_index("gene")["estimate"]
    shown = {text.get_text() for text in ax.get_yticklabels()}
    assert shown == set(finite.abs().nlargest(3).index)
    assert ax.get_xlabel().startswith("log2 fold change of mean expression")


@pytest.mark.parametrize("plot", [pl.forest, pl.volcano])
def test_a_stratum_that_was_skipped_says_why(plot):
    table = _effects()
    skipped = table["stratum"] == "T cell"
    table.loc[skipped, "estimate":"p_value"] = np.nan
    table.loc[skipped, "q_value"] = np.nan
    table.loc[skipped, "note"] = "3 treated cells"
    axes = plot(table)
    assert "3 treated cells" in [text.get_text() for text in axes[1].texts]
    # All rows of the table: nothing but notes.
    plot(table[skipped])


@pytest.mark.parametrize("plot", [pl.forest, pl.volcano])
def test_what_to_draw_has_to_be_known(plot):
    table = _effects()
    both = pd.concat([table, table.assign(treatment="TNFa")])
    with pytest.raises(ValueError, match=r"2 of treatment.*'IFNb', 'TNFa'.*treatment="):
        plot(both)
    assert len(plot(both, treatment="TNFa")) == 2
    with pytest.raises(ValueError, match=r"'IFNg'.*Nearest.*'IFNb'"):
        plot(table, treatment="IFNg")
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="holds one stratum, not 2"):
        plot(table, ax=ax)
    axes = plot(table[table["stratum"] == "B cell"], ax=ax)
    assert axes[0] is ax
    assert ax.get_title() == "IFNb vs. control, B cell"


def test_forest_names_genes_it_does_not_know_or_that_are_ambiguous():
    with pytest.raises(ValueError, match=r"Gene 'gene99' is not in the table.*Nearest"):
        pl.forest(_effects(), genes=["gene1", "gene99"])
    twice = pd.concat([_effects(), _effects()])
    with pytest.raises(ValueError, match="several rows of one gene"):
        pl.forest(twice)


def test_plots_take_categories():
    table = _effects().astype(dict.fromkeys(["treatment", "stratum", "gene"], "category"))
    assert len(pl.forest(table, n_genes=5)) == 2
    assert len(pl.volcano(table)) == 2


def test_volcano_draws_tested_genes_by_sign(tmp_path):
    table = _effects()
    axes = pl.volcano(table, save=tmp_path / "v.png")
    assert (tmp_path / "v.png").stat().st_size > 0
    for ax, stratum in zip(axes, ("B cell", "T cell"), strict=True):
        rows = table[table["stratum"] == stratum]
        tested = rows.dropna(subset="p_value")
        points = _faces(ax)
        drawn = points.sort_values("x")
        expected = tested.sort_values("estimate")
        np.testing.assert_allclose(drawn["x"], expected["estimate"])
        np.testing.assert_allclose(drawn["y"], -np.log10(expected["p_value"]))
        found = expected["q_value"].to_numpy() < 0.1
        up, down = found & (expected["estimate"] > 0), found & (expected["estimate"] < 0)
        assert (drawn["color"] == UP[:3]).to_numpy().sum() == up.sum()
        assert (drawn["color"] == DOWN[:3]).to_numpy().sum() == down.sum()
        note = f"q < 0.1: {up.sum()} raised, {down.sum()} lowered\n12 without p-value"
        assert note in [text.get_text() for text in ax.texts]
    assert axes[0].get_ylabel() == "−log10 p-value"


def _faces(ax):
    """Positions and face colours of points of the volcano."""
    parts = [c for c in ax.collections if len(c.get_offsets())]
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in parts])
    colors = [tuple(c.get_facecolor()[0][:3]) for c in parts for _ in c.get_offsets()]
    return pd.DataFrame({"x": offsets[:, 0], "y": offsets[:, 1], "color": colors})


def test_volcano_puts_p_values_of_zero_at_the_upper_edge():
    table = _effects(strata=["all"])
    zero = table["gene"].isin(["gene0", "gene4"])
    table.loc[zero, ["p_value", "q_value"]] = 0.0
    (ax,) = pl.volcano(table, n_labels=2)
    points = _faces(ax)
    finite = -np.log10(table.loc[~zero, "p_value"].min())
    np.testing.assert_allclose(points["y"].nlargest(2), 1.08 * finite)
    assert {a.get_text() for a in _names(ax)} == {"gene0", "gene4"}


def _names(ax):
    return [child for child in ax.texts if isinstance(child, mpl.text.Annotation)]


@pytest.mark.parametrize("seed", range(3))
def test_names_of_genes_do_not_overlap(seed):
    table = _effects(n_genes=400, seed=seed)
    table["gene"] = table["gene"] + "-AC012345.1"
    axes = pl.volcano(table, n_labels=15)
    axes[0].figure.draw_without_rendering()
    for ax, stratum in zip(axes, ("B cell", "T cell"), strict=True):
        names = _names(ax)
        assert len(names) >= 8
        boxes = [Text.get_window_extent(name) for name in names]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i])
            assert ax.bbox.x0 - 1e-6 <= box.x0
            assert box.x1 <= ax.bbox.x1 + 1e-6
        best = table[table["stratum"] == stratum].nsmallest(15, "p_value")["gene"]
        assert {name.get_text() for name in names} <= set(best)


def test_volcano_of_one_stratum_and_of_an_unknown_one():
    axes = pl.volcano(_effects(), stratum="T cell")
    assert [ax.get_title() for ax in axes] == ["T cell"]
    with pytest.raises(ValueError, match=r"'T-cell' is not in the table.*Nearest.*'T cell'"):
        pl.volcano(_effects(), stratum="T-cell")


def test_many_strata_fill_a_grid():
    axes = pl.forest(_effects(strata=[f"stratum {i} | donor {i}" for i in range(6)]), n_genes=3)
    assert len(axes) == 6
    positions = {round(ax.get_position().y0, 3) for ax in axes}
    assert len(positions) == 2


def _leaks(n_genes=400, seed=0):
    rng = np.random.default_rng(seed)
    keys = pd.MultiIndex.from_product([["a", "b"], ["x", "y"], [f"g{i}" for i in range(n_genes)]])
    table = keys.to_frame(index=False, name=["treatment", "stratum", "gene"])
    z = rng.normal(size=len(table))
    table["std_error"] = 0.1
    table["statistic"] = 0.1 * z
    table["p_value"] = 2 * stats.norm.sf(np.abs(z))
    table["q_value"] = stats.false_discovery_control(table["p_value"])
    return table


def test_leakage_orders_z_scores_and_most_lie_in_the_band_without_leakage():
    shares = []
    for seed in range(4):
        table = _leaks(seed=seed)
        for ax, stratum in zip(pl.leakage(table), ("x", "y"), strict=True):
            rows = table[table["stratum"] == stratum]
            points = _faces(ax).iloc[-len(rows) :].sort_values("x")
            np.testing.assert_allclose(
                points["y"], np.sort(rows["statistic"] / rows["std_error"]), atol=1e-12
            )
            band = ax.collections[0].get_paths()[0].vertices
            half = len(points) + 1
            low = np.interp(points["x"], *band[1:half].T)
            high = np.interp(points["x"], *band[half + 1 : -1][::-1].T)
            shares.append(((low <= points["y"]) & (points["y"] <= high)).mean())
    assert np.mean(shares) > 0.85


def test_leakage_colours_and_names_flagged_genes():
    table = _leaks()
    leaky = (table["stratum"] == "y") & (table["gene"].isin(["g1", "g2"]))
    table.loc[leaky, ["statistic", "q_value"]] = [2.0, 1e-9]
    table.loc[table["gene"] == "g5", ["statistic", "std_error", "q_value"]] = np.nan
    x, y = pl.leakage(table, q_threshold=0.05, n_labels=3)
    notes = [ax.texts[0].get_text() for ax in (x, y)]
    assert notes == [
        "0 of 798 leak, q < 0.05\n2 not tested",
        "4 of 798 leak, q < 0.05\n2 not tested",
    ]
    names = {name.get_text() for name in _names(y)}
    assert len(names) == 3
    assert names <= {"g1 (a)", "g1 (b)", "g2 (a)", "g2 (b)"}
    assert (_faces(y)["color"] == UP[:3]).sum() == 4
    (one,) = pl.leakage(table, treatment="a", stratum="y", q_threshold=0.05)
    assert {name.get_text() for name in _names(one)} == {"g1", "g2"}
    with pytest.raises(ValueError, match=r"Treatment 'c' is not in the table"):
        pl.leakage(table, treatment="c")


def test_leakage_of_a_stratum_without_tests():
    table = _leaks()
    table.loc[table["stratum"] == "y", ["statistic", "std_error", "q_value"]] = np.nan
    axes = pl.leakage(table, q_threshold=0.05)
    assert axes[1].texts[0].get_text() == "0 of 0 leak, q < 0.05\n800 not tested"


def test_calibration_draws_curves_and_binomial_bands(tmp_path):
    table = pd.DataFrame(
        {
            "label": np.repeat(["stratum", "individual"], 3),
            "nominal": [0.5, 0.8, 0.9] * 2,
            "observed": [0.5, 0.81, 0.9, 0.4, 0.7, 0.85],
            "n": [200] * 3 + [50] * 3,
        }
    )
    ax = pl.interval_calibration(table, save=tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 0
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["stratum"].get_xydata(), table.iloc[:3, 1:3])
    np.testing.assert_allclose(lines["individual"].get_xydata(), table.iloc[3:, 1:3])
    bands = [c.get_paths()[0].vertices[:, 1] for c in ax.collections]
    for band, (share, n) in zip(bands, [((0.5, 0.9), 200), ((0.4, 0.85), 50)], strict=True):
        # Wilson's interval: where the score test of the share rejects at 5 %.
        for bound, s in ((band.min(), share[0]), (band.max(), share[1])):
            z = (round(s * n) / n - bound) / np.sqrt(bound * (1 - bound) / n)
            assert abs(z) == pytest.approx(1.96, abs=0.01)


def test_calibration_at_one_level_has_a_row_per_regime():
    table = pd.DataFrame({"regime": ["a", "b"], "level": 0.95, "found": [0.94, 0.6], "n": 500})
    _, ax = plt.subplots()
    drawn = pl.interval_calibration(
        table, nominal="level", observed="found", label="regime", ax=ax
    )
    assert drawn is ax
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [line.get_xdata()[0] for line in ax.lines] == [0.94, 0.6, 0.95]
    plain = pl.interval_calibration(table[["level", "found"]], nominal="level", observed="found")
    assert len(plain.lines) == 2


def test_calibration_of_wrong_columns():
    table = pd.DataFrame({"nominal": [0.9], "observed": [90.0]})
    with pytest.raises(ValueError, match="'observed' has values outside 0 to 1"):
        pl.interval_calibration(table)
    with pytest.raises(ValueError, match="no column 'coverage'.*'nominal'"):
        pl.interval_calibration(table, observed="coverage")


@pytest.fixture
def cells(rng):
    """Cells with an effect score, of which some are not scored, on an embedding."""
    score = rng.normal(0.5, 0.3, 200)
    score[:20] = np.nan
    obs = pd.DataFrame({"effect": score, "batch": "1"}, index=[str(i) for i in range(200)])
    return AnnData(np.zeros((200, 1)), obs=obs, obsm={"X_umap": rng.normal(size=(200, 2))})


def test_embedding_centres_colours_on_zero(cells, tmp_path):
    ax = pl.effect_embedding(cells, "effect", label="score (log1p)", save=tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 0
    points = ax.collections[-1]
    assert points.norm(0) == pytest.approx(0.5)
    limit = np.nanquantile(np.abs(cells.obs["effect"]), 0.99)
    assert (points.norm.vmin, points.norm.vmax) == pytest.approx((-limit, limit))
    assert points.colorbar.ax.get_ylabel() == "score (log1p)"
    _, given = plt.subplots()
    assert pl.effect_embedding(cells, "effect", vmin=-1, vmax=3, ax=given) is given
    norm = given.collections[-1].norm
    assert (norm.vmin, norm(0), norm.vmax) == (-1, 0.5, 3)


def test_embedding_of_cells_that_do_not_respond(cells):
    cells.obs["effect"] = 0.0
    assert pl.effect_embedding(cells, "effect").collections[-1].norm.vmax == 1
    cells.obs["effect"] = np.nan
    pl.effect_embedding(cells, "effect")


def test_embedding_of_missing_columns(cells):
    with pytest.raises(ValueError, match=r"'score'\] is missing.*'effect'"):
        pl.effect_embedding(cells, "score")
    with pytest.raises(ValueError, match=r"'batch'\] holds no numbers"):
        pl.effect_embedding(cells, "batch")
    with pytest.raises(ValueError, match="No embedding 'tsne'.*X_umap"):
        pl.effect_embedding(cells, "effect", basis="tsne")
