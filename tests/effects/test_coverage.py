"""Intervals cover, and p-values are right under no effect; every gene is a repeat."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.effects import estimate_effects

N_REPEATS = 1500


def names(n_genes):
    return {
        "reference": "control",
        "treatments": ["control", "drug"],
        "strata": ["B"],
        "genes": [f"g{i}" for i in range(n_genes)],
    }


def counts(rng, mean, shape):
    """Normalised counts of a shallow experiment: a molecule counts for 4."""
    return 4.0 * rng.poisson(mean * rng.gamma(5, 0.2, size=shape))


@pytest.mark.parametrize("mean", [0.2, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("n_treated", [30, 300])
def test_p_values_of_silent_genes_are_not_too_small(mean, n_treated):
    rng = np.random.default_rng(int(10 * mean))
    outcomes = counts(rng, mean, (300 + n_treated, N_REPEATS))
    treatment = np.repeat([0, 1], [300, n_treated])
    table = estimate_effects(outcomes, treatment, 0 * treatment, **names(N_REPEATS))
    rejected = (table["p_value"] < 0.05).mean()
    # Monte-Carlo error 0.006. Small arms of nearly silent genes err on the safe side, and those
    # of genes with a few silent cells, which are skewed, slightly on the other.
    assert 0.02 < rejected < 0.08
    assert (table["p_value"] < 0.001).mean() < 0.008


def test_welchs_own_variance_would_be_too_small_in_nearly_silent_arms():
    rng = np.random.default_rng(1)
    outcomes = counts(rng, 0.2, (330, N_REPEATS))
    treatment = np.repeat([0, 1], [300, 30])
    options = {"scale": "counts", **names(N_REPEATS)}
    table = estimate_effects(outcomes, treatment, 0 * treatment, **options)
    # Shifted by one, no cell is silent and nothing is borrowed: Welch's test.
    welch = estimate_effects(outcomes + 1, treatment, 0 * treatment, **options)
    np.testing.assert_allclose(table["estimate"], welch["estimate"], atol=1e-9)
    assert (welch["p_value"] < 0.001).mean() > 0.005
    assert (table["p_value"] < 0.001).mean() < 0.002


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("n_donors", [6, 24])
def test_clusters_cover_where_cells_do_not(nested, n_donors):
    rng = np.random.default_rng(n_donors)
    n_cells = 40 * n_donors
    treatment = np.arange(n_cells) % 2
    donor = rng.integers(n_donors, size=n_cells)
    if nested:
        treatment = (donor >= n_donors // 2).astype(int)
    level = rng.normal(size=(n_donors, N_REPEATS))
    response = 1 + 0.7 * rng.normal(size=(n_donors, N_REPEATS))
    outcomes = level[donor] + treatment[:, None] * response[donor]
    outcomes = outcomes + rng.normal(size=outcomes.shape)
    shares = []
    for clusters in (donor, None):
        table = estimate_effects(
            outcomes,
            treatment,
            0 * treatment,
            scale="counts",
            clusters=clusters,
            **names(N_REPEATS),
        )
        shares.append(((table["ci_low"] < 1) & (1 < table["ci_high"])).mean())
    assert shares[0] == pytest.approx(0.95, abs=0.025)
    assert shares[1] < 0.88
