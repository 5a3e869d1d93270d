"""Saving and loading: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.model import VCI


def _prediction(model, cells):
    model.predict_counterfactual("IFNb", cells)
    return cells.layers["counterfactual_IFNb"]


@pytest.fixture
def saved(trained, tmp_path):
    model, data = trained
    model.save(tmp_path / "model", save_anndata=False)
    return tmp_path / "model"


def test_round_trip_with_and_without_cells(trained, saved):
    model, data = trained
    expected = _prediction(model, data.copy())
    with_cells = VCI.load(saved, data.copy(), accelerator="cpu")
    without = VCI.load(saved, adata=False, accelerator="cpu")
    for loaded in (with_cells, without):
        np.testing.assert_array_equal(_prediction(loaded, data.copy()), expected)
        assert loaded.treatments == model.treatments
        assert loaded.control == "control"
        assert loaded.seed_ == model.seed_
        assert loaded.is_trained_
        np.testing.assert_allclose(
            loaded.history["train_loss"].to_numpy(float),
            model.history["train_loss"].to_numpy(float),
        )
    with pytest.raises(ValueError, match="loaded without cells"):
        without.predict_counterfactual("IFNb")
    with pytest.raises(ValueError, match="loaded without cells"):
        without.train()


def test_saved_cells_come_back(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "m", save_anndata=True)
    loaded = VCI.load(tmp_path / "m", accelerator="cpu")
    assert loaded.adata.n_obs == 300
    loaded.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    assert loaded.n_trainings_ == 2


def test_new_cells_of_fewer_strata_and_treatments(trained, saved):
    model, data = trained
    keep = (data.obs["treatment"] == "control") & (data.obs["cell_type"] == "B")
    controls = data[keep.to_numpy()].copy()
    expected = _prediction(model, data.copy())[keep.to_numpy()]
    loaded = VCI.load(saved, controls, accelerator="cpu")
    np.testing.assert_allclose(_prediction(loaded, controls), expected, rtol=1e-5)


def test_nothing_overwritten_unless_asked(trained, saved):
    model, _ = trained
    with pytest.raises(ValueError, match="overwrite"):
        model.save(saved)
    model.save(saved, overwrite=True)


def test_parts_are_found_by_name_whatever_the_order(trained, saved):
    model, data = trained
    parts = {name: set(data.obs_names[model.part(name)]) for name in ("train", "validation")}
    assert parts["train"]
    assert parts["validation"]
    shuffled = data[np.random.default_rng(0).permutation(300)[:200]].copy()
    loaded = VCI.load(saved, shuffled, accelerator="cpu")
    for name, cells in parts.items():
        found = set(shuffled.obs_names[loaded.part(name)])
        assert found == cells & set(shuffled.obs_names)


def test_wrong_genes_folder_and_class(trained, saved, tmp_path):
    _, data = trained
    with pytest.raises(ValueError, match="model's order"):
        VCI.load(saved, data[:, ::-1].copy())
    with pytest.raises(ValueError, match="No saved model"):
        VCI.load(tmp_path / "nowhere")

    class Other(VCI):
        pass

    with pytest.raises(ValueError, match="not a Other"):
        Other.load(saved, adata=False)


def test_two_data_sets_keep_their_own_treatments(adata):
    first, second = adata.copy(), adata.copy()
    second.obs["treatment"] = second.obs["treatment"].astype(str).replace("IFNb", "drug")
    VCI.setup_anndata(first)
    VCI.setup_anndata(second)
    assert VCI(first).treatments == ["control", "IFNb", "TNFa"]
    assert VCI(second).treatments == ["control", "TNFa", "drug"]
    VCI.setup_anndata(first)
    assert VCI(first).treatments == ["control", "IFNb", "TNFa"]
