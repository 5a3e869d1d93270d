"""What is identified is recovered, and what is not is shown not to be (acceptance tests)."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import scvci
from scvci.metrics import ite_corr, pseudobulk, r2_delta
from scvci.model import VCI

#: Added to Gaussian outcomes: logarithms of expression are not negative.
OFFSET = 10.0
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def _train(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(**{**QUIET, **arguments})


def _gaussian(y, treatment, stratum):
    obs = pd.DataFrame(
        {"treatment": treatment, "x": stratum}, index=[f"c{i}" for i in range(len(y))]
    )
    adata = AnnData(y.astype(np.float32), obs=obs)
    VCI.setup_anndata(adata, categorical_covariate_keys=["x"])
    return adata


@pytest.mark.parametrize("seed", [0, 1])
def test_linear_gaussian_model_with_additive_effect(seed):
    """a(t, x) is recovered, going there and back returns the cell, and z does not know t."""
    rng = np.random.default_rng(seed)
    n, n_genes = 1200, 20
    stratum, treated = rng.integers(2, size=n), rng.integers(2, size=n)
    z = rng.normal(size=(n, 2)) + stratum[:, None]
    loadings = rng.normal(size=(2, n_genes))
    effect = rng.normal(size=(2, n_genes))
    noise = 0.3 * rng.normal(size=(n, n_genes))
    y = OFFSET + z @ loadings + treated[:, None] * effect[stratum] + noise
    adata = _gaussian(y, np.where(treated, "drug", "control"), np.where(stratum, "b", "a"))
    model = VCI(adata, likelihood="normal", n_latent=2, seed=seed)
    _train(model, max_epochs=60)
    model.predict_counterfactual(["control", "drug"])
    change = adata.layers["counterfactual_drug"] - adata.layers["counterfactual_control"]
    for x in (0, 1):
        estimate = change[stratum == x].mean(axis=0)
        # Standard errors of a difference of two means of about 300 cells each
        rows = stratum == x
        error = np.sqrt(
            y[rows & (treated == 1)].var(0) / 300 + y[rows & (treated == 0)].var(0) / 300
        )
        assert np.abs(estimate - effect[x]).max() < 4.5 * error.max()

    truth = OFFSET + z @ loadings + effect[stratum]
    controls = treated == 0
    error = ((adata.layers["counterfactual_drug"] - truth)[controls] ** 2).mean()
    assert error < 0.15 * truth[controls].var(axis=0).mean()

    _assert_cycle(model, adata, controls)
    _assert_free_of_treatment(model, treated, stratum)


def _assert_cycle(model, adata, controls):
    """control → drug → control returns the reconstruction."""
    back = AnnData(
        adata.layers["counterfactual_drug"][controls],
        obs=adata.obs.loc[controls, ["treatment", "x"]].assign(treatment="drug"),
        var=adata.var,
    )
    model.predict_counterfactual("control", back)
    start = adata.layers["counterfactual_control"][controls]
    cycle = ((back.layers["counterfactual_control"] - start) ** 2).mean()
    assert cycle < 0.05 * start.var(axis=0).mean()


def _assert_free_of_treatment(model, treated, stratum):
    z = model.get_latent_representation()
    for x in (0, 1):
        rows = stratum == x
        auc = cross_val_score(
            LogisticRegression(max_iter=500), z[rows], treated[rows], cv=5, scoring="roc_auc"
        ).mean()
        # Half a dozen standard errors of an AUC of two groups of 300
        assert auc < 0.5 + 6 * 0.024


def test_rotation_leaves_marginals_right_and_individuals_open():
    """The counter-example to identification: any rotation of z gives the same observed law.

    y(0) = z and y(1) = R z + μ with a quarter turn R. Means and spreads of the counterfactual
    come out right, single cells do not: nothing in the data says which rotation is true.
    """
    rng = np.random.default_rng(0)
    n = 1500
    z, treated = rng.normal(size=(n, 2)), rng.integers(2, size=n)
    rotation, shift = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([3.0, -2.0])
    worlds = OFFSET + np.stack([z, z @ rotation.T + shift])
    y = worlds[treated, np.arange(n)] + 0.1 * rng.normal(size=(n, 2))
    adata = _gaussian(y, np.where(treated, "turn", "control"), np.array(["all"] * n))
    # The bound as the paper writes it: a heavier divergence outweighs what two genes can tell; and
    # no dropout, as neither gene can stand in for the other.
    model = VCI(
        adata,
        likelihood="normal",
        n_latent=2,
        weights={"divergence": 1},
        architecture={"dropout": 0.0},
        seed=0,
    )
    _train(model, max_epochs=60)
    model.predict_counterfactual("turn")
    controls = treated == 0
    predicted, truth = adata.layers["counterfactual_turn"][controls], worlds[1][controls]
    np.testing.assert_allclose(predicted.mean(0), OFFSET + shift, atol=0.25)
    assert (predicted.std(0) > 0.5).all()
    individual = np.mean([np.corrcoef(predicted[:, g], truth[:, g])[0, 1] for g in range(2)])
    assert individual < 0.5


@pytest.fixture(scope="module")
def simulated():
    """One experiment with a held-out pair, its model, and layers for every treatment."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=2400, n_genes=120, n_treatments=3, held_out=[("IFNb", "B")], seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=0)
    _train(model, max_epochs=60)
    model.predict_counterfactual(library_size=1e4, log1p=True)
    return model, adata


