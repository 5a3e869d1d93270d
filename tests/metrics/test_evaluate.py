"""One table of scores: what is compared with what, and what may not be seen."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scvci
from scvci import metrics
from scvci.metrics._experiment import read_strata

COLUMNS = [
    "treatment",
    "stratum",
    "pair",
    "method",
    "kind",
    "metric",
    "value",
    "higher_is_better",
    "n_cells",
    "best_baseline",
    "best_baseline_value",
    "baseline_wins",
]


@pytest.fixture
def data():
    """A simulation whose truth serves as the prediction; (TNFa, B) was not measured."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=600,
        n_genes=60,
        n_treatments=3,
        n_latent=2,
        depth=1500,
        held_out=[("TNFa", "B")],
        seed=0,
    )
    for t in ("control", "IFNb", "TNFa"):
        _predict(adata, t, adata.layers[f"true_{t}"])
    return adata


def _predict(adata, treatment, values, **record):
    layer = f"cf_{treatment}"
    adata.layers[layer] = values
    adata.uns["scvci"] = {
        **adata.uns.get("scvci", {}),
        layer: {"treatment": treatment, "scale": "expected counts", "n_samples": 0} | record,
    }


def _evaluate(adata, layer=("cf_IFNb", "cf_TNFa"), **arguments):
    return metrics.evaluate(
        adata, layer, **{"covariate_keys": ["cell_type"], "counts_layer": "counts", **arguments}
    )


def _test_cells(adata):
    return np.random.default_rng(0).random(adata.n_obs) < 0.4


def _values(table, metric, method="prediction"):
    rows = table[(table["metric"] == metric) & (table["method"] == method)]
    return rows.set_index(["treatment", "stratum"])["value"]


def test_columns_and_one_row_per_score(data):
    table = _evaluate(data, test=_test_cells(data))
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["treatment", "stratum", "method", "metric"]).any()
    assert set(table["metric"]) <= set(metrics.METRICS)
    assert set(table["method"]) == {
        "prediction",
        "prediction (change)",
        *metrics.BASELINES,
        "mean of the pair",
        "half of the real cells",
    }
    assert (table["higher_is_better"] == table["metric"].map(metrics.METRICS)).all()
    # Without cells there is nothing to compare with.
    assert ("TNFa", "B") not in _values(table, "r2_delta").index
    assert len(_values(table, "r2_delta")) == 5


def test_real_cells_by_hand(data):
    test = _test_cells(data)
    table = _evaluate(data, test=test)
    stratum = (data.obs["cell_type"] == "B").to_numpy()
    control = stratum & (data.obs["treatment"] == "control").to_numpy()
    treated = stratum & (data.obs["treatment"] == "IFNb").to_numpy()
    counts = data.layers["counts"]
    m, c = metrics.pseudobulk(counts[treated & test]), metrics.pseudobulk(counts[control & ~test])
    guess = metrics.pseudobulk(data.layers["cf_IFNb"][control])
    own = metrics.pseudobulk(data.layers["cf_control"][control])
    assert _values(table, "r2_delta")["IFNb", "B"] == pytest.approx(metrics.r2_delta(m, guess, c))
    assert _values(table, "pearson_delta", "prediction (change)")["IFNb", "B"] == pytest.approx(
        metrics.pearson_delta(m, c + guess - own, c)
    )
    pair = metrics.pseudobulk(counts[treated & ~test])
    assert _values(table, "r2_means", "mean of the pair")["IFNb", "B"] == pytest.approx(
        metrics.r2_means(m, pair)
    )
    rows = table[(table["treatment"] == "IFNb") & (table["stratum"] == "B")]
    assert set(rows["n_cells"]) == {int((treated & test).sum())}
    assert set(rows["pair"]) == {"seen"}


def test_predictions_for_treated_cells_are_not_looked_at(data):
    test = _test_cells(data)
    before = _evaluate(data, test=test)
    treated = (data.obs["treatment"] != "control").to_numpy()
    for layer in ("cf_IFNb", "cf_TNFa", "cf_control"):
        data.layers[layer][treated] = np.nan
    pd.testing.assert_frame_equal(_evaluate(data, test=test), before)


def test_baselines_and_top_genes_come_from_the_other_cells(data, monkeypatch):
    seen = {}

    def spy(reference, guess, original=metrics._pairs.score_means):
        seen.setdefault("guesses", []).append(guess)
        seen.setdefault("top", []).append(reference.top)
        return original(reference, guess)

    monkeypatch.setattr(metrics._pairs, "score_means", spy)
    # The ceiling compares test cells with test cells.
    monkeypatch.setattr(metrics._pairs.PairScorer, "_ceiling", lambda *_: {})
    test = _test_cells(data)
    _evaluate(data, test=test)
    before = {name: np.stack(arrays) for name, arrays in seen.items()}
    seen.clear()
    counts = data.layers["counts"].toarray()
    counts[test] = np.random.default_rng(1).poisson(9, size=(test.sum(), data.n_vars))
    data.layers["counts"] = counts
    _evaluate(data, test=test)
    for name, arrays in seen.items():
        np.testing.assert_array_equal(np.stack(arrays), before[name])


