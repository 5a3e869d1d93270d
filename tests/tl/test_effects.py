"""Effects: cells to table, and what is refused, warned of and extrapolated."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import scvci
from scvci import tl
from scvci.model import VCI
from scvci.tl import _crossfit

COLUMNS = [
    *("treatment", "reference", "stratum", "gene", "estimate", "std_error", "df", "ci_low"),
    *("ci_high", "p_value", "q_value", "n_treated", "n_reference", "propensity", "depth_ratio"),
    *("mean_factual", "mean_counterfactual", "estimator", "leakage", "note"),
]


def _set_up(adata, **kwargs):
    """Register cells; returns the same AnnData."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, **{"categorical_covariate_keys": ["cell_type"], **kwargs})
    return adata


def _train(adata):
    model = VCI(_set_up(adata), n_latent=3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=6, enable_progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def experiment():
    """Three arms, three strata, one pair without cells; registered."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=900, n_genes=40, n_treatments=3, held_out=[("IFNb", "B")], seed=0
    )
    adata.obs["donor"] = pd.Categorical(np.random.default_rng(0).integers(6, size=900).astype(str))
    return _set_up(adata)


@pytest.fixture(scope="module")
def fitted(experiment):
    """A model of a copy, with little training."""
    return _train(experiment.copy())


def _log_normalised(adata):
    x = adata.X.toarray().astype(float)
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))


def test_default_is_the_fold_change_and_log1p_is_welch_on_log_normalised_cells(experiment):
    with pytest.warns(UserWarning, match="cluster_key='donor'"):
        default = tl.estimate_effects(experiment, "TNFa", groupby="cell_type")
    assert list(default.columns) == COLUMNS
    assert default.attrs["scale"] == "lfc"
    assert default["depth_ratio"].between(0.8, 1.25).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"scale": "log1p", "normalisation": "given", "groupby": "cell_type"}
        table = tl.estimate_effects(experiment, "TNFa", **arguments)
    assert table.attrs["scale"] == "log1p"
    y, obs = _log_normalised(experiment), experiment.obs
    # A gene whose p-value is a number to compare.
    gene = int(np.argsort(table.loc[table["stratum"] == "B", "p_value"].to_numpy())[30])
    a, b = (
        y[((obs["cell_type"] == "B") & (obs["treatment"] == t)).to_numpy(), gene]
        for t in ("TNFa", "control")
    )
    row = table[(table["stratum"] == "B") & (table["gene"] == experiment.var_names[gene])].iloc[0]
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval()
    np.testing.assert_allclose(
        [row["estimate"], row["p_value"], row["ci_low"], row["ci_high"]],
        [a.mean() - b.mean(), test.pvalue, low, high],
        rtol=1e-4,
    )


def test_strata_are_the_units_of_an_average(experiment):
    """The effect of all cells averages the strata's, by their cells, not the pooled cells'."""
    arguments = {"cluster_key": "donor", "scale": "log1p", "normalisation": "given"}
    pooled = tl.estimate_effects(experiment, "TNFa", **arguments)
    by = tl.estimate_effects(experiment, "TNFa", groupby="cell_type", **arguments)
    weights = experiment.obs["cell_type"].value_counts(normalize=True)
    wide = by.pivot(index="gene", columns="stratum", values="estimate")
    expected = (wide * weights[wide.columns].to_numpy()).sum(axis=1)
    got = pooled.set_index("gene")["estimate"]
    np.testing.assert_allclose(got[expected.index], expected, rtol=1e-6)


def test_a_pair_without_cells_is_extrapolated_and_says_so(fitted):
    arguments = {"groupby": "cell_type", "cluster_key": "donor", "model": fitted}
    table = tl.estimate_effects(fitted.adata, "IFNb", **arguments)
    unmeasured = table[table["stratum"] == "B"]
    assert (unmeasured["estimator"] == "extrapolation").all()
    assert unmeasured["estimate"].notna().all()
    assert unmeasured[["std_error", "df", "ci_low", "p_value", "q_value"]].isna().all().all()
    assert unmeasured["note"].str.contains("no design-based interval").all()
    assert (table.loc[table["stratum"] != "B", "estimator"] == "observed").all()
    assert tl.estimate_effects(fitted.adata, "IFNb", **arguments).equals(table)
    refused = tl.estimate_effects(fitted.adata, "IFNb", estimator="observed", **arguments)
    assert (refused.loc[refused["stratum"] == "B", "estimator"] == "skipped").all()


def test_predictions_are_on_the_scale_of_measured_means(fitted):
    """Means of drawn outcomes, not logarithms of expectations, stand beside measured means."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin = tl.estimate_effects(fitted.adata, "TNFa", estimator="plugin", model=fitted)
        observed = tl.estimate_effects(fitted.adata, "TNFa", normalisation="given")
    for column in ("mean_factual", "mean_counterfactual"):
        difference = (plugin[column] - observed[column]).abs().mean()
        assert difference < 0.15 * observed[column].mean()


def test_nothing_is_extrapolated_without_a_trained_model(experiment):
    untrained = VCI(experiment, n_latent=3, seed=0)
    keys = {"groupby": "cell_type", "cluster_key": "donor"}
    table = tl.estimate_effects(experiment, "IFNb", **keys)
    unmeasured = table[table["stratum"] == "B"]
    assert (unmeasured["estimator"] == "skipped").all()
    assert unmeasured["note"].str.contains("no treated cells").all()
    by_model = tl.estimate_effects(experiment, "IFNb", **keys, model=untrained)
    pd.testing.assert_frame_equal(by_model, table)
    for estimator in ("plugin", "robust"):
        with pytest.raises(ValueError, match="pass model="):
            tl.estimate_effects(experiment, "IFNb", estimator=estimator, **keys)
        with pytest.raises(RuntimeError, match="call train"):
            tl.estimate_effects(experiment, "IFNb", estimator=estimator, **keys, model=untrained)


def test_a_copy_is_read_as_the_original_until_it_is_set_up_itself(experiment):
    copy, keys = experiment.copy(), {"treatment": "TNFa", "cluster_key": "donor"}
    expected = tl.estimate_effects(experiment, **keys)
    pd.testing.assert_frame_equal(tl.estimate_effects(copy, **keys), expected)
    _set_up(copy, categorical_covariate_keys=None)
    unadjusted = tl.estimate_effects(copy, **keys)["estimate"]
    assert not np.allclose(unadjusted, expected["estimate"], atol=1e-4, equal_nan=True)
    pd.testing.assert_frame_equal(tl.estimate_effects(experiment, **keys), expected)


def test_cells_that_were_not_set_up_are_refused(experiment):
    other = experiment.copy()
    del other.uns["_scvi_uuid"]
    for estimate in (tl.estimate_effects, tl.estimate_interactions, tl.check_overlap):
        with pytest.raises(ValueError, match="not set up in this session.*model="):
            estimate(other)


def test_other_cells_in_another_order_of_genes(experiment, fitted):
    rng = np.random.default_rng(1)
    other = experiment[rng.permutation(900), rng.permutation(40)].copy()
    other.uns.clear()
    keys = {"groupby": "cell_type", "cluster_key": "donor"}
    pd.testing.assert_frame_equal(
        tl.estimate_effects(experiment, "TNFa", **keys),
        tl.estimate_effects(other, "TNFa", **keys, model=fitted),
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="pass adata=model.adata"):
        tl.estimate_effects(other, "TNFa", estimator="robust", **keys, model=fitted)


def test_layers_dense_and_sparse_agree(experiment):
    dense = experiment.copy()
    dense.layers["dense"] = dense.X.toarray()
    dense.X = sparse.csr_matrix(dense.shape)
    pd.testing.assert_frame_equal(
        tl.estimate_effects(_set_up(dense, layer="dense"), cluster_key="donor"),
        tl.estimate_effects(experiment, cluster_key="donor"),
        rtol=1e-5,
    )


def test_size_factors_normalise(experiment):
    adata = experiment.copy()
    adata.obs["size"] = 2.0
    keys = {"groupby": "cell_type", "cluster_key": "donor"}
    _set_up(adata, size_factor_key="size")
    table = tl.estimate_effects(adata, "TNFa", scale="counts", normalisation="given", **keys)
    row = table[(table["stratum"] == "B")].iloc[0]
    cells = (adata.obs["cell_type"] == "B") & (adata.obs["treatment"] == "TNFa")
    mean = adata[cells.to_numpy(), row["gene"]].X.toarray()
    by_donor = pd.Series(mean.ravel()).groupby(adata.obs.loc[cells, "donor"].to_numpy()).mean()
    # Six donors: each counts the same.
    np.testing.assert_allclose(row["mean_factual"], by_donor.mean() / 2, rtol=1e-5)


def test_log_normalised_data_are_taken_as_they_are(experiment):
    adata = experiment.copy()
    adata.X = _log_normalised(experiment).astype(np.float32)
    model = VCI(_set_up(adata), likelihood="normal", seed=0)
    expected = tl.estimate_effects(
        experiment, "TNFa", cluster_key="donor", scale="log1p", normalisation="given"
    ).assign(depth_ratio=np.nan)
    for arguments in ({}, {"model": model}):
        arguments = {"cluster_key": "donor", **arguments}
        table = tl.estimate_effects(adata, "TNFa", **arguments)
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4)
        with pytest.raises(ValueError, match="needs counts"):
            tl.estimate_effects(adata, "TNFa", scale="lfc", **arguments)


