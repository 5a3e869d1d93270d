"""Strata of like propensities take most of the confounding by a continuous covariate away."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.effects import estimate_effects, propensity_strata


def test_bins_remove_confounding_by_a_continuous_covariate():
    rng = np.random.default_rng(0)
    n, n_genes = 4000, 40
    stratum, covariate = rng.integers(2, size=n), rng.normal(size=n)
    propensity = 1 / (1 + np.exp(-covariate))
    treatment = (rng.random(n) < propensity).astype(int)
    mean = 5 + covariate[:, None] + 0.5 * treatment[:, None]
    outcomes = mean + rng.normal(size=(n, n_genes))
    codes, names = propensity_strata(propensity, stratum, ["B", "T"])
    options = {
        "reference": "control",
        "treatments": ["control", "drug"],
        "genes": [f"g{i}" for i in range(n_genes)],
        "groups": stratum,
        "group_names": ["B", "T"],
        "scale": "counts",
    }
    crude = estimate_effects(outcomes, treatment, stratum, strata=["B", "T"], **options)
    binned = estimate_effects(outcomes, treatment, codes, strata=names, **options)
    bias = [abs(table["estimate"].mean() - 0.5) for table in (crude, binned)]
    assert bias[0] > 0.5
    assert bias[1] < 0.15 * bias[0]
    assert set(binned["stratum"]) == {"B", "T"}


def test_cells_without_a_propensity_are_apart_and_bins_are_even():
    propensity = np.array([0.1, 0.2, np.nan, 0.3, 0.4, np.nan])
    codes, names = propensity_strata(propensity, np.array([0, 0, 0, 1, 1, 1]), ["B", "T"], 2)
    assert [names[c] for c in codes] == [
        *("B, bin 1", "B, bin 2", "B, no propensity"),
        *("T, bin 1", "T, bin 2", "T, no propensity"),
    ]


@pytest.mark.parametrize(
    ("propensity", "n_bins", "message"),
    [([0.5, 1.5], 5, "outside"), ([0.5, 0.5], 0, "n_bins=0"), ([0.5], 5, "shape")],
)
def test_errors_name_what_is_wrong(propensity, n_bins, message):
    with pytest.raises(ValueError, match=message):
        propensity_strata(np.array(propensity), np.array([0, 0]), ["B"], n_bins)
