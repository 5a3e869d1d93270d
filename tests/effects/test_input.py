"""What cannot be estimated is an error that names it, or a row that says why."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scvci.effects import estimate_effects, leakage_test

TREATMENTS = ["control", "IFNb", "TNFa"]
COLUMNS = [
    *("treatment", "reference", "stratum", "gene", "estimate", "std_error", "df", "ci_low"),
    *("ci_high", "p_value", "q_value", "n_treated", "n_reference", "propensity", "depth_ratio"),
    *("mean_factual", "mean_counterfactual", "estimator", "leakage", "note"),
]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {
        "outcomes": rng.gamma(2.0, size=(400, 5)),
        "treatment": rng.integers(3, size=400),
        "stratum": rng.integers(2, size=400),
        "reference": "control",
        "treatments": TREATMENTS,
        "strata": ["B", "T"],
        "genes": [f"g{i}" for i in range(5)],
    }


def by_stratum(data, **options):
    groups = {"groups": data["stratum"], "group_names": data["strata"]}
    return estimate_effects(**{**data, **groups, **options})


def test_table_has_a_row_per_treatment_group_and_gene(data):
    table = by_stratum(data)
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 2 * 5
    assert table["treatment"].unique().tolist() == ["IFNb", "TNFa"]
    assert table["stratum"].unique().tolist() == ["B", "T"]
    assert set(table["estimator"]) == {"observed"}
    assert not table["leakage"].any()
    assert set(table["note"]) == {""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "contrl"}, "'contrl' is unknown.*Nearest: 'control'"),
        ({"targets": ["IFNg"]}, "'IFNg' is unknown.*Nearest: 'IFNb'"),
        ({"targets": ["control"]}, "'control' is both a target and the reference"),
        ({"targets": ["IFNb", "IFNb"]}, "more than once"),
        ({"targets": []}, "no treatment to compare"),
        ({"treatment": np.zeros(399, dtype=int)}, r"treatment has shape \(399,\)"),
        ({"stratum": np.full(400, 2)}, "stratum has the code 2, but 2 names"),
        ({"stratum": np.full(400, -1)}, "stratum has negative codes"),
        ({"clusters": np.zeros(400)}, "clusters holds float64 values"),
        ({"groups": np.zeros(3, dtype=int)}, r"groups has shape \(3,\)"),
        ({"genes": ["g0"]}, "outcomes has shape"),
        ({"estimand": "atc"}, "estimand='atc'"),
        ({"estimator": "doubly"}, "estimator='doubly'"),
        ({"scale": "log2"}, "scale='log2'"),
        ({"estimator": "robust"}, "estimator='robust' needs predictions"),
        ({"level": 95}, "level=95"),
        ({"leakage_level": 0}, "leakage_level=0"),
        ({"min_cells": 1}, "min_cells=1"),
        ({"min_expressing": -1}, "min_expressing=-1"),
        ({"min_propensity": 1}, "min_propensity=1"),
        ({"prediction_weight": 2}, "prediction_weight=2"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_errors_name_what_is_wrong(data, change, message):
    with pytest.raises(ValueError, match=message):
        estimate_effects(**{**data, **change})


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "NaN"), (-1, "negative")])
def test_values_that_are_not_counts_name_their_gene(data, as_sparse, value, what):
    data["outcomes"][7, 3] = value
    if as_sparse:
        data["outcomes"] = sparse.csr_matrix(data["outcomes"])
    with pytest.raises(ValueError, match=f"'g3' are {what}"):
        estimate_effects(**data, chunk_size=2)


def test_predictions_are_checked(data):
    with pytest.raises(ValueError, match="shape"):
        estimate_effects(**data, estimator="robust", predictions=lambda t, g: np.zeros((3, 5)))
    with pytest.raises(ValueError, match="NaN"):
        estimate_effects(
            **data, estimator="robust", predictions=lambda t, g: np.full((400, 5), np.nan)
        )
    with pytest.raises(ValueError, match="'IFNg' is unknown"):
        leakage_test(
            lambda t, g: np.zeros((400, 5)),
            data["treatment"],
            data["stratum"],
            targets=["IFNg"],
            **{k: data[k] for k in ("treatments", "strata", "genes")},
        )


def test_groups_that_are_too_small_are_skipped_and_say_why(data):
    rows = (data["stratum"] == 0) & (data["treatment"] == 1)
    data["treatment"][np.flatnonzero(rows)[12:]] = 2
    table = by_stratum(data)
    skipped = table[(table["stratum"] == "B") & (table["treatment"] == "IFNb")]
    assert set(skipped["estimator"]) == {"skipped"}
    assert set(skipped["note"]) == {"12 treated cells (min_cells=30)"}
    assert set(skipped["n_treated"]) == {12}
    assert skipped[["estimate", "p_value", "q_value", "mean_factual"]].isna().all(axis=None)
    others = table.drop(skipped.index)
    assert others["p_value"].notna().all()
    assert by_stratum(data, min_cells=10)["p_value"].notna().all()


def test_strata_without_overlap_are_left_out_of_averages(data):
    data["treatment"][(data["stratum"] == 0) & (data["treatment"] == 1)] = 2
    table = estimate_effects(**data)
    average = table[table["treatment"] == "IFNb"]
    share = (data["stratum"] == 0).mean()
    assert set(average["note"]) == {f"without {share:.0%} of cells (B: no treated cells)"}
    alone = by_stratum(data)
    alone = alone[(alone["treatment"] == "IFNb") & (alone["stratum"] == "T")]
    np.testing.assert_allclose(average["estimate"], alone["estimate"])
    # No cell of that stratum was treated: the effect on the treated leaves out nothing.
    treated = estimate_effects(**data, estimand="att")
    assert set(treated["note"]) == {""}


def test_low_propensity_leaves_strata_out(data):
    table = by_stratum(data, min_propensity=0.9)
    assert set(table["estimator"]) == {"skipped"}
    assert table["note"].str.contains("min_propensity=0.9").all()


def test_nothing_in_common_is_skipped(data):
    data["treatment"] = np.where(data["stratum"] == 0, 0, 1)
    table = estimate_effects(**data, targets=["IFNb"])
    assert set(table["estimator"]) == {"skipped"}
    assert "B: no treated cells, T: no reference cells" in table["note"][0]


def test_one_cluster_is_skipped(data):
    clusters = np.where(data["treatment"] == 1, 0, np.arange(400) % 5)
    table = by_stratum(data, clusters=clusters)
    skipped = table[table["treatment"] == "IFNb"]
    assert set(skipped["note"]) == {"one cluster of treated cells"}
    assert table.loc[table["treatment"] == "TNFa", "p_value"].notna().all()


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("scale", ["log1p", "lfc"])
def test_constant_genes_have_no_interval(data, clustered, scale):
    data["outcomes"][:, 0], data["outcomes"][:, 1] = 0.1, 0.0
    clusters = np.arange(400) % 7 if clustered else None
    table = by_stratum(data, scale=scale, clusters=clusters).set_index("gene")
    assert table.loc["g0", "p_value"].isna().all()
    assert table.loc["g0", "note"].str.contains("constant").all()
    np.testing.assert_allclose(table.loc["g0", "estimate"], 0, atol=1e-12)
    assert table.loc["g1", ["p_value", "std_error", "q_value"]].isna().all(axis=None)
    assert table.loc["g1", "note"].str.contains("no ratio" if scale == "lfc" else "const").all()
    assert table.loc["g2", "p_value"].notna().all()


@pytest.mark.parametrize("estimand", ["ate", "att"])
def test_plugin_is_the_mean_of_predictions(data, estimand):
    predicted = np.random.default_rng(1).random((3, 400, 5))
    table = by_stratum(
        data,
        estimator="plugin",
        estimand=estimand,
        scale="log1p",
        predictions=lambda code, genes: predicted[code][:, genes],
    )
    cells = data["stratum"] == 1
    if estimand == "att":
        cells &= data["treatment"] == 2
    rows = table[(table["treatment"] == "TNFa") & (table["stratum"] == "T")]
    np.testing.assert_allclose(rows["mean_factual"], predicted[2][cells].mean(axis=0))
    np.testing.assert_allclose(rows["mean_counterfactual"], predicted[0][cells].mean(axis=0))
    effect = (predicted[2] - predicted[0])[cells].mean(axis=0)
    np.testing.assert_allclose(rows["estimate"], effect)
    assert rows[["std_error", "df", "ci_low", "p_value", "q_value"]].isna().all(axis=None)
    assert set(rows["note"]) == {"model-based; no design-based interval"}


def test_unmeasured_pairs_are_extrapolated_and_labelled(data):
    data["treatment"][(data["stratum"] == 0) & (data["treatment"] == 1)] = 2
    predicted = np.random.default_rng(2).random((3, 400, 5))
    table = by_stratum(
        data, scale="log1p", predictions=lambda code, genes: predicted[code][:, genes]
    )
    unmeasured = (table["stratum"] == "B") & (table["treatment"] == "IFNb")
    assert set(table.loc[unmeasured, "estimator"]) == {"extrapolation"}
    assert table.loc[unmeasured, "note"].str.contains("no design-based interval").all()
    effect = (predicted[1] - predicted[0])[data["stratum"] == 0].mean(axis=0)
    np.testing.assert_allclose(table.loc[unmeasured, "estimate"], effect)
    assert table.loc[unmeasured, ["std_error", "df", "ci_low", "p_value"]].isna().all(axis=None)
    assert set(table.loc[~unmeasured, "estimator"]) == {"observed"}
    # Asked for measured cells only, or for the effect on cells that do not exist, there is none.
    only = by_stratum(data, estimator="observed", predictions=lambda code, genes: predicted[code])
    assert set(only.loc[unmeasured, "estimator"]) == {"skipped"}
    treated = by_stratum(
        data, estimand="att", predictions=lambda code, genes: predicted[code][:, genes]
    )
    assert set(treated.loc[unmeasured, "estimator"]) == {"skipped"}
    assert "no effect on the treated" in treated.loc[unmeasured, "note"].iloc[0]


def test_groups_without_cells_are_skipped(data):
    table = by_stratum(data, group_names=["B", "T", "NK"])
    assert set(table.loc[table["stratum"] == "NK", "note"]) == {"no cells"}
