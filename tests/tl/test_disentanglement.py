"""Whether treatment is left in the latent state of a model."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import scvci
from scvci import tl
from scvci.effects import conditional_independence_test
from scvci.model import VCI


def test_the_latent_state_is_tested_within_strata(trained):
    model, data = trained
    table = tl.disentanglement_test(model, n_permutations=49)
    mean, variance = model.get_latent_representation(return_dist=True)
    expected = conditional_independence_test(
        mean,
        data.obs["treatment"].to_numpy(),
        data.obs["cell_type"].to_numpy(),
        std=np.sqrt(variance),
        n_permutations=49,
    )
    assert list(table["test"].unique()) == ["auc", "energy", "spread"]
    pd.testing.assert_frame_equal(table, expected)
    assert table.attrs == expected.attrs
    assert list(table["stratum"].unique()) == ["all", *model.strata]


def test_other_cells_in_any_order(trained):
    model, data = trained
    some = np.arange(0, 300, 2)
    expected = tl.disentanglement_test(model, indices=some, n_permutations=39)
    assert expected["n_cells"].max() <= 150
    order = np.random.default_rng(0).permutation(some)
    other = data[order, data.var_names[::-1]].copy()
    given = tl.disentanglement_test(model, other, n_permutations=39, batch_size=7)
    pd.testing.assert_frame_equal(given, expected, rtol=1e-4)


def test_an_untrained_model_and_a_single_treatment_are_refused(adata, trained):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    with pytest.raises(RuntimeError, match="not trained.*test its latent state"):
        tl.disentanglement_test(VCI(adata, seed=0))
    model, data = trained
    controls = np.flatnonzero(data.obs["treatment"] == "control")
    with pytest.raises(ValueError, match="all cells have the treatment 'control'"):
        tl.disentanglement_test(model, indices=controls)
    with pytest.raises(ValueError, match="holds no cells.*train_size=0.8"):
        tl.disentanglement_test(model, indices=[])
    with pytest.raises(ValueError, match="n_permutations=0"):
        tl.disentanglement_test(model, n_permutations=0)
    with pytest.raises(ValueError, match="n_draws=0 must be at least 1"):
        tl.disentanglement_test(model, n_draws=0)


def test_what_separates_the_latent_state_from_treatment_is_the_counterfactual_terms():
    """An autoencoder, without the two terms, keeps the treatment; the default does not."""
    auc = {}
    for kind, weights in (("default", None), ("plain", {"covariate": 0.0, "divergence": 0.0})):
        adata = scvci.datasets.simulate_perturbation(
            n_cells=600, n_genes=30, n_strata=2, n_treatments=2, n_latent=2, seed=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
            model = VCI(adata, n_latent=3, weights=weights, seed=0)
            model.train(max_epochs=30, batch_size=64, enable_progress_bar=False, accelerator="cpu")
        auc[kind] = tl.disentanglement_test(model, n_permutations=99).iloc[0]
    assert auc["plain"]["p_value"] == 1 / 100
    assert auc["plain"]["statistic"] > 0.65
    assert auc["default"]["statistic"] < auc["plain"]["statistic"] - 0.15
