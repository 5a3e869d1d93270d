"""Plots show the right quantities and follow scanpy's conventions."""

from __future__ import annotations

import inspect

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvci import pl
from scvci.model import VCI

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_training_curves_draw_the_history(trained, tmp_path):
    model, _ = trained
    axes = pl.training_curves(model, save=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
    drawn = axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, model.history["individual_train"].to_numpy(float).ravel())


def test_training_curves_of_an_untrained_model(adata):
    VCI.setup_anndata(adata)
    with pytest.raises(ValueError, match="train()"):
        pl.training_curves(VCI(adata))


def test_shift_shows_three_kinds_and_leaves_the_data_alone(trained):
    model, data = trained
    before = list(data.layers)
    _, ax = plt.subplots()
    assert pl.counterfactual_shift(model, "IFNb", max_cells=40, ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP1", "UMAP2")
    ax.figure.draw_without_rendering()
    label, legend = ax.xaxis.label.get_window_extent(), ax.get_legend().get_window_extent()
    assert not label.overlaps(legend)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["control", "control, had it received IFNb", "received IFNb"]
    assert list(data.layers) == before
    with pytest.raises(ValueError, match="'IFNX'"):
        pl.counterfactual_shift(model, "IFNX")
    with pytest.raises(ValueError, match="no cells of the control"):
        pl.counterfactual_shift(model, "IFNb", adata=data[data.obs["treatment"] == "IFNb"])


def test_training_curves_of_some_terms(trained):
    model, _ = trained
    _, ax = plt.subplots()
    (drawn,) = pl.training_curves(model, "loss", ax=ax)
    assert drawn is ax
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), model.history["train_loss"].to_numpy(float).ravel()
    )
    with pytest.raises(ValueError, match="holds one term, not 4"):
        pl.training_curves(model, ax=ax)
    with pytest.raises(ValueError, match="'kl' must be of.*'divergence'"):
        pl.training_curves(model, "kl")


def _pairs(pairs=("seen", "held out")):
    return pd.DataFrame(
        {
            "treatment": "a",
            "stratum": ["x", "x", "y", "y"],
            "pair": np.repeat(pairs, 2),
            "observed": [0.0, 1.0, 2.0, 3.0],
            "predicted": [0.1, 0.9, 2.1, 2.9],
        }
    )


def test_effect_scatter_separates_held_out_pairs():
    axes = pl.effect_scatter(_pairs())
    assert [ax.get_title() for ax in axes] == ["x", "y"]
    seen, held_out = (ax.collections[0] for ax in axes)
    np.testing.assert_allclose(seen.get_offsets(), [[0, 0.1], [1, 0.9]])
    np.testing.assert_allclose(held_out.get_offsets(), [[2, 2.1], [3, 2.9]])
    assert tuple(seen.get_facecolor()[0][:3]) == mpl.colors.to_rgb("#0072B2")
    assert tuple(held_out.get_facecolor()[0][:3]) == mpl.colors.to_rgb("#D55E00")
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["seen", "held out"]


@pytest.mark.parametrize(
    "table", [_pairs(("seen", "seen")), _pairs().drop(columns="pair"), _pairs()[:2]]
)
def test_effect_scatter_without_held_out_pairs_has_no_legend(table):
    axes = pl.effect_scatter(table)
    assert not axes[0].figure.legends
    assert axes[0].get_legend() is None


def test_effect_scatter_in_given_axes():
    _, ax = plt.subplots()
    (drawn,) = pl.effect_scatter(_pairs(), "y", ax=ax)
    assert drawn is ax
    assert ax.get_title() == "a, y"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["held out"]
    with pytest.raises(ValueError, match="Stratum 'z' is not in the table"):
        pl.effect_scatter(_pairs(), "z")
    with pytest.raises(ValueError, match="holds one stratum, not 2"):
        pl.effect_scatter(_pairs(), ax=ax)


def test_ticks_of_effect_scatter_do_not_overlap():
    table = _pairs()
    table["observed"] *= 0.0123
    figure = pl.effect_scatter(table, return_fig=True)
    figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        places, names = ax.get_xticks(), ax.get_xticklabels()
        boxes = [
            name.get_window_extent()
            for place, name in zip(places, names, strict=True)
            if low <= place <= high
        ]
        assert len(boxes) >= 2
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_figures_are_shown_in_interactive_sessions(monkeypatch, tmp_path):
    """Not if they are saved, returned or the user's own; what is shown is not returned."""
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    monkeypatch.setattr(plt, "isinteractive", lambda: True)
    _, ax = plt.subplots()
    assert isinstance(pl.effect_scatter(_pairs(), return_fig=True), mpl.figure.Figure)
    assert pl.effect_scatter(_pairs(), "x", ax=ax)[0] is ax
    assert len(pl.effect_scatter(_pairs(), save=tmp_path / "s.png")) == 2
    assert len(pl.effect_scatter(_pairs(), show=False)) == 2
    assert not shown
    assert pl.effect_scatter(_pairs()) is None
    assert pl.effect_scatter(_pairs(), "x", ax=ax, show=True) is None
    assert len(shown) == 2


@pytest.mark.parametrize("name", pl.__all__)
def test_every_plot_has_the_arguments_of_scanpy(name):
    parameters = inspect.signature(getattr(pl, name)).parameters
    defaults = {"show": None, "save": None, "ax": None, "return_fig": False}
    assert {key: parameters[key].default for key in defaults} == defaults
    assert {parameters[key].kind for key in defaults} == {inspect.Parameter.KEYWORD_ONLY}
    kinds = [p.kind for p in parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2