def _true(adata, treatment, rows):
    expected = adata.layers[f"true_{treatment}"][rows]
    return np.log1p(1e4 * expected / expected.sum(1, keepdims=True))


def test_individual_effects_are_recovered_on_the_simulator(simulated):
    """Far above what means reach (0), for measured pairs and for the one held out."""
    _, adata = simulated
    scores = {}
    for treatment in ("IFNb", "TNFa"):
        for stratum in adata.obs["cell_type"].cat.categories:
            rows = (adata.obs["cell_type"] == stratum).to_numpy()
            true = _true(adata, treatment, rows) - _true(adata, "control", rows)
            predicted = (
                adata.layers[f"counterfactual_{treatment}"][rows]
                - adata.layers["counterfactual_control"][rows]
            )
            scores[treatment, stratum] = ite_corr(true, predicted, 30)
    held_out = scores.pop(("IFNb", "B"))
    assert np.mean(list(scores.values())) > 0.6
    assert held_out > 0.4


def _mean_gap(adata, prefix, treatments):
    """Mean distance of predicted and true pseudobulks over measured pairs."""
    gaps = []
    for treatment in treatments:
        for stratum in adata.obs["cell_type"].cat.categories:
            rows = (adata.obs["cell_type"] == stratum).to_numpy()
            if (rows & (adata.obs["treatment"] == treatment).to_numpy()).any():
                true = pseudobulk(adata.layers[f"true_{treatment}"][rows])
                predicted = pseudobulk(adata.layers[f"{prefix}_{treatment}"][rows])
                gaps.append(np.abs(predicted - true).mean())
    return np.mean(gaps)


def test_calibration_brings_means_to_the_truth(simulated):
    """Mean prediction of stratum x under t′ against the true mean, with the switch.

    A model without the covariate-specific term has means that are wrong before calibration; the
    default model has little left to calibrate and must not get worse.
    """
    model, adata = simulated
    biased = VCI(adata, weights={"covariate": 0.0}, seed=0)
    _train(biased, max_epochs=15)
    for each, least in ((biased, 0.5), (model, 1.02)):
        cells = adata.copy()
        each.predict_counterfactual(None, cells, layer_added="on")
        each.predict_counterfactual(None, cells, layer_added="off", calibrated=False)
        on, off = (_mean_gap(cells, switch, each.treatments) for switch in ("on", "off"))
        assert on < least * off
        assert on < 0.06


def test_held_out_means_beat_no_change(simulated):
    _, adata = simulated
    rows = (adata.obs["cell_type"] == "B").to_numpy()
    control = _true(adata, "control", rows).mean(0)
    truth = _true(adata, "IFNb", rows).mean(0)
    predicted = adata.layers["counterfactual_IFNb"][rows].mean(0)
    assert r2_delta(truth, predicted, control) > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_where_treatments_do_nothing_no_cell_responds(seed):
    """Predicted effects on cells are a small part of the differences between cells."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=900,
        n_genes=60,
        n_treatments=4,
        effect_size=0.0,
        heterogeneity=0.0,
        stratum_interaction=0.0,
        seed=seed,
    )
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=seed)
    _train(model, max_epochs=40)
    layers = model.predict_counterfactual(library_size=1e4, log1p=True)
    control, *treated = (adata.layers[name] for name in layers)
    within = [
        control[(adata.obs["cell_type"] == x).to_numpy()].var(axis=0).mean() for x in model.strata
    ]
    effect = np.mean([np.mean((values - control) ** 2) for values in treated])
    assert np.sqrt(effect / np.mean(within)) < 0.05
