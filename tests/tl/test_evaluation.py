"""Cross-validation of a model on its own cells: what it may see, and what it leaves alone."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse

import scvci
from scvci import metrics, tl
from scvci.model import VCI
from scvci.tl import _evaluation

QUIET = {"accelerator": "cpu", "max_epochs": 2, "show_progress": False}


def _model(adata, keys=("cell_type",), **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=list(keys))
        return VCI(adata, **{"seed": 0, "n_latent": 3, **arguments})


def _evaluate(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tl.evaluate(model, **{**QUIET, **arguments})


def test_table_folds_and_verdict(adata):
    model = _model(adata)
    table = _evaluate(model, min_cells=5)
    pairs = [pair for fold in table.attrs["folds"] for pair in fold]
    assert sorted(pairs) == sorted((t, x) for t in ("IFNb", "TNFa") for x in model.strata)
    assert list(table.columns[:4]) == ["fold", "treatment", "stratum", "pair"]
    assert set(table["pair"]) == {"held out"}
    methods = {"VCI", "VCI (change)", *metrics.BASELINES, "half of the real cells"}
    assert set(table["method"]) == methods
    scored = table[["treatment", "stratum"]].drop_duplicates()
    assert sorted(map(tuple, scored.to_numpy())) == sorted(pairs)
    for fold, held in enumerate(table.attrs["folds"]):
        rows = table[table["fold"] == fold]
        assert {tuple(p) for p in rows[["treatment", "stratum"]].to_numpy()} == set(held)
    assert table.attrs["split"] == "pairs"
    assert table.attrs["verdict"] == metrics.verdict(table)
    assert "the best baseline" in table.attrs["verdict"]


def test_model_adata_and_generators_are_left_alone(trained):
    model, data = trained
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    before = data.copy()
    history = {name: frame.copy() for name, frame in model.history.items()}
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    n_managers = len(VCI._setup_adata_manager_store)
    first = _evaluate(model, max_folds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert len(VCI._setup_adata_manager_store) == n_managers
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, weights[name])
    assert list(data.layers) == list(before.layers)
    assert list(data.uns) == list(before.uns)
    pd.testing.assert_frame_equal(data.obs, before.obs)
    assert (data.X != before.X).nnz == 0
    assert set(model.history) == set(history)
    assert model.n_trainings_ == 1
    # The seed of the model is the seed of the folds.
    pd.testing.assert_frame_equal(_evaluate(model, max_folds=1), first)


@pytest.mark.parametrize("split", ["pairs", "cells"])
def test_held_out_cells_are_not_seen(adata, monkeypatch, split):
    """Garbage in the held-out cells changes no prediction, no baseline and no choice of genes."""
    calls, seen = [], {"guess": [], "top": []}

    def spy(cells, layers, *, predicted, test, **arguments):
        calls.append((test, {t: predicted.layers[name] for t, name in layers.items()}))
        return metrics.evaluate(cells, layers, predicted=predicted, test=test, **arguments)

    def scores(reference, guess, original=metrics._pairs.score_means):
        seen["guess"].append(guess)
        seen["top"].append(reference.top)
        return original(reference, guess)

    monkeypatch.setattr(_evaluation, "score_layers", spy)
    monkeypatch.setattr(metrics._pairs, "score_means", scores)
    # The ceiling compares held-out cells with held-out cells.
    monkeypatch.setattr(metrics._pairs.PairScorer, "_ceiling", lambda *_: {})
    options = {"max_folds": 1, "split": split, "min_cells": 3}
    first = _evaluate(_model(adata.copy()), **options)
    (held, expected), before = calls.pop(), {k: list(v) for k, v in seen.items()}
    assert held.any()
    assert (adata.obs["treatment"][held] != "control").all()
    spoiled = adata.copy()
    counts = spoiled.layers["counts"].toarray()
    counts[held] = np.random.default_rng(1).poisson(50, size=counts[held].shape)
    spoiled.layers["counts"] = sparse.csr_matrix(counts)
    seen["guess"].clear(), seen["top"].clear()
    second = _evaluate(_model(spoiled), **options)
    for treatment, values in calls[0][1].items():
        np.testing.assert_array_equal(values, expected[treatment])
    for name, arrays in before.items():
        for old, new in zip(arrays, seen[name], strict=True):
            np.testing.assert_array_equal(old, new)
    # The scores do see them.
    assert not np.allclose(first["value"][:5], second["value"][:5])


def test_other_cells_are_seen(adata, monkeypatch):
    """The check above would pass for a model that sees nothing."""
    calls = []

    def spy(cells, layers, *, predicted, **arguments):
        calls.append({t: predicted.layers[name] for t, name in layers.items()})
        return metrics.evaluate(cells, layers, predicted=predicted, **arguments)

    monkeypatch.setattr(_evaluation, "score_layers", spy)
    pairs = [("IFNb", "B")]
    _evaluate(_model(adata.copy()), pairs=pairs, min_cells=5)
    spoiled = adata.copy()
    other = (adata.obs["treatment"] == "IFNb") & (adata.obs["cell_type"] != "B")
    counts = spoiled.layers["counts"].toarray()
    counts[other.to_numpy()] = counts[other.to_numpy()][:, ::-1]
    spoiled.layers["counts"] = sparse.csr_matrix(counts)
    _evaluate(_model(spoiled), pairs=pairs, min_cells=5)
    assert not np.allclose(calls[0]["IFNb"], calls[1]["IFNb"])


def test_fresh_model_has_the_same_settings(adata, monkeypatch):
    made = []
    original = VCI.train

    def spy(self, **arguments):
        made.append(self)
        original(self, **arguments)

    monkeypatch.setattr(VCI, "train", spy)
    model = _model(adata, likelihood="poisson", covariate_term="energy", seed=None)
    _evaluate(model, max_folds=1, min_cells=5, n_samples=1)
    assert made[0] is not model
    assert made[0].config == model.config
    assert made[0].seed_ == model.seed_
    assert made[0].adata.n_obs < adata.n_obs


def test_names_with_slashes_continuous_covariates_and_size_factors(adata):
    data = adata.copy()
    data.obs["treatment"] = data.obs["treatment"].cat.rename_categories({"IFNb": "IFN/b"})
    data.obs["age"] = np.linspace(0, 1, data.n_obs)
    VCI.setup_anndata(
        data,
        layer="counts",
        categorical_covariate_keys=["cell_type"],
        continuous_covariate_keys=["age"],
        size_factor_key="library_size",
    )
    table = _evaluate(VCI(data, n_latent=3, seed=0), pairs=[("IFN/b", "B")], min_cells=5)
    assert set(table["treatment"]) == {"IFN/b"}


def test_a_single_stratum_holds_out_cells_and_says_so(adata):
    model = _model(adata, keys=())
    with pytest.warns(UserWarning, match="Random cells of each pair are held out instead"):
        table = tl.evaluate(model, **QUIET, min_cells=5, max_folds=2)
    assert table.attrs["split"] == "cells"
    assert set(table["pair"]) == {"seen"}
    assert set(table["fold"]) == {0, 1}
    assert "mean of the pair" in set(table["method"])
    with pytest.raises(ValueError, match="no pair to hold out.*split='cells'"):
        _evaluate(model, split="pairs")


def test_cell_folds_part_the_cells(adata):
    model = _model(adata)
    cells = model.cells()
    folds = _evaluation._folds(cells, "cells", None, 3, seed=0)
    held = np.stack([fold.held for fold in folds])
    assert len(held) == 5
    assert (held.sum(axis=0) <= 1).all()
    assert not held[:, cells.treatment == 0].any()
    pair = (cells.treatment == 1) & (cells.stratum == 0)
    sizes = [np.sum(mask & pair) for mask in held]
    assert max(sizes) - min(sizes) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "strata"}, "'strata' must be 'pairs' or 'cells'"),
        ({"pairs": [("IFNg", "B")]}, "Treatment 'IFNg' is unknown.*'IFNb'"),
        ({"pairs": [("control", "B")]}, "control left out"),
        ({"pairs": [("IFNb", "b cell")]}, "Stratum 'b cell' is unknown.*'B'"),
        ({"pairs": [("IFNb", "B")], "split": "cells"}, "split='cells' takes all"),
        ({"pairs": [("IFNb", "B")], "min_cells": 200}, r"\(IFNb, B\) has \d+ cells"),
        ({"min_cells": 200, "split": "pairs"}, "no pair to hold out"),
        ({"min_cells": 200, "split": "cells"}, "reaches min_cells=200"),
        ({"datasplitter_kwargs": {}}, "datasplitter_kwargs"),
        ({"n_samples": 3}, "n_samples=3"),
        ({"max_folds": 0}, "max_folds=0"),
    ],
)
def test_errors(adata, arguments, message):
    with pytest.raises(ValueError, match=message):
        _evaluate(_model(adata), **arguments)


def test_normal_likelihood_and_last_pair_are_refused(adata):
    data = adata.copy()
    data.layers["counts"] = data.layers["counts"].log1p()
    with pytest.raises(ValueError, match="likelihood='normal'"):
        _evaluate(_model(data, likelihood="normal"))
    keep = ~((adata.obs["treatment"] == "TNFa") & (adata.obs["cell_type"] != "B"))
    model = _model(adata[keep.to_numpy()].copy())
    with pytest.raises(ValueError, match="the only one of 'TNFa'"):
        _evaluate(model, pairs=[("TNFa", "B")], min_cells=5)
    assert all(
        t == "IFNb" for fold in _evaluate(model, min_cells=5).attrs["folds"] for t, _ in fold
    )


def test_loaded_without_cells(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model")
    loaded = VCI.load(tmp_path / "model", adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="without cells"):
        tl.evaluate(loaded)


def test_global_seed_is_left_alone(adata):
    scvi.settings.seed = 11
    _evaluate(_model(adata), max_folds=1, min_cells=5)
    assert scvi.settings.seed == 11
    assert scvci.model.VCI is VCI


def test_evaluation_is_by_arm(screen):
    table = tl.evaluate(screen, max_folds=1, max_epochs=1, show_progress=False, accelerator="cpu")
    assert all("@" in name for name in set(table["treatment"]))
