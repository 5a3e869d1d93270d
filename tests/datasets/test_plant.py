"""Effects planted by thinning are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

from scvci.datasets import plant_effects, simulate_perturbation


@pytest.fixture(scope="module")
def untreated():
    return simulate_perturbation(n_cells=3000, n_genes=40, seed=0)


def test_truth_is_unbiased_and_shares_no_noise_with_the_counts(untreated):
    planted = plant_effects(untreated, "cell_type", seed=0)
    original = untreated.X.toarray()
    assert (planted.X.toarray() <= original).all()
    for treatment in planted.uns["simulation"]["treatments"]:
        rows = (planted.obs["treatment"] == treatment).to_numpy()
        observed = planted.X[rows].toarray().sum(axis=0)
        expected = planted.layers[f"true_{treatment}"][rows].sum(axis=0)
        # Variances of sums of counts are at most their means, of the judge's twice theirs.
        z = (observed - expected) / np.sqrt(observed + 2 * expected)
        assert np.abs(z).max() < 4.5


def test_noise_of_poisson_counts_is_not_shared():
    rates = np.random.default_rng(0).gamma(5, 1, size=60)
    counts = np.random.default_rng(1).poisson(rates, size=(4000, 60)).astype(np.float32)
    planted = plant_effects(AnnData(counts), heterogeneity=0.0, n_treatments=2, seed=0)
    control = (planted.obs["treatment"] == "control").to_numpy()
    seen, judge = planted.X.toarray()[control], planted.layers["true_control"][control]
    seen, judge = (x - x.mean(axis=0) for x in (seen, judge))
    correlation = (seen * judge).mean(axis=0) / (seen.std(axis=0) * judge.std(axis=0))
    assert abs(correlation.mean()) < 4 / np.sqrt(control.sum() * 60)


def test_effects_are_heterogeneous(untreated):
    flat, steep = (plant_effects(untreated, heterogeneity=h, seed=1) for h in (0.0, 1.0))
    for planted, least, most in ((flat, 0, 1e-4), (steep, 0.05, 1)):
        control = planted.layers["true_control"]
        some = np.where(control > 0, control, np.nan)
        ratio = planted.layers["true_planted_1"] / some
        assert least <= np.nanstd(ratio, axis=0).max() <= most * 4
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
