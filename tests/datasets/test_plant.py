"""Effects planted by thinning are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.datasets import plant_effects, simulate_perturbation


@pytest.fixture(scope="module")
def untreated():
    return simulate_perturbation(n_cells=3000, n_genes=40, seed=0)


def test_thinned_counts_have_the_expected_mean_and_never_exceed_the_original(untreated):
    planted = plant_effects(untreated, "cell_type", seed=0)
    assert (planted.X.toarray() <= untreated.X.toarray()).all()
    for treatment in planted.uns["simulation"]["treatments"]:
        rows = (planted.obs["treatment"] == treatment).to_numpy()
        observed = planted.X[rows].toarray().sum(axis=0)
        expected = planted.layers[f"true_{treatment}"][rows]
        # A binomial's variance is at most its mean.
        z = (observed - expected.sum(axis=0)) / np.sqrt(expected.sum(axis=0))
        assert np.abs(z).max() < 4.5


def test_control_keeps_half_and_effects_are_heterogeneous(untreated):
    counts = untreated.X.toarray()
    flat, steep = (plant_effects(untreated, heterogeneity=h, seed=1) for h in (0.0, 1.0))
    np.testing.assert_allclose(flat.layers["true_control"], counts / 2, rtol=1e-5)
    some = counts > 0
    for planted, least, most in ((flat, 0, 1e-4), (steep, 0.05, 1)):
        share = np.where(some, planted.layers["true_planted_1"] / np.maximum(counts, 1), np.nan)
        assert least <= np.nanstd(share, axis=0).max() <= most
    assert set(flat.obs["stratum"]) == {"all"}


def test_seeded_and_held_out(untreated):
    a, b = (plant_effects(untreated, "cell_type", held_out=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    pairs = a.uns["simulation"]["held_out"]
    assert len(pairs) == 2
    for treatment, stratum in pairs:
        assert not ((a.obs["treatment"] == treatment) & (a.obs["stratum"] == stratum)).any()
        assert (a.obs["treatment"] == treatment).any()


def test_bad_input(untreated):
    with pytest.raises(ValueError, match="held_out=5"):
        plant_effects(untreated, "cell_type", held_out=5)
    logged = untreated.copy()
    logged.X = logged.X * 0.5
    with pytest.raises(ValueError, match="raw counts"):
        plant_effects(logged)
