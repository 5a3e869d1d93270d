"""The simulator is what it says: a structural causal model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvci.datasets import Departures, simulate_perturbation

SMALL = {"n_cells": 900, "n_genes": 40}


def test_seeded():
    a, b, c = (simulate_perturbation(**SMALL, seed=s) for s in (1, 1, 2))
    assert (a.X != b.X).nnz == 0
    np.testing.assert_array_equal(a.layers["true_IFNb"], b.layers["true_IFNb"])
    assert (a.X != c.X).nnz > 0


def test_contents():
    adata = simulate_perturbation(**SMALL)
    assert list(adata.obs["treatment"].cat.categories) == [
        "control",
        "IFNb",
        "TNFa",
        "LPS",
        "Dex",
    ]
    assert adata.obs["cell_type"].nunique() == 3
    for treatment in adata.obs["treatment"].cat.categories:
        expected = adata.layers[f"true_{treatment}"]
        np.testing.assert_allclose(expected.sum(1), adata.obs["library_size"], rtol=1e-4)
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))


def test_held_out_pairs_have_truth_but_no_cell():
    for held_out in (3, [("IFNb", "B"), ("Dex", "CD4 T")]):
        adata = simulate_perturbation(**SMALL, held_out=held_out)
        pairs = adata.uns["simulation"]["held_out"]
        assert len(pairs) == (held_out if isinstance(held_out, int) else 2)
        for treatment, stratum in pairs:
            cells = (adata.obs["treatment"] == treatment) & (adata.obs["cell_type"] == stratum)
            assert not cells.any()
        assert set(adata.obs["treatment"]) == set(adata.uns["simulation"]["treatments"])


def test_counts_have_the_expected_mean_and_the_stated_overdispersion():
    ratios, dispersions = [], []
    for seed in range(5):
        adata = simulate_perturbation(n_cells=2000, n_genes=60, inverse_dispersion=4.0, seed=seed)
        own = np.empty(adata.shape)
        for treatment in adata.obs["treatment"].cat.categories:
            cells = (adata.obs["treatment"] == treatment).to_numpy()
            own[cells] = adata.layers[f"true_{treatment}"][cells]
        counts = adata.X.toarray()
        ratios.append(counts.sum() / own.sum())
        # Var = μ + μ² / θ, so E[(y − μ)² − μ] / E[μ²] = 1 / θ
        dispersions.append(((counts - own) ** 2 - own).sum() / (own**2).sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    assert 1 / np.mean(dispersions) == pytest.approx(4, rel=0.1)


def test_treatment_depends_on_the_stratum_and_within_it_on_nothing():
    p_values = []
    for seed in range(8):
        adata = simulate_perturbation(n_cells=1500, n_genes=20, confounding=2.0, seed=seed)
        table = adata.obs.groupby(["cell_type", "treatment"], observed=False).size().unstack()
        assert stats.chi2_contingency(table).pvalue < 1e-6
        for stratum in adata.obs["cell_type"].cat.categories:
            rows = (adata.obs["cell_type"] == stratum).to_numpy()
            z, t = adata.obsm["latent"][rows, 0], adata.obs["treatment"][rows]
            p_values.append(stats.f_oneway(*(z[t == name] for name in t.unique())).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    table = simulate_perturbation(n_cells=5000, n_genes=10, confounding=0).obs
    counts = table.groupby(["cell_type", "treatment"], observed=False).size().unstack()
    assert stats.chi2_contingency(counts).pvalue > 0.001


def test_worlds_share_their_noise():
    adata = simulate_perturbation(**SMALL, counterfactual_counts=True)
    own = adata.X.toarray()
    for treatment in ("control", "IFNb"):
        world = adata.layers[f"counts_{treatment}"].toarray()
        received = (adata.obs["treatment"] == treatment).to_numpy()
        np.testing.assert_array_equal(world[received], own[received])
        expected = adata.layers[f"true_{treatment}"]
        assert world.sum() / expected.sum() == pytest.approx(1, abs=0.02)
    residual = [
        (adata.layers[f"counts_{t}"].toarray() - adata.layers[f"true_{t}"]).ravel()
        / np.sqrt(adata.layers[f"true_{t}"].ravel())
        for t in ("control", "IFNb")
    ]
    assert np.corrcoef(*residual)[0, 1] > 0.5


def test_heterogeneity_and_interaction_can_be_turned_off():
    adata = simulate_perturbation(**SMALL, heterogeneity=0, stratum_interaction=0)
    logs = {t: np.log(adata.layers[f"true_{t}"]) for t in ("control", "IFNb")}
    change = logs["IFNb"] - logs["control"]
    # Every cell has the same log-fold change up to its own normalisation.
    centred = change - change.mean(axis=1, keepdims=True)
    assert centred.std(axis=0).max() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_treatments": 1}, "n_treatments=1"),
        ({"n_cells": 0}, "n_cells=0"),
        ({"depth": 0}, "depth=0"),
        ({"inverse_dispersion": -1}, "inverse_dispersion=-1"),
        ({"held_out": 9}, "held_out=9"),
        ({"held_out": [("nothing", "B")]}, "'nothing'"),
        ({"held_out": [("control", "B")]}, "'control'"),
        ({"held_out": [("IFNb", "liver")]}, "'liver'"),
        ({"held_out": [("IFNb", s) for s in ("B", "CD4 T", "CD14 Mono")]}, "no stratum"),
    ],
)
def test_impossible_experiments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        simulate_perturbation(**{**SMALL, **arguments})


def test_departures_leave_the_rest_of_a_simulation_as_it_is():
    plain = simulate_perturbation(**SMALL, seed=3)
    same = simulate_perturbation(**SMALL, departures=Departures(), seed=3)
    np.testing.assert_array_equal(plain.X.toarray(), same.X.toarray())
    batches = Departures(n_batches=3, batch_effect=0.5, variance=0.5, threshold=1.0)
    other = simulate_perturbation(**SMALL, departures=batches, seed=3)
    np.testing.assert_array_equal(plain.obsm["latent"], other.obsm["latent"])
    np.testing.assert_array_equal(plain.obs["treatment"], other.obs["treatment"])
    assert other.obs["batch"].nunique() == 3


def _log_change(adata, treatment):
    log = {t: np.log(adata.layers[f"true_{t}"]) for t in ("control", treatment)}
    change = log[treatment] - log["control"]
    return change - change.mean(axis=1, keepdims=True)


def test_variance_effects_stretch_cells_about_their_stratum():
    none = {"effect_size": 0.0, "heterogeneity": 0.0, "stratum_interaction": 0.0}
    plain = simulate_perturbation(**SMALL, **none)
    assert np.abs(_log_change(plain, "IFNb")).max() < 1e-4
    adata = simulate_perturbation(**SMALL, **none, departures=Departures(variance=0.7))
    assert np.abs(_log_change(adata, "IFNb")).max() > 0.1


def test_threshold_makes_responders():
    quiet = {"heterogeneity": 0.0, "stratum_interaction": 0.0}
    spread = []
    for threshold in (0.0, 1.0):
        adata = simulate_perturbation(**SMALL, **quiet, departures=Departures(threshold=threshold))
        change = _log_change(adata, "IFNb")
        size = np.abs(change).mean(axis=1)
        spread.append(size.std() / size.mean())
    assert spread[0] < 1e-3
    assert spread[1] > 0.5


def test_zero_inflation_loses_the_stated_share():
    plain = simulate_perturbation(**SMALL)
    adata = simulate_perturbation(**SMALL, departures=Departures(zero_inflation=0.3))
    assert adata.X.nnz / plain.X.nnz == pytest.approx(0.7, abs=0.02)
    np.testing.assert_array_equal(adata.layers["true_Dex"], plain.layers["true_Dex"])