def test_held_out_pairs_and_the_truth(data):
    truth = {t: f"true_{t}" for t in ("control", "IFNb", "TNFa")}
    table = _evaluate(data, truth=truth)
    assert set(table.loc[table["pair"] == "held out", "stratum"]) == {"B"}
    assert set(table.loc[table["pair"] == "held out", "treatment"]) == {"TNFa"}
    for metric in ("ite_corr", "r2_delta", "pearson_delta_systema", "pds_cosine", "r2_variances"):
        np.testing.assert_allclose(_values(table, metric), 1, err_msg=metric)
    for metric in ("mse", "mse_top50", "pehe", "l2_top1000"):
        np.testing.assert_allclose(_values(table, metric), 0, atol=1e-9, err_msg=metric)
    np.testing.assert_allclose(_values(table, "mmd"), 0, atol=1e-9)
    for name in metrics.BASELINES:
        assert (_values(table, "ite_corr", name) == 0).all()
    assert not table.loc[table["kind"] == "model", "baseline_wins"].any()
    last = metrics.verdict(table).splitlines()[-2:]
    assert "and behind it in 0 of" in last[-1]
    assert last[-1].endswith("Use it.")


def test_the_spread_of_cells_needs_sampled_counts(data):
    test = _test_cells(data)
    spread = {"r2_variances", "energy_distance", "mmd", "covariance_error", "de_jaccard"}
    expected = _evaluate(data, test=test)
    assert not spread & set(expected.loc[expected["kind"] == "model", "metric"])
    rng = np.random.default_rng(0)
    for t in ("control", "IFNb", "TNFa"):
        _predict(data, t, rng.poisson(data.layers[f"true_{t}"]), n_samples=1)
    sampled = _evaluate(data, test=test)
    assert spread <= set(sampled.loc[sampled["method"] == "prediction", "metric"])
    assert (_values(sampled, "mmd") < _values(sampled, "mmd", "no change")).all()
    assert (
        _values(sampled, "energy_distance") < _values(sampled, "energy_distance", "no change")
    ).all()


def test_scale_does_not_matter_and_log1p_is_taken_back(data):
    test = _test_cells(data)
    before = _values(_evaluate(data, test=test), "r2_delta")
    for t in ("control", "IFNb", "TNFa"):
        _predict(data, t, np.log1p(3 * data.layers[f"true_{t}"]), scale="log1p of expected counts")
    np.testing.assert_allclose(_values(_evaluate(data, test=test), "r2_delta"), before, rtol=1e-4)


def test_own_cells_in_another_adata(data):
    test = _test_cells(data)
    before = _evaluate(data, test=test)
    controls = data[(data.obs["treatment"] == "control").to_numpy()].copy()
    real = AnnData(data.layers["counts"], obs=data.obs, var=data.var)
    after = _evaluate(real, predicted=controls, test=test, counts_layer=None)
    pd.testing.assert_frame_equal(after, before)


def test_ways_to_name_layers_and_test_cells(data):
    test = _test_cells(data)
    data.obs["is_test"] = test
    before = _evaluate(data, "cf_IFNb", test=test)
    assert set(before["treatment"]) == {"IFNb"}
    names = {"IFNb": "cf_IFNb", "control": "cf_control"}
    pd.testing.assert_frame_equal(_evaluate(data, names, test="is_test"), before)
    pd.testing.assert_frame_equal(_evaluate(data, "cf_IFNb", test=np.flatnonzero(test)), before)
    # Without the control's prediction there is no predicted change.
    del data.layers["cf_control"]
    assert "prediction (change)" not in set(_evaluate(data, "cf_IFNb", test=test)["method"])


def test_a_fit_is_called_a_fit(data):
    with pytest.warns(UserWarning, match="how well the model fits"):
        table = _evaluate(data)
    assert "mean of the pair" not in set(table["method"])


