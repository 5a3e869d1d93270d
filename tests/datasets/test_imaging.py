"""The imaging screen is what it says: intensities in closed form, and the same cell throughout."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from scvci.datasets import simulate_imaging_screen

N = 300
EC50 = {"A549": 0.5, "U2OS": 0.8}
#: Log-odds of the nuclear fraction and relative gain at a dose without end.
EFFECTS = {
    "control": (0.0, 0.0),
    "importer": (3.0, 0.0),
    "inducer": (0.0, 0.6),
    "dual": (2.0, 0.4),
}


@pytest.fixture(scope="module")
def factual():
    return simulate_imaging_screen(N, seed=1)


def _under(drug, dose):
    return simulate_imaging_screen(N, seed=1, drug=drug, dose=dose)


def _nucleus(adata):
    return adata.obsm["image"][:, 0] / adata.obsm["latent"]["dna"].to_numpy()[:, None, None]


def test_seeded(factual):
    again, other = (simulate_imaging_screen(N, seed=s) for s in (1, 2))
    np.testing.assert_array_equal(factual.obsm["image"], again.obsm["image"])
    assert np.abs(factual.obsm["image"] - other.obsm["image"]).max() > 0.1


@pytest.mark.parametrize("drug", list(EFFECTS))
def test_nuclear_fraction_and_marker_follow_the_equations(drug):
    adata = _under(drug, 1.5)
    shift, gain = EFFECTS[drug]
    ec50 = adata.obs["cell_line"].map(EC50).to_numpy(dtype=float)
    response = 1.5 / (1.5 + ec50)
    own = adata.obsm["latent"]
    expected = expit(logit(own["basal_nuclear_fraction"]) + shift * response)
    np.testing.assert_allclose(adata.obs["nuclear_fraction"], expected, rtol=1e-6)
    expected = own["basal_marker"] * (1 + gain * response)
    np.testing.assert_allclose(adata.obs["marker"], expected, rtol=1e-6)


def test_the_marker_adds_up_wherever_it_lies(factual):
    """Its sum is m ΣC; the drug that only moves it leaves the sum as it is."""
    sums = {d: _under(d, 2.0).obsm["image"][:, 1].sum((1, 2)) for d in ("control", "importer")}
    np.testing.assert_allclose(sums["importer"], sums["control"], rtol=1e-4)
    induced = _under("inducer", 2.0)
    ratio = induced.obs["marker"] / factual.obsm["latent"]["basal_marker"]
    np.testing.assert_allclose(
        induced.obsm["image"][:, 1].sum((1, 2)) / sums["control"], ratio, rtol=1e-4
    )


def test_images_are_mixtures_of_nucleus_and_cytoplasm():
    """Regression of the marker on the masks gives back its total and its nuclear fraction.

    The mask of the cytoplasm is the marker of the same cell with its nuclear part taken away.
    """
    low, high = _under("control", 0.0), _under("importer", 2.0)
    marker = [a.obsm["image"][:, 1].astype(float) for a in (low, high)]
    f = [a.obs["nuclear_fraction"].to_numpy()[:, None, None] for a in (low, high)]
    nucleus = _nucleus(low).astype(float)
    nucleus /= nucleus.sum((1, 2), keepdims=True)
    total = marker[0].sum((1, 2), keepdims=True)
    cytoplasm = (marker[0] - total * f[0] * nucleus) / (1 - f[0]) / total
    predicted = total * (f[1] * nucleus + (1 - f[1]) * cytoplasm)
    np.testing.assert_allclose(marker[1], predicted, atol=1e-5)
    assert cytoplasm.min() > -1e-6


def test_the_truth_is_the_image_under_the_treatment_received(factual):
    own = _under(factual.obs["drug"].to_numpy(), factual.obs["dose"].to_numpy())
    np.testing.assert_array_equal(own.obsm["image"], factual.obsm["image"])
    for drug in ("control", "dual"):
        rows = (factual.obs["drug"] == drug).to_numpy()
        np.testing.assert_array_equal(
            simulate_imaging_screen(N, seed=1, drug=drug).obsm["image"][rows],
            factual.obsm["image"][rows],
        )


def test_a_treatment_changes_nothing_but_the_marker(factual):
    treated = _under("dual", 2.0)
    np.testing.assert_array_equal(treated.obsm["image"][:, 0], factual.obsm["image"][:, 0])
    assert treated.obsm["latent"].equals(factual.obsm["latent"])
    assert treated.obs["cell_line"].equals(factual.obs["cell_line"])
    assert np.abs(treated.obsm["image"][:, 1] - factual.obsm["image"][:, 1]).max() > 0.1


def test_more_is_more():
    doses = (0.0, 0.1, 0.5, 2.0, 10.0)
    nuclear = []
    for dose in doses:
        image = _under("importer", dose).obsm["image"][:, 1]
        core = _nucleus(_under("importer", dose)) > 0.9
        nuclear.append((image * core).sum((1, 2)))
    assert (np.diff(nuclear, axis=0) > 0).all()


def test_no_dose_and_control_do_nothing():
    control = _under("control", 0.0).obsm["image"]
    np.testing.assert_array_equal(_under("dual", 0.0).obsm["image"], control)
    given = _under("control", 2.0)
    np.testing.assert_array_equal(given.obsm["image"], control)
    assert (given.obs["dose"] == 0).all()
    # A control cell with a drug but no dose keeps its dose of 0.
    kept = simulate_imaging_screen(N, seed=1, drug="dual")
    received = simulate_imaging_screen(N, seed=1)
    rows = (received.obs["drug"] == "control").to_numpy()
    np.testing.assert_array_equal(kept.obsm["image"][rows], control[rows])


def test_pixels_are_shares_and_cells_lie_within_the_image():
    for drug in EFFECTS:
        image = simulate_imaging_screen(3000, seed=3, drug=drug, dose=1e6).obsm["image"]
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
        edge = np.concatenate([image[..., [0, -1], :].ravel(), image[..., [0, -1]].ravel()])
        assert edge.max() < 0.06


def test_treatment_depends_on_the_line_and_given_it_on_nothing_else():
    adata = simulate_imaging_screen(4000, 12, seed=0)
    count = adata.obs.groupby(["cell_line", "drug"], observed=False).size().unstack()
    share = count.div(count.sum(axis=1), axis=0)
    weight = np.exp([0.5, 0.0, 0.0, -0.5])
    np.testing.assert_allclose(share.loc["A549"], weight / weight.sum(), atol=0.03)
    p_values = []
    for line in EC50:
        rows = (adata.obs["cell_line"] == line).to_numpy()
        for name, values in adata.obsm["latent"].items():
            groups = [values[rows & (adata.obs["drug"] == d).to_numpy()] for d in EFFECTS]
            p_values.append(stats.f_oneway(*groups).pvalue)
            assert values.nunique() == adata.n_obs, name
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    equal = simulate_imaging_screen(4000, 12, confounding=0).obs
    table = equal.groupby(["cell_line", "drug"], observed=False).size().unstack()
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_a_finer_image_is_the_same_cell():
    small, large = (simulate_imaging_screen(20, side, seed=4) for side in (24, 48))
    assert small.obs.equals(large.obs)
    binned = large.obsm["image"].reshape(20, 2, 24, 2, 24, 2).mean((3, 5))
    assert np.abs(binned - small.obsm["image"]).mean() < 0.005


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_cells": 0}, "n_cells=0"),
        ({"side": 8}, "side=8 must be at least 12"),
        ({"doses": []}, "one or more positive"),
        ({"doses": (0.0, 1.0)}, "one or more positive"),
        ({"drug": "importr"}, "'importr'.*'importer'"),
        ({"drug": ["dual", "control"]}, "one for each of 300 cells"),
        ({"dose": -1}, "at least 0; got -1"),
        ({"dose": np.nan}, "finite"),
        ({"dose": [1.0, 2.0]}, "one for each of 300 cells"),
    ],
)
def test_impossible_experiments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        simulate_imaging_screen(**{"n_cells": N, **arguments})
