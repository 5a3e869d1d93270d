"""Effects in the designs that laboratories have: depth, composition, donors, batches."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

from scvci import tl
from scvci.model import VCI


def _counts(rng, log_rate, depth):
    """Overdispersed counts of cells whose expected total is ``depth``."""
    rate = np.exp(log_rate)
    share = rate / rate.sum(axis=1, keepdims=True)
    return rng.poisson(np.reshape(depth, (-1, 1)) * share * rng.gamma(2, 0.5, rate.shape))


def _register(counts, obs, **setup):
    obs = pd.DataFrame(obs, index=[f"cell{i}" for i in range(len(counts))])
    obs["treatment"] = pd.Categorical(np.where(obs.pop("treated"), "drug", "control"))
    adata = AnnData(counts.astype(np.float32), obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, **setup)
    return adata


def _effects(adata, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.estimate_effects(adata, "drug", **arguments)


def _donors(rng, n_donors, n_genes, *, paired, size=60, spread=0.3):
    """Donor and treatment of each cell, and log-rates with donors' own levels; no effect."""
    n_arms = n_donors if paired else 2 * n_donors
    donor = np.repeat(np.arange(n_arms), size)
    treated = rng.random(len(donor)) < 0.5 if paired else donor >= n_donors
    levels = rng.normal(0, spread, (n_arms, n_genes))
    return donor, treated, rng.uniform(-1, 3, n_genes) + levels[donor]


@pytest.mark.parametrize("unit", ["cells", "donors"])
@pytest.mark.parametrize("ratio", [2, 5])
def test_depth_is_not_an_effect(rng, unit, ratio):
    """Treated cells have a half or a fifth of the depth, and nothing else differs."""
    rejected, by_bin = [], []
    for _ in range(3):
        donor, treated, log_rate = _donors(
            rng, 6, 200, paired=False, spread=0.0 if unit == "cells" else 0.3
        )
        counts = _counts(rng, log_rate, np.where(treated, 4000 / ratio, 4000))
        adata = _register(counts, {"treated": treated, "donor": donor.astype(str)})
        table = _effects(adata, cluster_key="donor" if unit == "donors" else None)
        assert (table["depth_ratio"] - 1 / ratio).abs().max() < 0.05
        assert table["note"].str.contains("times the depth").all()
        p_value = table["p_value"].to_numpy()
        rejected.append(p_value < 0.05)
        by_bin.append(np.digitize(table["mean_counterfactual"], [10, 40, 100]))
    rejected, by_bin = np.concatenate(rejected), np.concatenate(by_bin)
    # 600 genes: two standard errors are 0.018; of the four bins about 0.036.
    assert rejected.mean() < 0.078
    for b in np.unique(by_bin):
        assert rejected[by_bin == b].mean() < 0.13
    assert _effects(adata, scale="log1p")["note"].str.contains("takes for an effect").all()
    flags = _overlap(adata)
    assert set(flags.loc[flags["treatment"] == "drug", "flag"]) == {"unequal depth"}


