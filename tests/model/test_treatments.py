"""Doses, combinations and treatments that were not measured."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import train

from scvci.datasets import simulate_screen
from scvci.model import VCI
from scvci.model._arms import build_arm

_train = partial(train, max_epochs=8)


def _layer(model, *args, cells=None, **kwargs):
    cells = model.adata[:40].copy() if cells is None else cells
    (name,) = model.predict_counterfactual(*args, adata=cells, **kwargs)
    return cells.layers[name], cells.uns["scvci"][name]


def test_names_of_one_condition_are_one_condition(screen):
    pair = screen.adata.uns["simulation"]["arms"].query("treatment.str.contains('+', regex=False)")
    a, b = pair["treatment"].iloc[0].split("+")
    expected, entry = _layer(screen, f"{a}@10+{b}@10")
    assert entry["basis"] == "measured"
    assert entry["dose"] == "10+10"
    for label, dose in ((f"{b}+{a}", "10+10"), (f"{b}@10+{a}@10", None)):
        np.testing.assert_array_equal(_layer(screen, label, dose=dose)[0], expected)
    single, entry = _layer(screen, a, dose=1)
    assert entry["dose"] == 1.0
    for label in (f"{a}@1", f"{a}@1+control", f"control+{a}@1", f"{a}@1+{b}@0"):
        np.testing.assert_array_equal(_layer(screen, label)[0], single)


def test_dose_zero_is_the_control_and_measured_doses_are_met(screen):
    control, _ = _layer(screen, "control")
    np.testing.assert_array_equal(_layer(screen, "drug_1", dose=0)[0], control)
    near, entry = _layer(screen, "drug_1", dose=1e-6)
    assert entry["basis"] == "interpolated dose"
    np.testing.assert_allclose(near, control, rtol=2e-2, atol=1e-4)
    for dose in (0.1, 1.0, 10.0):
        exact, _ = _layer(screen, "drug_1", dose=dose)
        beside, entry = _layer(screen, "drug_1", dose=dose * 1.001)
        assert entry["basis"] == ("interpolated dose" if dose < 10 else "extrapolated dose")
        np.testing.assert_allclose(beside, exact, rtol=2e-2)


def test_a_condition_put_together_from_what_was_measured_equals_it(screen):
    module, arms = screen.module, screen.arms
    for name in ("drug_1@0.1", "drug_2@1", "drug_3@10"):
        [condition] = screen.conditions(name)
        built = build_arm(condition, arms, module, screen.calibration)
        index = arms.find(condition)
        np.testing.assert_allclose(
            built.treatment, module.codes(torch.tensor([index]))[0].detach(), atol=1e-6
        )
        expected = screen.calibration.shift_of(module, index)
        np.testing.assert_allclose(built.shift, expected, atol=1e-5)
        assert built.basis == "measured"


def test_members_add_up_on_the_scale_of_log_rates(screen):
    predictor = {}
    for label in ("control", "drug_1@1", "drug_2@0.1", "drug_1@1+drug_2@0.1"):
        values, entry = _layer(screen, label, library_size=1.0)
        predictor[label] = np.log(values)
    assert entry["basis"] == "sum of members (measured)"
    joint = predictor["drug_1@1+drug_2@0.1"] - predictor["control"]
    parts = sum(predictor[x] - predictor["control"] for x in ("drug_1@1", "drug_2@0.1"))
    difference = joint - parts
    # Rates of a cell sum to one, whatever the treatment: up to a constant of the cell.
    difference -= difference.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(difference, 0, atol=1e-4)


@pytest.mark.parametrize("response", ["linear", "log", "monotone"])
def test_responses_rise_from_zero_to_one(screen, response):
    adata = screen.adata.copy()
    model = _train(
        adata, {"dose_response": response}, max_epochs=1, dose_key="dose", separator="+"
    )
    doses = np.linspace(0, 1, 21)[:, None].repeat(3, axis=1)
    strengths = model.module.response(torch.tensor(doses, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(strengths[[0, -1]], [[0] * 3, [1] * 3], atol=1e-6)
    assert (np.diff(strengths, axis=0) > 0).all()
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()


def test_unknown_responses_are_named(adata):
    with pytest.raises(ValueError, match="dose_response='cubic' is unknown"):
        _train(adata, {"dose_response": "cubic"})


def test_tables_and_columns_of_requests(screen):
    cells = screen.adata[:30].copy()
    table = pd.DataFrame({"treatment": ["drug_1", "drug_2", "control"], "dose": [0.5, 1, 0]})
    layers = screen.predict_counterfactual(table, cells)
    assert layers == [
        "counterfactual_drug_1@0.5",
        "counterfactual_drug_2@1",
        "counterfactual_control",
    ]
    cells.obs["wish"] = (["drug_1@0.5", "drug_2@1", "control"] * 10)[:30]
    (own,) = screen.predict_counterfactual(target_key="wish", adata=cells)
    assert own == "counterfactual_wish"
    for k, layer in enumerate(layers):
        np.testing.assert_allclose(cells.layers[own][k::3], cells.layers[layer][k::3], rtol=1e-5)
    with pytest.raises(ValueError, match="columns 'treatment'"):
        screen.predict_counterfactual(table.rename(columns={"treatment": "drug"}), cells)
    with pytest.raises(ValueError, match="leave treatment="):
        screen.predict_counterfactual("drug_1", cells, target_key="wish")
    with pytest.raises(KeyError, match="'wishes'"):
        screen.predict_counterfactual(target_key="wishes", adata=cells)


def test_a_treatment_without_a_cell_is_predicted_from_its_features(screen):
    cells = screen.adata[:30].copy()
    values, entry = _layer(screen, "new", dose=10, cells=cells)
    assert entry["basis"] == "similar treatments"
    assert np.isfinite(values).all()
    weights = screen.similarity_["weights"]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-8)
    with pytest.raises(ValueError, match="'newer' is unknown"):
        screen.predict_counterfactual("newer@1", cells)


def test_a_dose_has_to_be_given_and_beyond_the_largest_there_is_a_warning(screen):
    with pytest.warns(UserWarning, match="beyond the largest measured dose"):
        screen.predict_counterfactual("drug_1", screen.adata[:5].copy(), dose=100)
    with pytest.raises(ValueError, match="doses 0.1, 1, 10"):
        screen.predict_counterfactual("drug_1")


def test_save_and_load_keep_doses_and_features(screen, tmp_path):
    screen.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    for request in ({"treatment": "drug_1", "dose": 0.5}, {"treatment": "new", "dose": 1}):
        np.testing.assert_array_equal(
            _layer(loaded, **request, cells=screen.adata[:20].copy())[0],
            _layer(screen, **request, cells=screen.adata[:20].copy())[0],
        )
    with_cells = VCI.load(tmp_path / "model", screen.adata.copy(), accelerator="cpu")
    assert with_cells.treatments == screen.treatments


def test_a_matrix_of_members_trains_like_labels():
    adata = simulate_screen(n_cells=300, n_genes=20, n_members=2, n_combinations=1, seed=0)
    by_label = _train(adata.copy(), max_epochs=2, separator="+")
    labels = adata.obs["treatment"].astype(str)
    adata.obsm["given"] = pd.DataFrame(
        {m: labels.str.split("+").map(lambda x, m=m: m in x) for m in ("drug_1", "drug_2")},
        index=adata.obs_names,
    )
    by_matrix = _train(adata, max_epochs=2, treatment_key="given")
    assert by_matrix.treatments == by_label.treatments
    np.testing.assert_array_equal(
        _layer(by_matrix, "drug_1+drug_2")[0], _layer(by_label, "drug_2+drug_1")[0]
    )


def test_draws_keep_the_totals_of_cells(screen):
    cells = screen.adata[:25].copy()
    values, entry = _layer(screen, "drug_1@1", cells=cells, n_samples=1, keep_totals=True)
    values = values.toarray()
    np.testing.assert_array_equal(values.sum(axis=1), cells.X.sum(axis=1).A1)
    assert (values >= 0).all()
    assert "given totals" in entry["scale"]
    fixed, _ = _layer(
        screen, "drug_1@1", cells=cells, n_samples=1, keep_totals=True, library_size=500
    )
    np.testing.assert_array_equal(fixed.toarray().sum(axis=1), 500)
    for wrong in ({}, {"n_samples": 1, "library_size": 0.5}, {"quantiles": 0.5}):
        with pytest.raises(ValueError, match="keep_totals"):
            screen.predict_counterfactual("drug_1@1", cells, keep_totals=True, **wrong)


def test_draws_are_a_submission_that_cell_eval2_accepts(screen):
    """Raw whole counts under each cell's own target; skipped where cell-eval2 is not installed."""
    norm = pytest.importorskip("cell_eval2.norm")
    io = pytest.importorskip("cell_eval2.io")
    real = screen.adata[:200].copy()
    real.obs["arm"] = np.array(screen.treatments, dtype=object)[screen.cells(real).treatment]
    submission = real.copy()
    (layer,) = screen.predict_counterfactual(
        target_key="arm", adata=submission, n_samples=1, keep_totals=True
    )
    submission.X = submission.layers[layer]
    norm.validate_input_type(submission, "counts")
    io.validate_pair(submission, real, pert_col="arm", control="control")
    np.testing.assert_array_equal(submission.X.sum(axis=1), real.X.sum(axis=1))


def test_several_labels_of_the_control_are_one_control(adata, tmp_path):
    labels = adata.obs["treatment"].astype(str).to_numpy(dtype=object)
    one = _train(adata.copy(), max_epochs=2)
    control = np.flatnonzero(labels == "control")
    labels[control[::2]] = "untreated"
    adata.obs["treatment"] = labels
    several = _train(adata, max_epochs=2, control=["control", "untreated"])
    assert several.treatments == one.treatments
    assert several.control == "control"
    several.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    expected, _ = _layer(one, "control")
    for model in (several, loaded):
        for name in ("control", "untreated"):
            values, entry = _layer(model, name, cells=adata[:40].copy())
            assert entry["treatment"] == "control"
            np.testing.assert_array_equal(values, expected)
    with pytest.raises(ValueError, match="'DMSO'"):
        VCI.setup_anndata(adata, control=["control", "DMSO"])
