"""The model's checks of what its counterfactuals rest on."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from scvci import tl
import scvci
from scvci.effects import conditional_independence_test
from scvci.model import VCI


def _model(adata, covariates=("cell_type",), **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(
            adata, layer="counts", categorical_covariate_keys=list(covariates), **arguments
        )
    return VCI(adata, n_latent=3, seed=0)


def test_the_latent_state_is_tested_within_strata(trained):
    model, data = trained
    table = tl.disentanglement_test(model, n_permutations=49)
    expected = conditional_independence_test(
        model.get_latent_representation(),
        data.obs["treatment"].to_numpy(),
        data.obs["cell_type"].to_numpy(),
        n_permutations=49,
    )
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
    with pytest.raises(RuntimeError, match="not trained.*test its latent state"):
        tl.disentanglement_test(_model(adata))
    model, data = trained
    controls = np.flatnonzero(data.obs["treatment"] == "control")
    with pytest.raises(ValueError, match="all cells have the treatment 'control'"):
        tl.disentanglement_test(model, indices=controls)
    with pytest.raises(ValueError, match="n_permutations=0"):
        tl.disentanglement_test(model, n_permutations=0)


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


def test_overlap_lists_every_pair_and_names_the_poor_ones(adata):
    lost = (adata.obs["cell_type"] == "B") & (adata.obs["treatment"] == "IFNb")
    kept = adata[~lost].copy()
    model = _model(kept)
    with pytest.warns(UserWarning, match=r"(?s)No cells.*extrapolated.*\(IFNb, B\)"):
        table = tl.check_overlap(model.adata, min_cells=5)
    assert len(table) == len(model.strata) * len(model.treatments)
    counts = kept.obs.groupby(["cell_type", "treatment"], observed=False).size()
    for _, row in table.iterrows():
        assert row["n_cells"] == counts[row["stratum"], row["treatment"]]
    assert table.loc[table["flag"] != "", ["stratum", "treatment"]].to_numpy().tolist() == [
        ["B", "IFNb"]
    ]


def test_good_overlap_warns_of_nothing(adata):
    model = _model(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tl.check_overlap(model.adata, min_cells=5)
    assert (table["flag"] == "").all()
    assert "share_low" not in table
    few = np.arange(60)
    with pytest.warns(UserWarning, match="Few cells"):
        part = tl.check_overlap(model.adata, indices=few)
    assert part["n_cells"].sum() == 60
    with pytest.raises(ValueError, match="min_cells=0"):
        tl.check_overlap(model.adata, min_cells=0)


def test_continuous_covariates_enter_the_propensity(adata):
    treated = (adata.obs["treatment"] != "control").to_numpy()
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs) + 6 * treated
    model = _model(adata, continuous_covariate_keys=["age"])
    with pytest.warns(UserWarning, match="Low propensity"):
        table = tl.check_overlap(model.adata, min_cells=5)
    assert (table.loc[table["treatment"] == "control", "share_low"] > 0.1).all()


def test_combinations_that_training_did_not_see_are_strata_of_their_own(adata):
    adata.obs["donor"] = np.where(adata.obs["cell_type"] == "B", "d1", "d2")
    model = _model(adata, covariates=("cell_type", "donor"))
    other = adata.copy()
    other.obs["donor"] = "d1"
    with pytest.warns(UserWarning, match="Overlap is poor"):
        table = tl.check_overlap(other, min_cells=200, model=model)
    assert list(table["stratum"].unique()[:3]) == model.strata
    assert table["n_cells"].sum() == adata.n_obs
    assert table.loc[table["stratum"] == "CD4 T | d1", "n_cells"].sum() > 0