def _overlap(adata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.check_overlap(adata)


@pytest.mark.parametrize("cluster_key", [None, "donor"])
def test_a_gene_that_takes_a_third_of_the_library_changes_no_other(rng, cluster_key):
    donor, treated, log_rate = _donors(
        rng, 5, 150, paired=False, spread=0.2 if cluster_key else 0.0
    )
    share = np.exp(log_rate).sum(axis=1)
    log_rate[:, 0] = np.where(treated, np.log(0.5 * share), log_rate[:, 0])
    counts = _counts(rng, log_rate, np.full(len(donor), 3000))
    adata = _register(counts, {"treated": treated, "donor": donor.astype(str)})
    default = _effects(adata, cluster_key=cluster_key)
    given = _effects(adata, cluster_key=cluster_key, normalisation="given")
    assert default["p_value"].iloc[0] < 1e-3
    assert (default["p_value"].iloc[1:] < 0.05).mean() < 0.1
    assert abs(default["estimate"].iloc[1:].median()) < 0.08
    # By library size alone, all others fall.
    assert given["estimate"].iloc[1:].median() < -0.3


def test_uneven_donors_and_rare_genes_give_numbers_without_warnings(rng):
    """Donors of 3 to 300 cells; genes with a handful of counts."""
    size = np.array([3, 300, 20, 5, 150, 12, 40, 3])
    donor = np.repeat(np.arange(8), size)
    treated = donor % 2 == 1
    log_rate = np.tile(np.log(rng.choice([0.001, 0.01, 1, 5], 200)), (len(donor), 1))
    counts = _counts(rng, log_rate, np.full(len(donor), 1000))
    adata = _register(counts, {"treated": treated, "donor": donor.astype(str)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        table = tl.estimate_effects(adata, "drug", cluster_key="donor", min_cells=5)
    tested = table["p_value"].notna()
    assert np.isfinite(table.loc[tested, ["estimate", "std_error", "ci_low", "ci_high"]]).all(None)
    # An interval leaves 0 out where the test rejects.
    outside = (table["ci_low"] > 0) | (table["ci_high"] < 0)
    np.testing.assert_array_equal(outside[tested], table.loc[tested, "p_value"] < 0.05)


def test_donors_are_paired_whether_or_not_they_are_a_covariate(rng):
    donor, treated, log_rate = _donors(rng, 6, 80, paired=True, size=150, spread=0.5)
    slope = rng.normal(0, 0.3, (6, 80))
    log_rate[:, :10] += 1.2 * treated[:, None]
    counts = _counts(rng, log_rate + slope[donor] * treated[:, None], np.full(len(donor), 3000))
    obs = {"treated": treated, "donor": donor.astype(str)}
    apart = _effects(_register(counts, obs), cluster_key="donor")
    as_covariate = _register(counts, obs, categorical_covariate_keys=["donor"])
    blocks = _effects(as_covariate, cluster_key="donor")
    for table in (apart, blocks):
        assert table["p_value"].notna().all()
        assert (table["q_value"].iloc[:10] < 0.1).mean() >= 0.8
        # 70 genes: the standard error is 0.026.
        assert (table["p_value"].iloc[10:] < 0.05).mean() < 0.15
    np.testing.assert_allclose(apart["estimate"], blocks["estimate"], atol=0.15)
    with pytest.warns(UserWarning, match=r"obs\['donor'\] looks like groups"):
        tl.estimate_effects(as_covariate, "drug")


@pytest.mark.parametrize("cluster_key", [None, "donor"])
def test_effects_are_compared_within_batches(rng, cluster_key):
    """Four fifths of the treated are in the second batch, which has rates of its own."""
    n, n_genes = 1200, 60
    donor = np.repeat(np.arange(24), 50)
    batch = donor % 2
    treated = rng.random(n) < np.where(batch == 1, 0.8, 0.2)
    log_rate = rng.uniform(0, 3, n_genes) + batch[:, None] * rng.normal(0, 0.8, n_genes)
    log_rate += 0.05 * rng.normal(size=(24, n_genes))[donor]
    counts = _counts(rng, log_rate, np.full(n, 3000))
    obs = {"treated": treated, "donor": donor.astype(str), "plate": batch.astype(str)}
    told = _effects(_register(counts, obs, batch_key="plate"), cluster_key=cluster_key)
    untold = _effects(_register(counts, obs))
    assert (told["p_value"] < 0.05).mean() < 0.14
    assert (untold["p_value"] < 0.05).mean() > 0.6


def test_a_treatment_that_shares_no_batch_with_the_control_is_said_everywhere(rng):
    treated = np.repeat([False, True], 100)
    counts = _counts(rng, np.zeros((200, 20)), np.full(200, 500))
    obs = {"treated": treated, "plate": treated.astype(str)}
    adata = _register(counts, obs, batch_key="plate")
    with pytest.warns(UserWarning, match=r"share no batch with cells of 'control': \(drug, all\)"):
        VCI.setup_anndata(adata, batch_key="plate")
    table = _effects(adata)
    assert set(table["estimator"]) == {"skipped"}
    assert set(table["note"]) == {"no batch has both treated and reference cells"}
    assert _effects(adata, cluster_key="plate")["note"].str.contains("no batch").all()
    flags = _overlap(adata).set_index("treatment")["flag"]
    assert flags["drug"] == "no common batch"
    assert flags["control"] == ""


def test_wells_in_batches_leave_degrees_of_freedom(rng):
    """Two wells of each arm in three batches: 12 pseudobulks, 3 batches and 1 effect."""
    well = np.repeat(np.arange(12), 40)
    batch, treated = well // 4, well % 2 == 1
    log_rate = rng.uniform(0, 3, 50) + rng.normal(0, 0.5, (3, 50))[batch]
    counts = _counts(rng, log_rate + rng.normal(0, 0.2, (12, 50))[well], np.full(480, 2000))
    obs = {"treated": treated, "well": well.astype(str), "plate": batch.astype(str)}
    adata = _register(counts, obs, batch_key="plate")
    table = _effects(adata, cluster_key="well", moderated=False)
    np.testing.assert_allclose(table["df"], 8.0)
    assert (table["p_value"] < 0.05).mean() < 0.16


@pytest.mark.parametrize("paired", [True, False])
def test_the_count_model_agrees_and_has_the_same_columns(rng, paired):
    pytest.importorskip("pydeseq2")
    donor, treated, log_rate = _donors(rng, 5, 120, paired=paired, size=100)
    effect = np.where(np.arange(120) < 12, 1.0, 0.0)
    counts = _counts(rng, log_rate + treated[:, None] * effect, np.full(len(donor), 3000))
    adata = _register(counts, {"treated": treated, "donor": donor.astype(str)})
    ours = _effects(adata, cluster_key="donor")
    table = _effects(adata, cluster_key="donor", estimator="deseq2")
    assert list(table.columns) == list(ours.columns)
    assert set(table["estimator"]) == {"deseq2"}
    assert (table["q_value"].iloc[:12] < 0.1).mean() > 0.7
    # Twelve genes that rise draw DESeq2's size factors along; the package's less.
    assert (ours["p_value"].iloc[12:] < 0.05).mean() < 0.13
    kept = ours["mean_factual"] > 5
    assert stats.pearsonr(table.loc[kept, "estimate"], ours.loc[kept, "estimate"])[0] > 0.9
    with pytest.raises(ValueError, match="compares clusters"):
        _effects(adata, estimator="deseq2")
    with pytest.raises(ValueError, match="model of counts"):
        _effects(adata, cluster_key="donor", estimator="deseq2", scale="log1p")


def test_options_that_do_not_go_together_are_refused(rng):
    counts = _counts(rng, np.zeros((200, 20)), np.full(200, 500))
    adata = _register(counts, {"treated": np.arange(200) % 2 == 1})
    for arguments, text in (
        ({"cluster_weights": "donors"}, "cluster_weights='donors' must be one of"),
        ({"normalisation": "tmm"}, "normalisation='tmm' must be one of"),
    ):
        with pytest.raises(ValueError, match=text):
            _effects(adata, **arguments)
