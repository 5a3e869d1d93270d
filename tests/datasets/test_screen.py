"""Doses, combinations and features of a simulated screen are what they are said to be."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvci.datasets import simulate_screen

SMALL = {"n_cells": 400, "n_genes": 40}
DOSES = (0.1, 0.3, 1.0, 3.0)


def _log_change(adata, arm, reference="control"):
    """Log-ratio of rates in two arms up to a constant of the cell, which softmax takes away."""
    change = np.log(adata.layers[f"true_{arm}"]) - np.log(adata.layers[f"true_{reference}"])
    return change - change.mean(axis=1, keepdims=True)


def _arms(adata):
    return list(adata.uns["simulation"]["arms"]["arm"])


def test_seeded():
    a, b, c = (simulate_screen(**SMALL, n_combinations=2, seed=s) for s in (1, 1, 2))
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs)
    assert _arms(a) == _arms(b)
    for arm in _arms(a):
        np.testing.assert_array_equal(a.layers[f"true_{arm}"], b.layers[f"true_{arm}"])
    assert (a.X != c.X).nnz > 0


def test_one_dose():
    adata = simulate_screen(**SMALL, n_members=3, n_combinations=3)
    pairs = {"drug_1+drug_2", "drug_1+drug_3", "drug_2+drug_3"}
    assert set(_arms(adata)) == {"control", "drug_1", "drug_2", "drug_3", *pairs}
    assert set(adata.obs["treatment"]) == set(_arms(adata))
    doses = adata.obs.groupby("treatment", observed=True)["dose"].unique().map(list)
    assert doses["control"] == ["0"]
    assert doses["drug_2"] == ["1"]
    assert doses["drug_1+drug_3"] == ["1+1"]
    for arm in _arms(adata):
        total = adata.layers[f"true_{arm}"].sum(1)
        np.testing.assert_allclose(total, adata.obs["library_size"], rtol=1e-4)


def test_names_of_doses_and_combinations():
    adata = simulate_screen(**SMALL, n_members=11, doses=(10, 0.5), n_combinations=55)
    arms = adata.uns["simulation"]["arms"].set_index("arm")
    assert {"drug_1@0.5", "drug_1@10", "drug_10@10+drug_2@10"} <= set(arms.index)
    assert arms.index.is_unique
    assert len(arms) == 1 + 22 + 55
    assert arms.loc["drug_10@10+drug_2@10"].tolist() == ["drug_10+drug_2", "10+10"]
    assert arms.loc["drug_1@0.5"].tolist() == ["drug_1", "0.5"]


def test_arms_are_balanced_and_control_is_larger():
    adata = simulate_screen(n_cells=1000, n_genes=10, n_members=9)
    sizes = adata.obs["treatment"].value_counts()
    # Nine arms of one share each, the control of three.
    assert sizes["control"] == 250
    assert sizes.drop("control").isin([83, 84]).all()


def _sizes(adata, member, doses):
    """Effects at each dose as multiples of that at the largest; they have one direction."""
    largest = _log_change(adata, f"{member}@{doses[-1]:g}")
    sizes = []
    for dose in doses:
        change = _log_change(adata, f"{member}@{dose:g}")
        sizes.append((change * largest).sum() / (largest**2).sum())
        np.testing.assert_allclose(change, sizes[-1] * largest, atol=1e-3)
    return np.array(sizes)


def test_members_respond_more_to_higher_doses():
    adata = simulate_screen(**SMALL, doses=DOSES, seed=2)
    for member in adata.uns["simulation"]["members"]:
        sizes = _sizes(adata, member, DOSES)
        assert np.all(np.diff(sizes) > 0)
        assert sizes[0] > 0
        assert sizes[-1] == pytest.approx(1)


def test_a_dose_far_below_the_half_maximal_one_does_nothing():
    doses = (1e-6, 1.0)
    adata = simulate_screen(**SMALL, n_members=20, doses=doses)
    ec50 = adata.uns["simulation"]["curves"]["ec50"]
    far = list(ec50.index[ec50 > 1e-3])
    assert far
    for member in far:
        assert abs(_sizes(adata, member, doses)[0]) < 0.01


def test_responses_are_the_stated_curves():
    adata = simulate_screen(**SMALL, doses=DOSES, seed=3)
    curves = adata.uns["simulation"]["curves"]
    for member, (ec50, slope) in curves.iterrows():
        hill = {d: d**slope / (d**slope + ec50**slope) for d in DOSES}
        largest = _log_change(adata, f"{member}@3")
        for dose in DOSES:
            change = _log_change(adata, f"{member}@{dose:g}")
            np.testing.assert_allclose(change, hill[dose] / hill[3.0] * largest, atol=1e-3)
    # Nine in ten half-maximal doses are expected among the doses.
    many = simulate_screen(10_000, 2, n_members=400, doses=DOSES[::3]).uns["simulation"]["curves"]
    assert 0.8 < many["ec50"].between(DOSES[0], DOSES[-1]).mean() < 0.98
    assert many["ec50"].median() == pytest.approx(np.sqrt(0.1 * 3.0), rel=0.2)


@pytest.mark.parametrize("doses", [(1.0,), DOSES])
def test_combination_without_interaction_is_the_sum_of_its_members(doses):
    adata = simulate_screen(**SMALL, doses=doses, n_combinations=4, interaction=0.0)
    pairs = [arm for arm in _arms(adata) if "+" in arm]
    assert len(pairs) == 4
    for pair in pairs:
        total = sum(_log_change(adata, member) for member in pair.split("+"))
        np.testing.assert_allclose(_log_change(adata, pair), total, atol=1e-3)


def test_interaction_is_sparse_and_of_the_stated_size():
    quiet = {"heterogeneity": 0.0, "stratum_interaction": 0.0, "n_cells": 60, "n_genes": 1000}
    adata = simulate_screen(**quiet, n_members=8, n_combinations=28, interaction=0.5)
    alone = [_log_change(adata, m)[0] for m in adata.uns["simulation"]["members"]]
    epistasis = []
    for pair in [arm for arm in _arms(adata) if "+" in arm]:
        total = sum(_log_change(adata, member) for member in pair.split("+"))
        extra = (_log_change(adata, pair) - total)[0]
        epistasis.append(extra - np.median(extra))
    assert np.std(epistasis) / np.std(alone) == pytest.approx(0.5, rel=0.1)
    assert np.mean(np.abs(epistasis) > 1e-3) == pytest.approx(0.25, abs=0.03)


def test_held_out_arms_have_truth_but_no_cell():
    settings = {**SMALL, "doses": DOSES, "n_combinations": 15}
    full = simulate_screen(**settings)
    held_out = ["drug_1@0.3", "drug_1@3+drug_3@3", "drug_2", "drug_4+drug_5"]
    adata = simulate_screen(**settings, held_out=held_out)
    absent = {"drug_1@0.3", "drug_1@3+drug_3@3", "drug_4@3+drug_5@3"}
    absent |= {f"drug_2@{d:g}" for d in DOSES}
    assert set(adata.uns["simulation"]["held_out"]) == absent
    received = adata.obs[["treatment", "dose"]].astype(str).agg(tuple, axis=1)
    for arm, treatment, dose in adata.uns["simulation"]["arms"].itertuples(index=False):
        assert ((treatment, dose) in set(received)) == (arm not in absent)
        np.testing.assert_array_equal(adata.layers[f"true_{arm}"], full.layers[f"true_{arm}"])
    assert "drug_2" not in adata.obs["treatment"].cat.categories
    assert "drug_2+drug_3" in adata.obs["treatment"].cat.categories


def test_more_combinations_leave_the_rest_as_it_is():
    few, many = (simulate_screen(**SMALL, n_combinations=n) for n in (2, 6))
    assert _arms(few) == _arms(many)[: len(_arms(few))]
    for arm in _arms(few):
        np.testing.assert_array_equal(few.layers[f"true_{arm}"], many.layers[f"true_{arm}"])


def test_features_predict_effects():
    explained = {}
    for share in (0.0, 0.8, 1.0):
        adata = simulate_screen(
            400,
            300,
            n_members=60,
            n_features=3,
            feature_share=share,
            heterogeneity=0.0,
            stratum_interaction=0.0,
        )
        features = adata.uns["simulation"]["features"]
        assert list(features.columns) == ["f0", "f1", "f2"]
        effects = np.stack([_log_change(adata, member)[0] for member in features.index])
        centred = effects - effects.mean(axis=0)
        design = np.column_stack([features, np.ones(60)])
        residual = effects - design @ np.linalg.lstsq(design, effects, rcond=None)[0]
        # Adjusted for what three features explain by chance.
        unexplained = (residual**2).sum() / 56 / ((centred**2).sum() / 59)
        explained[share] = 1 - unexplained
    assert explained[0.0] == pytest.approx(0.0, abs=0.05)
    assert explained[0.8] == pytest.approx(0.8, abs=0.1)
    assert explained[1.0] == pytest.approx(1.0, abs=1e-3)
    assert "features" not in simulate_screen(**SMALL).uns["simulation"]


def test_counts_have_the_expected_mean():
    ratios = []
    for seed in range(5):
        adata = simulate_screen(1000, 40, n_combinations=3, n_batches=2, seed=seed)
        own = np.empty(adata.shape)
        for treatment in adata.obs["treatment"].cat.categories:
            cells = (adata.obs["treatment"] == treatment).to_numpy()
            own[cells] = adata.layers[f"true_{treatment}"][cells]
        ratios.append(adata.X.sum() / own.sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


def test_batches_shift_all_worlds_alike():
    plain, adata = (simulate_screen(**SMALL, n_batches=n, batch_effect=0.5) for n in (1, 3))
    assert "batch" not in plain.obs
    assert adata.obs["batch"].nunique() == 3
    np.testing.assert_array_equal(plain.obsm["latent"], adata.obsm["latent"])
    change = _log_change(adata, "drug_1")
    np.testing.assert_allclose(change, _log_change(plain, "drug_1"), atol=1e-3)
    shift = np.log(adata.layers["true_control"]) - np.log(plain.layers["true_control"])
    assert (shift - shift.mean(axis=1, keepdims=True)).std() > 0.3


def test_written_and_read(tmp_path):
    adata = simulate_screen(**SMALL, doses=(0.1, 1.0), n_combinations=1, n_features=2)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    read = ad.read_h5ad(tmp_path / "screen.h5ad")
    for key in ("arms", "curves", "features"):
        written = adata.uns["simulation"][key]
        np.testing.assert_array_equal(read.uns["simulation"][key].to_numpy(), written.to_numpy())
    assert list(read.uns["simulation"]["features"].index) == adata.uns["simulation"]["members"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_members": 0}, "n_members=0"),
        ({"n_cells": 5}, "n_cells=5"),
        ({"depth": 0}, "depth=0"),
        ({"n_combinations": 16}, "n_combinations=16.*15 pairs"),
        ({"interaction": -0.1}, "interaction=-0.1"),
        ({"feature_share": 1.5}, "feature_share=1.5"),
        ({"n_features": -1}, "n_features=-1"),
        ({"n_batches": 0}, "n_batches=0"),
        ({"doses": ()}, "doses is empty"),
        ({"doses": (0.0, 1.0)}, "doses has 0;"),
        ({"doses": (1.0, 1.0)}, "doses has 1 twice"),
        ({"held_out": "drug_1"}, r"\['drug_1'\]"),
        ({"held_out": ["drug_11"]}, "'drug_11'.*Nearest: 'drug_1'"),
        ({"held_out": ["control"]}, "'control'"),
        ({"held_out": ["drug_1@0.3"], "doses": (0.1, 1.0)}, "'drug_1@0.3'.*'drug_1@0.1'"),
        ({"held_out": ["drug_1"], "n_members": 1}, "no arm beside the control"),
    ],
)
def test_impossible_screens_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        simulate_screen(**{**SMALL, **arguments})
