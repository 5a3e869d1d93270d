"""Plots show the right quantities and follow scanpy's conventions."""

from __future__ import annotations

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
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["control", "control, had it received IFNb", "received IFNb"]
    assert list(data.layers) == before
    with pytest.raises(ValueError, match="'IFNX'"):
        pl.counterfactual_shift(model, "IFNX")


def test_effect_scatter_separates_held_out_pairs():
    effects = pd.DataFrame(
        {
            "treatment": "a",
            "stratum": ["x", "x", "y", "y"],
            "pair": ["seen", "seen", "held out", "held out"],
            "observed": [0.0, 1.0, 2.0, 3.0],
            "predicted": [0.1, 0.9, 2.1, 2.9],
        }
    )
    axes = pl.effect_scatter(effects)
    assert [ax.get_title() for ax in axes.ravel()] == ["x", "y"]
    held_out = axes[0, 1].collections[1].get_offsets()
    np.testing.assert_allclose(held_out, [[2, 2.1], [3, 2.9]])