def test_robust_is_never_worse_and_keeps_its_models(fitted, monkeypatch):
    arguments = {"cluster_key": "donor", "n_folds": 2, "show_progress": False, "max_epochs": 4}
    targets = ["TNFa", "IFNb"]
    robust = tl.estimate_effects(
        fitted.adata, targets, estimator="robust", model=fitted, **arguments
    )
    observed = tl.estimate_effects(fitted.adata, targets, cluster_key="donor")
    assert set(robust["estimator"]) <= {"robust", "observed"}
    refused = (robust["estimator"] == "observed").to_numpy()
    np.testing.assert_allclose(robust["estimate"][refused], observed["estimate"][refused])
    assert robust.loc[refused, "note"].str.contains("leakage").all()
    monkeypatch.setattr(_crossfit, "_fit_without", None)
    leakage = tl.leakage_test(fitted, **arguments)
    assert set(leakage["treatment"]) == set(fitted.treatments)
    tested = leakage["p_value"].notna()
    assert tested.mean() > 0.5
    assert leakage.loc[tested, "p_value"].between(0, 1).all()


def test_bad_names_are_named(experiment):
    with pytest.raises(ValueError, match="'IFNg' is unknown"):
        tl.estimate_effects(experiment, "IFNg", cluster_key="donor")
    with pytest.raises(ValueError, match="'controll' is unknown"):
        tl.estimate_effects(experiment, "IFNb", reference="controll", cluster_key="donor")
    with pytest.raises(KeyError, match="no column 'cel_type' .argument groupby"):
        tl.estimate_effects(experiment, "IFNb", groupby="cel_type", cluster_key="donor")
    with pytest.raises(KeyError, match="argument cluster_key"):
        tl.estimate_effects(experiment, "IFNb", cluster_key="mouse")
    with pytest.raises(ValueError, match="reference"):
        tl.estimate_effects(experiment, "control", cluster_key="donor")


