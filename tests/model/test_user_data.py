"""Data as users have them: names, doses, scales and containers that broke once."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scvci import tl
from scvci.model import VCI

_QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def _make(n=240, treats=("control", "A", "B"), seed=0, g=12):
    """Counts of 12 genes; each treatment raises two genes of its own threefold."""
    rng = np.random.default_rng(seed)
    treatment = rng.choice(treats, n)
    rate = np.tile(rng.gamma(2, 2, g), (n, 1))
    for i, name in enumerate(treats[1:]):
        rate[treatment == name, 2 * i : 2 * i + 2] *= 3
    obs = pd.DataFrame(
        {"treatment": treatment, "cell_type": rng.choice(["x", "y"], n)},
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(g)])
    return ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=var)


def _fit(adata, max_epochs=1, train=None, **setup):
    VCI.setup_anndata(adata, **{"categorical_covariate_keys": ["cell_type"], **setup})
    model = VCI(adata, n_latent=2, architecture={"n_hidden": 8}, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=max_epochs, **_QUIET, **(train or {}))
    return model


@pytest.fixture(scope="module")
def model():
    """A model that tests do not write to."""
    return _fit(_make())


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, a: m.predict_counterfactual("A", a),
        lambda m, a: m.get_latent_representation(a),
        lambda m, a: m.get_normalized_expression(a),
        lambda m, a: m.posterior_predictive_sample(a),
        lambda m, a: tl.effect_scores(m, "A", adata=a),
        lambda m, a: tl.estimate_effects(a, "A", model=m),
        lambda m, a: tl.estimate_interactions(a, model=m),
        lambda m, a: tl.check_overlap(a, model=m),
        lambda m, a: tl.rank_genes_counterfactual(m, "A", adata=a),
        lambda m, a: tl.disentanglement_test(m, a, n_permutations=39),
        lambda m, a: tl.predict_interval(m, "A", adata=a, n_samples=4),
        lambda m, a: VCI.load_query_data(a, m),
    ],
)
@pytest.mark.parametrize("fault", ["log-normalised", "NaN", "negative"])
def test_expression_is_checked_wherever_cells_enter(model, ask, fault):
    cells = _make(seed=7)
    if fault == "log-normalised":
        sc.pp.normalize_total(cells)
        sc.pp.log1p(cells)
    else:
        cells.X[3, 4] = np.nan if fault == "NaN" else -5
    before = cells.copy()
    with pytest.raises(ValueError, match=r"gene 'g\d+'"):
        ask(model, cells)
    assert list(cells.layers) == list(before.layers)
    assert list(cells.obs.columns) == list(before.obs.columns)


def test_held_out_cells_are_found_by_name_in_any_order(tmp_path):
    adata = _make(400)
    model = _fit(adata, train={"train_size": 0.6, "validation_size": 0.1})
    trained, test = (
        set(adata.obs_names[rows]) for rows in (model.train_indices, model.test_indices)
    )
    model.save(tmp_path / "model")
    order = np.random.default_rng(1).permutation(400)[:300]
    moved = adata[order].copy()
    loaded = VCI.load(tmp_path / "model", moved, accelerator="cpu")
    assert set(moved.obs_names[loaded.train_indices]) == trained & set(moved.obs_names)
    assert set(moved.obs_names[loaded.test_indices]) == test & set(moved.obs_names)
    with pytest.raises(ValueError, match="trained on"):
        tl.predict_interval(loaded, "A", calibration_indices=loaded.train_indices[:3])
    others = _make(100, seed=9)
    others.obs_names = [f"other{i}" for i in range(100)]
    strangers = VCI.load(tmp_path / "model", others, accelerator="cpu")
    assert not len(strangers.train_indices)
    with pytest.raises(ValueError, match="no held-out cells"):
        tl.predict_interval(strangers, "A", n_samples=4)


def test_cells_of_an_earlier_training_calibrate_nothing():
    adata = _make(400)
    model = _fit(adata, train={"train_size": 0.6, "validation_size": 0.1})
    first = {*adata.obs_names[model.train_indices], *adata.obs_names[model.validation_indices]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, train_size=0.6, validation_size=0.1, **_QUIET)
    rows, _ = tl._intervals._calibration_cells(model, None)
    assert len(rows)
    assert not first & set(adata.obs_names[rows])


def test_nothing_registered_or_written_for_another_is_overwritten():
    adata = _make(treats=("control", "A/B", "A_B"))
    adata.layers["counts"] = adata.X.copy()
    adata.layers["mine"] = adata.X.copy()
    model = _fit(adata, layer="counts")
    with pytest.raises(ValueError, match=r"layers\['counts'\] is registered"):
        model.predict_counterfactual("A/B", layer_added="counts")
    with pytest.raises(ValueError, match="not written by scvci"):
        model.predict_counterfactual("A/B", layer_added="mine")
    with pytest.raises(ValueError, match=r"obs\['cell_type'\] is registered"):
        tl.effect_scores(model, "A/B", key_added="cell_type")
    with pytest.raises(ValueError, match="registered"):
        tl.rank_genes_counterfactual(model, "A/B", key_added="scvci")
    adata.uns["neighbors"] = {"mine": 1}
    with pytest.raises(ValueError, match="not written by scvci"):
        tl.rank_genes_counterfactual(model, "A/B", key_added="neighbors")
    [name] = model.predict_counterfactual("A/B")
    first = adata.layers[name].copy()
    with pytest.raises(ValueError, match="counterfactual for 'A/B'"):
        model.predict_counterfactual("A_B")
    key = tl.effect_scores(model, "A/B")
    with pytest.raises(ValueError, match="effect score for 'A/B'"):
        tl.effect_scores(model, "A_B")
    assert adata.obs[key].notna().all()
    model.predict_counterfactual("A/B")  # its own result may be renewed
    np.testing.assert_array_equal(adata.layers[name], first)
    assert model.predict_counterfactual("A_B", layer_added="other") == ["other"]


def test_intervals_do_not_overwrite_what_is_registered():
    adata = _make(400)
    adata.layers["counts_low"] = adata.X.copy()
    model = _fit(adata, layer="counts_low", train={"train_size": 0.6, "validation_size": 0.1})
    with pytest.raises(ValueError, match=r"layers\['counts_low'\] is registered"):
        tl.predict_interval(model, "A", n_samples=4, layer_added="counts")


def test_uns_of_the_user_is_named():
    adata = _make()
    model = _fit(adata)
    adata.uns["scvci"] = "my notes"
    with pytest.raises(ValueError, match=r"uns\['scvci'\] is taken"):
        model.predict_counterfactual("A")
    assert adata.uns["scvci"] == "my notes"


@pytest.mark.parametrize(
    ("doses", "names"),
    [
        ((1e5, 1e6), ["A@100000", "A@1000000"]),
        ((1e-6, 2.5e-7), ["A@0.00000025", "A@0.000001"]),
        ((1.2345678, 1.2345679), ["A@1.2345678", "A@1.2345679"]),
        ((1e20, 1e-12), ["A@1e-12", "A@1e20"]),
    ],
)
def test_doses_of_any_size(doses, names):
    adata = _make(treats=("control", "A"))
    dose = np.random.default_rng(5).choice(doses, adata.n_obs)
    adata.obs["dose"] = np.where(adata.obs["treatment"] == "control", 0.0, dose)
    model = _fit(adata, dose_key="dose")
    assert sorted(model.treatments[1:]) == names
    layers = [f"counterfactual_{name}" for name in model.treatments]
    assert model.predict_counterfactual() == layers
    for value in doses:
        [layer] = model.predict_counterfactual("A", dose=value)
        assert layer in layers
        for text in (f"A@{value!r}", f"A@{value:.16e}"):
            assert model.predict_counterfactual(text) == [layer]
    between = float(np.mean(doses))
    [layer] = model.predict_counterfactual("A", dose=between, layer_added="between")
    assert adata.uns["scvci"][layer]["basis"] == "interpolated dose"
    assert adata.uns["scvci"][layer]["dose"] == between


def test_doses_of_a_matrix():
    adata = _make()
    largest = {"A": 1e6, "B": 5e5}
    screen = {name: (adata.obs["treatment"] == name) * dose for name, dose in largest.items()}
    adata.obsm["screen"] = pd.DataFrame(screen, index=adata.obs_names)
    model = _fit(adata, treatment_key="screen")
    assert model.treatments == ["control", "A@1000000", "B@500000"]
    assert model.predict_counterfactual("A") == ["counterfactual_A@1000000"]


@pytest.mark.parametrize("separator", ["+", "-", " & "])
def test_combinations_of_doses_with_exponents(separator):
    adata = _make()
    joint = separator.join(["A", "B"])
    is_joint = np.arange(adata.n_obs) % 4 == 0
    label = adata.obs["treatment"].to_numpy(dtype=object)
    dose = np.where(label == "control", "0", "1e-06").astype(object)
    label[is_joint], dose[is_joint] = joint, separator.join(["1e-06", "2e+06"])
    adata.obs["treatment"], adata.obs["dose"] = label, dose
    adata.obs["treatment"] = adata.obs["treatment"].astype(str)
    model = _fit(adata, dose_key="dose", separator=separator)
    name = separator.join(["A@0.000001", "B@2000000"])
    assert name in model.treatments
    for parts in (["A@1e-06", "B@2e+06"], ["B@2e6", "A@1e-6"]):
        asked = separator.join(parts)
        assert model.conditions(asked) == model.conditions(name)


def test_an_at_in_a_name_is_part_of_it():
    adata = _make(treats=("control", "A@high", "B"))
    adata.obs["dose"] = (adata.obs["treatment"] != "control").astype(float)
    model = _fit(adata, dose_key="dose")
    assert model.predict_counterfactual("A@high") == ["counterfactual_A@high@1"]
    with pytest.raises(ValueError, match="'A' is unknown"):
        model.predict_counterfactual("A@low")


@pytest.mark.parametrize(
    "names",
    [
        lambda column: column.unique(),
        lambda column: column.astype("category").unique(),
        lambda column: column.astype("category").cat.categories,
        lambda column: pd.Series(["A", "B"]),
        lambda column: {"A", "B"},
        lambda column: ("A", "B"),
        lambda column: np.array(["A", "B"]),
        lambda column: dict.fromkeys(["A", "B"]).keys(),
    ],
)
def test_treatments_in_any_container(model, names):
    column = model.adata.obs["treatment"]
    asked = names(column[column != "control"])
    cells = model.adata.copy()
    assert sorted(model.predict_counterfactual(asked, cells)) == [
        "counterfactual_A",
        "counterfactual_B",
    ]
    effects = tl.estimate_effects(cells, asked, min_cells=5)
    assert set(effects["treatment"]) == {"A", "B"}
    assert set(tl.rank_genes_counterfactual(model, asked, adata=cells)["treatment"]) == {"A", "B"}


def test_covariate_keys_in_any_container():
    adata = _make()
    VCI.setup_anndata(adata, categorical_covariate_keys=adata.obs.columns[1:2])
    assert VCI(adata).strata == ["x", "y"]


def test_paths_are_taken_wherever_text_is(model, tmp_path):
    model.save(tmp_path / "model")
    assert VCI.load(tmp_path / "model", False, accelerator="cpu").strata == model.strata
    carried = VCI.load_query_data(_make(seed=1), tmp_path / "model")
    assert carried.strata == VCI.load_query_data(_make(seed=1), str(tmp_path / "model")).strata
    assert isinstance(tmp_path, Path)


def test_counts_in_a_layer_and_no_x():
    counts = _make()
    adata = ad.AnnData(obs=counts.obs, var=counts.var, layers={"counts": counts.X.copy()})
    with pytest.raises(ValueError, match=r"adata.X is empty \(None\). Layers found: 'counts'"):
        VCI.setup_anndata(adata)
    model = _fit(adata, layer="counts")
    assert model.predict_counterfactual("A") == ["counterfactual_A"]
    assert adata.X is None


def test_half_precision():
    adata = _make()
    adata.X = adata.X.astype(np.float16)
    assert _fit(adata).predict_counterfactual("A") == ["counterfactual_A"]
    assert np.isfinite(adata.layers["counterfactual_A"]).all()


@pytest.mark.parametrize(
    ("column", "change"),
    [("treatment", {"A": "B", "B": "A"}), ("cell_type", {"x": "y", "y": "x"})],
)
def test_labels_changed_after_setup_are_noticed(column, change):
    adata = _make()
    VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=0)
    adata.obs[column] = adata.obs[column].replace(change).to_numpy()
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] has changed in \d+ cells"):
        model.train(max_epochs=1, **_QUIET)


@pytest.mark.parametrize(("scale", "what"), [("scaled", "scaled"), ("not logged", "not log")])
def test_normal_likelihood_needs_logarithms(scale, what):
    adata = _make()
    sc.pp.normalize_total(adata, target_sum=1e4)
    if scale == "scaled":
        sc.pp.log1p(adata)
        sc.pp.scale(adata)
    VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    with pytest.raises(ValueError, match=what):
        VCI(adata, likelihood="normal")


def test_cells_outside_indices_are_not_judged(model):
    adata, keep = model.adata.copy(), np.arange(10, 240)
    strange = adata.copy()
    strange.obs["cell_type"] = strange.obs["cell_type"].astype(object)
    strange.obs.iloc[:10, 1] = "weird"
    unlabelled = adata.copy()
    unlabelled.obs["treatment"] = unlabelled.obs["treatment"].astype(object)
    unlabelled.obs.iloc[:10, 0] = np.nan
    broken = adata.copy()
    broken.X[:10] = np.nan
    for cells in (strange, unlabelled, broken):
        with pytest.raises(ValueError, match="weird|missing|nan"):
            model.predict_counterfactual("A", cells)
        [layer] = model.predict_counterfactual("A", cells, indices=keep)
        assert np.isnan(cells.layers[layer][:10]).all()
        assert np.isfinite(cells.layers[layer][10:]).all()
        assert model.get_latent_representation(cells, keep).shape == (230, 2)
        key = tl.effect_scores(model, "A", adata=cells, indices=keep)
        assert cells.obs[key].isna().sum() == 10
    untreated = (adata.obs["treatment"] == "control").to_numpy()
    adata.obs["wish"] = np.where(untreated, "A", None)
    [layer] = model.predict_counterfactual(target_key="wish", adata=adata, indices=untreated)
    np.testing.assert_array_equal(np.isfinite(adata.layers[layer]).all(axis=1), untreated)


def test_indices_keep_their_order_and_repetitions(model):
    whole = model.get_latent_representation()
    np.testing.assert_allclose(
        model.get_latent_representation(indices=[5, 2, 9, 2]), whole[[5, 2, 9, 2]], atol=1e-6
    )
    names = model.adata.obs_names[[7, 1]]
    frame = model.get_normalized_expression(indices=names)
    assert list(frame.index) == list(names)


def test_several_labels_of_one_control():
    adata = _make(treats=("NT1", "NT2", "A"))
    model = _fit(adata, control=["NT1", "NT2"])
    assert model.treatments == ["NT1", "A"]
    assert model.conditions("NT2") == model.conditions("NT1")
    joined = adata.copy()
    joined.obs["treatment"] = joined.obs["treatment"].replace({"NT2": "NT1"})
    for name in ("uns", "obsm"):
        getattr(joined, name).clear()
    one = _fit(joined[:, :].copy(), control="NT1")
    pd.testing.assert_frame_equal(
        tl.estimate_effects(adata, "A", min_cells=5),
        tl.estimate_effects(one.adata, "A", min_cells=5),
    )
    np.testing.assert_array_equal(
        model.get_latent_representation(), one.get_latent_representation()
    )
    with pytest.raises(ValueError, match="'NT3' is not a label"):
        VCI.setup_anndata(_make(treats=("NT1", "NT2", "A")), control=["NT1", "NT3"])


def test_messages_name_what_can_be_done_with_new_cells():
    adata = _make()
    adata.obs["dose"] = (adata.obs["treatment"] != "control").astype(float)
    adata.layers["counts"] = adata.X.copy()
    model = _fit(adata, dose_key="dose", layer="counts")
    controls = adata[adata.obs["treatment"] == "control"].copy()
    expected = {
        "treatment": "untreated, add obs\\['treatment'\\] = 'control'",
        "cell_type": "add obs\\['cell_type'\\]",
    }
    for column, message in expected.items():
        cells = controls.copy()
        del cells.obs[column]
        with pytest.raises(KeyError, match=message):
            model.predict_counterfactual("A@1", cells)
        with pytest.raises(KeyError, match=message):
            VCI.load_query_data(cells, model)
    cells = controls.copy()
    del cells.layers["counts"]
    with pytest.raises(KeyError, match="no 'counts'"):
        model.predict_counterfactual("A@1", cells)
    cells = controls.copy()
    del cells.obs["dose"]  # the control needs none
    assert model.predict_counterfactual("A@1", cells) == ["counterfactual_A@1"]
    assert VCI.load_query_data(cells, model).treatments[0] == "control"


def test_messages_show_what_is_wrong_with_a_number():
    adata = _make()
    adata.X = np.expm1(np.log1p(adata.X))
    VCI.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"is \d+\.\d*000\d+\..*round them"):
        VCI(adata)
    logged = _make()
    logged.raw = logged.copy()
    logged.X = np.log1p(logged.X)
    VCI.setup_anndata(logged)
    with pytest.raises(ValueError, match="adata.raw holds counts"):
        VCI(logged)


def test_the_text_of_a_missing_value_is_not_taken_without_a_word():
    adata = _make()
    label = adata.obs["treatment"].astype(object)
    adata.obs["treatment"] = label.where(np.arange(adata.n_obs) > 20, np.nan).map(str)
    with pytest.warns(UserWarning, match="label 'nan' in 21 cells"):
        VCI.setup_anndata(adata)


def test_masks_and_rows_as_objects(model):
    whole = model.get_latent_representation()
    mask = np.arange(model.adata.n_obs) % 7 == 0
    for indices in (mask.astype(object), np.flatnonzero(mask).astype(object)):
        np.testing.assert_allclose(
            model.get_latent_representation(indices=indices), whole[mask], atol=1e-6
        )


def test_indices_without_order_or_name_are_refused(model):
    with pytest.raises(TypeError, match="a set, which has no order"):
        model.get_latent_representation(indices={1, 2})
    with pytest.raises(IndexError, match="must have one dimension"):
        model.get_latent_representation(indices=[[1, 2]])
    cells = _make()
    cells.obs_names = ["same"] * cells.n_obs
    with pytest.raises(ValueError, match="names are not unique"):
        model.get_latent_representation(cells, indices=["same"])


def test_a_negative_batch_size_is_no_empty_layer(model):
    cells = model.adata.copy()
    with pytest.raises(ValueError, match="batch_size=-1 must be at least 1"):
        model.predict_counterfactual("A", cells, batch_size=-1)
    assert "counterfactual_A" not in cells.layers


@pytest.mark.parametrize("name", ["x/y", 5, ("a", "b")])
def test_names_that_files_cannot_hold_are_refused(model, name):
    cells = model.adata.copy()
    for write in (
        lambda: model.predict_counterfactual("A", cells, layer_added=name),
        lambda: tl.effect_scores(model, "A", adata=cells, key_added=name),
        lambda: tl.rank_genes_counterfactual(model, "A", adata=cells, key_added=name),
    ):
        with pytest.raises((TypeError, ValueError), match="must be a text"):
            write()


def test_a_note_of_the_user_among_the_records_is_not_overwritten(model):
    cells = model.adata.copy()
    cells.uns["scvci"] = {"counterfactual_A": "my note"}
    with pytest.raises(ValueError, match="was not written by scvci"):
        model.predict_counterfactual("A", cells)
    assert cells.uns["scvci"] == {"counterfactual_A": "my note"}


def test_a_column_of_targets_named_like_a_treatment_overwrites_nothing():
    adata = _make(treats=("control", "A", "wish"))
    model = _fit(adata)
    model.predict_counterfactual("wish")
    adata.obs["wish"] = "A"
    with pytest.raises(ValueError, match="holds the counterfactual for 'wish'"):
        model.predict_counterfactual(target_key="wish")


def test_cells_set_up_by_a_subclass_are_known():
    class Mine(VCI):
        pass

    adata = _make()
    Mine.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    assert set(tl.estimate_effects(adata, min_cells=5)["treatment"]) == {"A", "B"}


def test_a_model_in_place_of_an_anndata_is_named(model):
    with pytest.raises(TypeError, match="adata= must be an AnnData; got VCI"):
        tl.estimate_effects(model, "A")


def test_cells_that_a_saved_model_refuses_are_left_as_they_were(model, tmp_path):
    model.save(tmp_path / "model")
    cells = _make()
    cells.obs.loc["c3", "cell_type"] = "weird"
    with pytest.raises(ValueError, match="'weird'"):
        VCI.load(tmp_path / "model", cells, accelerator="cpu")
    assert list(cells.obs) == ["treatment", "cell_type"]
    assert not len(cells.uns)
    assert not len(cells.obsm)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_size_factors_are_checked_wherever_cells_enter(value):
    adata = _make()
    adata.obs["sf"] = 1.0
    model = _fit(adata, size_factor_key="sf")
    cells = _make(seed=3)
    cells.obs["sf"] = 1.0
    cells.obs.loc["c5", "sf"] = value
    for ask in (model.predict_counterfactual, lambda a: VCI.load_query_data(a, model)):
        with pytest.raises(
            ValueError, match=r"obs\['sf'\] must be positive, .*; that of cell 'c5'"
        ):
            ask(adata=cells) if ask == model.predict_counterfactual else ask(cells)
    model.predict_counterfactual("A", cells, indices=["c1", "c2"])


def test_binned_values_changed_after_setup_are_noticed():
    adata = _make()
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs)
    VCI.setup_anndata(adata, continuous_covariate_keys=["age"], continuous_strata=2)
    model = VCI(adata, seed=0)
    adata.obs["age"] = adata.obs["age"].to_numpy()[::-1]
    with pytest.raises(ValueError, match=r"obs\['age'\] has changed in \d+ cells"):
        model.train(max_epochs=1, **_QUIET)


def test_intervals_need_training_cells(model):
    cells = _make(100, seed=9)
    cells.obs_names = [f"other{i}" for i in range(100)]
    query = VCI.load_query_data(cells, model)
    with pytest.raises(ValueError, match="none of the cells that it was trained on"):
        tl.predict_interval(query, "A", n_samples=4, calibration_indices=np.arange(50))


def test_an_interrupted_call_writes_nothing(monkeypatch):
    adata = _make(400)
    adata.obs["dose"] = (adata.obs["treatment"] != "control").astype(float)
    setup = {"dose_key": "dose", "train": {"train_size": 0.6, "validation_size": 0.1}}
    model = _fit(adata, **setup)
    before = list(adata.layers), list(adata.obs), sorted(adata.uns)
    bounds, calls = tl._intervals.Predictive.bounds, []

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    def stop_at_second(*args):
        calls.append(1)
        return bounds(*args) if len(calls) == 1 else stop()

    monkeypatch.setattr(tl._intervals.Predictive, "bounds", stop_at_second)
    monkeypatch.setattr(tl._ranking, "rank_effects", stop)
    with pytest.raises(KeyboardInterrupt):
        tl.predict_interval(model, ["A", "B"], n_samples=4)
    with pytest.raises(KeyboardInterrupt):
        tl.rank_genes_counterfactual(model, "A", min_cells=5)
    assert (list(adata.layers), list(adata.obs), sorted(adata.uns)) == before


def test_a_given_split_takes_masks_and_refuses_overlap():
    adata = _make()
    mask = np.arange(adata.n_obs) < 200
    model = _fit(adata, train={"datasplitter_kwargs": {"external_indexing": [mask, ~mask]}})
    np.testing.assert_array_equal(model.train_indices, np.arange(200))
    for parts, message in (
        ([[0, 1, 2], [2, 3]], "more than once"),
        ([[], [1]], "no training cells"),
        ([[0.5, 1]], "not a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            model.train(datasplitter_kwargs={"external_indexing": parts}, max_epochs=1, **_QUIET)