def test_a_single_measured_stratum_does_not_predict_itself(data):
    keep = ~((data.obs["treatment"] == "TNFa") & (data.obs["cell_type"] != "CD14 Mono"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = _evaluate(data[keep.to_numpy()].copy())
    rows = table[(table["treatment"] == "TNFa") & (table["kind"] == "baseline")]
    assert set(rows["method"]) == {"no change"}


def test_no_covariates_and_choice_of_baselines(data):
    table = _evaluate(data, covariate_keys=(), test=_test_cells(data), baselines=["no change"])
    assert set(table["stratum"]) == {"all"}
    assert set(table.loc[table["kind"] == "baseline", "method"]) == {"no change"}
    alone = _evaluate(data, test=_test_cells(data), baselines=False)
    assert set(alone["kind"]) == {"model"}
    assert not alone["baseline_wins"].any()
    assert "There is no baseline" in metrics.verdict(alone)


def test_the_table_says_when_a_baseline_wins(data):
    test = _test_cells(data)
    _predict(data, "IFNb", data.layers["true_control"])
    table = _evaluate(data, "cf_IFNb", test=test)
    own = table[(table["method"] == "prediction") & (table["metric"] == "r2_delta")]
    assert own["baseline_wins"].all()
    assert set(own["best_baseline"]) <= {*metrics.BASELINES, "mean of the pair"}
    best = table[(table["kind"] == "baseline") & (table["metric"] == "r2_delta")]
    expected = best.groupby("stratum")["value"].max()
    assert own.set_index("stratum")["best_baseline_value"].to_dict() == expected.to_dict()
    text = metrics.verdict(table)
    assert "r2_delta (seen): prediction" in text
    assert "BEHIND the best baseline" in text
    assert "prediction is ahead of the best baseline in 0," in text
    assert "the baseline that is named is what to use" in text


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        ({}, {"layer": "cf_X"}, KeyError, "no 'cf_X'.*cf_IFNb"),
        (
            {},
            {"layer": "true_IFNb"},
            ValueError,
            "no record of layer 'true_IFNb'.*treatment: name",
        ),
        ({}, {"layer": ["cf_IFNb", "cf_IFNb"]}, ValueError, "both predict 'IFNb'"),
        ({}, {"layer": "cf_control"}, ValueError, "Only the control's layer"),
        ({}, {"treatment_key": "drug"}, KeyError, "no column 'drug'.*treatment_key"),
        ({}, {"covariate_keys": "cell_type"}, TypeError, "list of columns"),
        ({}, {"control": "contrl"}, ValueError, "'contrl' is not among.*'control'"),
        ({}, {"counts_layer": "cf_IFNb"}, ValueError, "counts_layer.*fractional"),
        ({}, {"test": "nope"}, KeyError, "no column 'nope'.*test"),
        ({}, {"test": "cell_type"}, ValueError, "must be boolean"),
        ({}, {"test": []}, ValueError, "names no cell"),
        ({}, {"truth": {"control": "true_control"}}, ValueError, r"no layer for \['IFNb'"),
        ({}, {"baselines": ["mean"]}, ValueError, r"\['mean'\] are unknown.*additive"),
        ({}, {"min_cells": 10_000}, ValueError, "no pair to score.*min_cells=10000"),
        (
            {"scale": "scale of the training data"},
            {},
            ValueError,
            "'cf_IFNb'.*likelihood 'normal'",
        ),
    ],
)
def test_errors_name_what_is_missing(data, change, arguments, error, message):
    _predict(data, "IFNb", data.layers["true_IFNb"], **change)
    with pytest.raises(error, match=message):
        _evaluate(data, **{"test": _test_cells(data), **arguments})


def test_missing_and_negative_predictions(data):
    data.layers["cf_IFNb"][:, 3] = np.nan
    with pytest.raises(ValueError, match="'cf_IFNb'.*missing, infinite or negative"):
        _evaluate(data, "cf_IFNb", test=_test_cells(data))
    with pytest.raises(ValueError, match="genes of predicted"):
        _evaluate(data, predicted=data[:, ::-1].copy(), test=_test_cells(data))


def test_doses_and_combinations_are_treatments_of_their_own():
    adata = scvci.datasets.simulate_screen(
        n_cells=600, n_genes=30, n_members=2, doses=(0.1, 1.0), n_combinations=1, seed=0
    )
    arms = ["control", "drug_1@0.1", "drug_1@1", "drug_1@1+drug_2@1"]
    for arm in arms:
        _predict(adata, arm, adata.layers[f"true_{arm}"])
    adata.obs["treatment"] = (
        adata.obs["treatment"].astype(str).replace("drug_1+drug_2", "drug_2+drug_1")
    )
    layers = [f"cf_{arm}" for arm in arms]
    written = {"dose_key": "dose", "separator": "+"}
    table = _evaluate(adata, layers, test=np.arange(0, 600, 2), baselines=False, **written)
    assert set(table["treatment"]) == set(arms[1:])
    scores = table[table["metric"] == "r2_delta"].groupby("treatment")["value"].mean()
    assert (scores > 0.5).all()
    with pytest.raises(KeyError, match="dose_key"):
        _evaluate(adata, layers, test=np.arange(300), dose_key="mg", separator="+")


def test_strata_from_columns_in_an_index(adata):
    columns = adata.obs.columns[adata.obs.columns == "cell_type"]
    np.testing.assert_array_equal(
        read_strata(adata, columns), adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    )