def test_unknown_estimators_are_named(fitted):
    with pytest.raises(ValueError, match="estimator='tmle'"):
        tl.estimate_effects(
            fitted.adata, "IFNb", estimator="tmle", cluster_key="donor", model=fitted
        )
    with pytest.raises(ValueError, match="estimator='tmle'"):
        tl.estimate_effects(fitted.adata, "IFNb", estimator="tmle", cluster_key="donor")


def test_labels_that_are_missing_are_refused(experiment):
    adata = experiment.copy()
    adata.obs["group"] = ["a", None] * 450
    with pytest.raises(ValueError, match=r"obs\['group'\] has 450 missing"):
        tl.estimate_effects(adata, "TNFa", groupby="group", cluster_key="donor")


def test_continuous_covariates_are_adjusted_for_by_propensity():
    """A covariate that raises the treatment's probability and a gene: no effect of treatment."""
    rng = np.random.default_rng(0)
    n, n_genes = 3000, 20
    covariate = rng.normal(size=n)
    treated = rng.random(n) < 1 / (1 + np.exp(-1.5 * covariate))
    rate = np.full((n, n_genes), 20.0)
    rate[:, :5] *= np.exp(0.5 * covariate)[:, None]
    obs = pd.DataFrame(
        {
            "treatment": np.where(treated, "drug", "control"),
            "cell_type": rng.choice(["B", "T"], n),
            "age": covariate,
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = anndata.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    crude = tl.estimate_effects(_set_up(adata.copy()), "drug")
    table = tl.estimate_effects(_set_up(adata, continuous_covariate_keys=["age"]), "drug")
    bias = [t["estimate"].head(5).abs().mean() for t in (crude, table)]
    assert bias[0] > 0.3
    assert bias[1] < 0.2 * bias[0]


def test_a_reference_other_than_the_control(experiment):
    forth = tl.estimate_effects(experiment, "IFNb", reference="TNFa", cluster_key="donor")
    back = tl.estimate_effects(experiment, "TNFa", reference="IFNb", cluster_key="donor")
    np.testing.assert_allclose(forth["estimate"], -back["estimate"])
    np.testing.assert_allclose(forth["p_value"], back["p_value"])


def test_arms_are_treatments_at_a_dose(screen):
    table = tl.estimate_effects(screen.adata, "drug_1@10", model=screen)
    assert set(table["treatment"]) == {"drug_1@10"}
    assert np.isfinite(table["estimate"]).all()
    with pytest.raises(ValueError, match="'drug_1@5' was not measured"):
        tl.estimate_effects(screen.adata, "drug_1@5", model=screen)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("kang", {"ISG15", "IFI6", "IFIT1", "IFIT2", "IFIT3", "MX1", "CXCL10", "ISG20", "LY6E"}),
        ("kang_donors", {"ISG15", "MX2"}),
    ],
)
def test_interferon_genes_come_out_on_top(real_data, name, known):
    """Donors are the replicates: two or three of them, each with both arms."""
    adata = anndata.read_h5ad(real_data / f"{name}.h5ad")
    table = tl.estimate_effects(_set_up(adata), "IFNB", cluster_key="donor", min_cells=10)
    top = table.sort_values("p_value").head(12)
    found = top[top["gene"].isin(known)]
    assert len(found) >= 0.8 * len(known)
    assert (found["ci_low"] > 0).all()


@pytest.mark.real
def test_nothing_is_found_where_nothing_is(real_data):
    adata = anndata.read_h5ad(real_data / "mcfaline.h5ad")
    table = tl.estimate_effects(_set_up(adata), groupby="cell_type")
    tested = table["p_value"].notna()
    assert tested.mean() > 0.3
    # Lists are nearly empty: 27 of them, of which most hold nothing.
    found = table[table["q_value"] < 0.1]
    assert len(found) < 0.005 * tested.sum()
    assert found.groupby(["treatment", "stratum"]).ngroups <= 5


@pytest.mark.real
@pytest.mark.parametrize("cluster_key", [None, "bio_rep"])
def test_a_knock_out_without_effect_has_none_and_one_with_has(real_data, cluster_key):
    adata = anndata.read_h5ad(real_data / "papalexi.h5ad")
    VCI.setup_anndata(adata, categorical_covariate_keys=["bio_rep"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = tl.estimate_effects(adata, ["CD86", "STAT1"], cluster_key=cluster_key)
    found = table[table["q_value"] < 0.1].groupby("treatment").size()
    assert found.get("CD86", 0) == 0
    assert found["STAT1"] > 30
