"""Layers of quantiles of a cell's draws."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from helpers import without_layers


def test_quantiles_are_those_of_the_draws(trained):
    model, data = trained
    cells = without_layers(data)
    rows = np.arange(40)
    scvi.settings.seed = 1
    draws = model.predict_counterfactual("IFNb", cells, indices=rows, n_samples=60)
    drawn = np.stack([cells.layers[name][rows] for name in draws])
    scvi.settings.seed = 1
    names = model.predict_counterfactual(
        "IFNb", cells, indices=rows, n_samples=60, quantiles=(0.05, 0.5, 0.975)
    )
    assert names == [f"counterfactual_IFNb_q{q}" for q in ("05", "50", "975")]
    for name, q in zip(names, (0.05, 0.5, 0.975), strict=True):
        expected = np.quantile(drawn, q, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(cells.layers[name][rows], expected)
        record = cells.uns["scvci"][name]
        assert (record["quantile"], record["n_samples"]) == (q, 60)
        assert record["scale"] == "quantile of sampled counts at own library size"
    assert np.isnan(cells.layers[names[0]][40:]).all()


def test_quantiles_are_ordered_and_rise_with_the_library_size(trained):
    model, data = trained
    cells = without_layers(data)
    rows = np.arange(60)
    arguments = {"adata": cells, "indices": rows, "quantiles": [0.05, 0.5, 0.95]}
    low, middle, high = (
        cells.layers[n][rows] for n in model.predict_counterfactual("TNFa", **arguments)
    )
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert cells.uns["scvci"]["counterfactual_TNFa_q95"]["n_samples"] == 100
    layers = model.predict_counterfactual(
        "TNFa", **arguments, library_size=1e5, layer_added="large"
    )
    assert layers == ["large_q05", "large_q50", "large_q95"]
    assert (cells.layers["large_q50"][rows].mean() / middle.mean()) > 30


def test_quantiles_commute_with_the_logarithm_and_repeat_by_seed(trained):
    model, data = trained
    cells = without_layers(data)
    arguments = {"adata": cells, "indices": np.arange(30), "quantiles": 0.9}
    written = []
    for name, log1p, seed in (("a", False, 3), ("b", True, 3), ("c", False, 4)):
        scvi.settings.seed = seed
        (layer,) = model.predict_counterfactual("IFNb", layer_added=name, log1p=log1p, **arguments)
        written.append(cells.layers[layer][:30])
    np.testing.assert_allclose(np.log1p(written[0]), written[1], rtol=1e-6)
    assert (written[0] != written[2]).any()
    assert cells.uns["scvci"]["b_q90"]["scale"].startswith("log1p of quantile")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"quantiles": (0.0, 0.5)}, r"quantiles=\(0\.0, 0\.5\)"),
        ({"quantiles": 1.0}, "strictly between"),
        ({"quantiles": ()}, "strictly between"),
        ({"quantiles": (0.5, 0.5)}, "more than once"),
        ({"quantiles": 0.001}, "at least 1000"),
        ({"quantiles": 0.05, "n_samples": 10}, "at least 20"),
        ({"quantiles": 0.05, "n_samples": 0}, "n_samples=0"),
    ],
)
def test_impossible_quantiles_are_refused(trained, arguments, match):
    model, data = trained
    with pytest.raises(ValueError, match=match):
        model.predict_counterfactual("IFNb", without_layers(data), **arguments)
