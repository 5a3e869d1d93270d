"""Dose responses show measured means, the model's predictions and leave the data alone."""

from __future__ import annotations

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import train

from scvci import pl
from scvci.datasets import simulate_screen

mpl.use("Agg")

DOSES = [0.1, 1.0, 10.0]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


_train = partial(train, max_epochs=4)


@pytest.fixture(scope="module")
def screen():
    adata = simulate_screen(
        n_cells=600, n_genes=20, n_members=3, doses=DOSES, n_combinations=2, seed=0
    )
    arms = adata.obs["treatment"].astype(str)
    # The third member is left with combinations only.
    return _train(adata[arms != "drug_3"].copy(), dose_key="dose", separator="+")


def _expression(cells):
    counts = cells.layers["counts"].toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def _points(ax):
    """Position and half the bar of each measured point."""
    found = []
    for container in ax.containers:
        marker, _, (bar,) = container
        low, high = bar.get_segments()[0][:, 1]
        found.append((*marker.get_xdata(), *marker.get_ydata(), (high - low) / 2))
    return np.array(found)


def _curves(ax):
    return [line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 1]


def test_points_are_means_of_the_cells_with_their_standard_errors(screen):
    cells = screen.adata
    genes = [cells.var_names[3], cells.var_names[0]]
    axes = pl.dose_response(screen, "drug_1", genes=genes, n_points=3, max_cells=20)
    assert [ax.get_title() for ax in axes] == genes
    values, obs = _expression(cells), cells.obs.astype(str)
    for ax, gene in zip(axes, (3, 0), strict=True):
        points = _points(ax)
        np.testing.assert_allclose(points[:, 0], [0, *DOSES])
        for dose, mean, half in points:
            arm = obs["treatment"] == ("drug_1" if dose else "control")
            own = values[arm & (obs["dose"].astype("str") == f"{dose:g}"), gene]
            np.testing.assert_allclose(mean, own.mean(), rtol=1e-5)
            np.testing.assert_allclose(half, 1.96 * own.std(ddof=1) / len(own) ** 0.5, rtol=1e-5)


def test_curves_begin_at_the_control_and_hold_the_measured_doses(screen):
    gene = screen.adata.var_names[2]
    (ax,) = pl.dose_response(screen, ["drug_1", "drug_2"], genes=gene, n_points=5, max_cells=30)
    first, second = _curves(ax)
    assert first[0, 0] == 0
    assert first[0, 1] == second[0, 1]
    controls = [bars[0].get_color() for bars in ax.containers if bars[0].get_xdata()[0] == 0]
    assert controls == ["0.35", "0.35"]
    assert set(DOSES) <= set(first[:, 0])
    assert first[-1, 0] == max(DOSES)
    part = screen.adata.copy()
    (all_cells,) = _curves(
        pl.dose_response(screen, "drug_1", genes=gene, doses=[0, 10], max_cells=10**6)[0]
    )
    for dose, mean in all_cells:
        torch.manual_seed(1)
        (layer,) = screen.predict_counterfactual("drug_1", part, dose=dose, n_samples=1)
        part.layers["counts"] = part.layers.pop(layer)
        own = _expression(part)[:, 2]
        part.layers["counts"] = screen.adata.layers["counts"]
        # Both are means of draws; five standard errors leave room for either.
        assert abs(own.mean() - mean) < 5 * own.std() / len(own) ** 0.5


def test_groups_and_signatures(screen, tmp_path):
    cells, names = screen.adata, screen.adata.var_names
    before, uns = list(cells.layers), set(cells.uns)
    state = torch.random.get_rng_state()
    axes = pl.dose_response(
        screen, "drug_2", genes={"pathway": names[:3]}, groupby="cell_type", n_points=3,
        max_cells=20, save=tmp_path / "doses.png",
    )  # fmt: skip
    assert (tmp_path / "doses.png").stat().st_size > 0
    assert (list(cells.layers), set(cells.uns)) == (before, uns)
    assert torch.equal(torch.random.get_rng_state(), state)
    groups = list(cells.obs["cell_type"].cat.categories)
    assert len(_curves(axes[0])) == len(groups)
    values = _expression(cells)[:, :3].mean(axis=1)
    points = _points(axes[0])[:: len(DOSES) + 1]
    for group, (dose, mean, _) in zip(groups, points, strict=True):
        own = (cells.obs["cell_type"] == group) & (cells.obs["treatment"] == "control")
        assert dose == 0
        np.testing.assert_allclose(mean, values[own].mean(), rtol=1e-5)
    _, ax = plt.subplots()
    one = {"groupby": "cell_type", "groups": groups[:1], "doses": [0, 1], "max_cells": 20}
    assert pl.dose_response(screen, "drug_2", genes=names[0], ax=ax, **one)[0] is ax
    assert len(_curves(ax)) == 1


@pytest.mark.parametrize(
    ("treatment", "genes", "kwargs", "error", "match"),
    [
        ("drug_9", "gene", {}, ValueError, "Treatment 'drug_9' is no single.*Nearest: 'drug_"),
        ("drug_3", "gene", {}, ValueError, "'drug_3' was not measured alone"),
        ("drug_1", "Actb", {}, ValueError, "Gene 'Actb' is unknown"),
        ([], "gene", {}, ValueError, "treatment= is empty"),
        ("drug_1", [], {}, ValueError, "without a gene"),
        ("drug_1", "gene", {"groupby": "celltype"}, KeyError, "celltype' is not.*cell_type"),
        (
            "drug_1", "gene", {"groupby": "cell_type", "groups": ["T"]}, ValueError,
            r"Group of obs\['cell_type'\] 'T' is unknown",
        ),
        ("drug_1", "gene", {"groups": ["T"]}, ValueError, "needs groupby="),
        ("drug_1", "gene", {"doses": [-1.0]}, ValueError, r"doses=\[-1.0\] must be"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_named(screen, treatment, genes, kwargs, error, match):
    genes = screen.adata.var_names[0] if genes == "gene" else genes
    with pytest.raises(error, match=match):
        pl.dose_response(screen, treatment, genes=genes, **kwargs)


def test_one_axes_holds_one_panel(screen):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="one panel, not 2"):
        pl.dose_response(screen, "drug_1", genes=list(screen.adata.var_names[:2]), ax=ax)


def test_data_without_doses_are_named():
    adata = simulate_screen(n_cells=200, n_genes=20, n_members=2, seed=0)
    model = _train(adata)
    with pytest.raises(ValueError, match="no dose of 'drug_1'.*dose_key="):
        pl.dose_response(model, "drug_1", genes=adata.var_names[0])
