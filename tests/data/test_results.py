"""What is written into an AnnData, and what is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scvci._version import __version__
from scvci.data._results import Results, safe_name

_SETUP = {
    "layer": "counts",
    "treatment_key": "drug",
    "dose_key": "dose",
    "size_factor_key": "size",
    "batch_key": "lane",
    "categorical_covariate_keys": ["cell_type"],
    "continuous_covariate_keys": ["age"],
    "treatment_embeddings": "features",
}


@pytest.fixture
def data():
    return anndata.AnnData(np.ones((4, 3), dtype=np.float32))


@pytest.fixture
def results(data):
    return Results(data, _SETUP)


def _value(place):
    return {
        "layers": np.zeros((4, 3)),
        "obs": np.zeros(4),
        "obsm": np.zeros((4, 2)),
        "uns": pd.DataFrame({"a": [1]}),
    }[place]


def _write(results, place="layers", name="result", kind="counterfactual", treatment="A"):
    results.check(place, name, kind, treatment)
    results.write(place, name, _value(place), {"kind": kind, "treatment": treatment})


@pytest.mark.parametrize("place", ["layers", "obs", "obsm", "uns"])
def test_a_result_and_its_record(data, results, place):
    _write(results, place)
    assert "result" in getattr(data, place)
    assert data.uns["scvci"]["result"] == {
        "kind": "counterfactual",
        "treatment": "A",
        "place": place,
        "version": __version__,
    }
    # The same kind for the same treatment may take its place.
    _write(results, place)
    _write(results, place, name="other", treatment="B")
    assert set(results.records) == {"result", "other"}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("layers", "counts"),
        ("obs", "drug"),
        ("obs", "dose"),
        ("obs", "size"),
        ("obs", "lane"),
        ("obs", "cell_type"),
        ("obs", "age"),
        ("obsm", "drug"),
        ("uns", "features"),
        ("uns", "scvci"),
        ("obs", "_scvi_treatment"),
        ("obsm", "_scvi_covariates"),
        ("uns", "_scvi_uuid"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_what_the_model_reads_is_never_overwritten(data, results, place, name, recorded):
    """Whether or not it is there, and whatever a record says of it."""
    if recorded:
        data.uns["scvci"] = {name: {"kind": "k", "treatment": "A", "place": place}}
    with pytest.raises(ValueError, match=rf"{place}\['{name}'\] is registered"):
        results.check(place, name, "k", "A")


@pytest.mark.parametrize("place", ["layers", "obs", "obsm", "uns"])
def test_what_scvci_did_not_write_is_never_overwritten(data, results, place):
    getattr(data, place)["result"] = _value(place)
    with pytest.raises(ValueError, match="exists and was not written by scvci"):
        results.check(place, "result", "counterfactual", "A")


def test_the_same_name_is_free_in_other_places_until_it_is_recorded(data, results):
    data.layers["result"] = np.zeros((4, 3))
    _write(results, "obs")
    with pytest.raises(ValueError, match=r"layers\['result'\] would take over the record of obs"):
        results.check("layers", "result", "counterfactual", "A")
    with pytest.raises(ValueError, match="would take over the record"):
        results.check("obsm", "result", "counterfactual", "A")
    del data.obs["result"]
    # The record is of something that is gone; the user's layer still is the user's.
    results.check("obsm", "result", "counterfactual", "A")
    with pytest.raises(ValueError, match="exists and was not written by scvci"):
        results.check("layers", "result", "counterfactual", "A")


def test_results_of_other_treatments_and_kinds_stay(data, results):
    _write(results)
    with pytest.raises(ValueError, match="holds the counterfactual for 'A'"):
        results.check("layers", "result", "counterfactual", "B")
    for treatment in ("A", None):
        with pytest.raises(ValueError, match="holds the counterfactual for 'A'"):
            results.check("layers", "result", "interval", treatment)
    # Where any treatment may replace another, the kind alone counts.
    results.check("layers", "result", "counterfactual")
    del data.layers["result"]
    results.check("layers", "result", "interval", "B")


def test_records_that_are_not_ours_are_refused(data, results):
    data.uns["scvci"] = "a note"
    with pytest.raises(ValueError, match=r"uns\['scvci'\] is taken \(str\)"):
        results.check("layers", "result", "counterfactual", "A")
    with pytest.raises(ValueError, match=r"uns\['scvci'\] is taken \(str\)"):
        _write(results)
    assert "result" not in data.layers


def test_records_survive_a_file(data, results, tmp_path):
    _write(results)
    data.write_h5ad(tmp_path / "data.h5ad")
    again = Results(anndata.read_h5ad(tmp_path / "data.h5ad"), _SETUP)
    assert again.records["result"]["treatment"] == "A"
    again.check("layers", "result", "counterfactual", "A")
    with pytest.raises(ValueError, match="holds the counterfactual for 'A'"):
        again.check("layers", "result", "counterfactual", "B")


def test_a_model_without_options_registers_only_its_treatment(data):
    results = Results(data, {"layer": None, "treatment_key": "treatment"})
    assert results.registered == {
        "layers": set(),
        "obs": {"treatment"},
        "obsm": {"treatment"},
        "uns": {"scvci"},
    }


def test_names_without_the_character_that_files_cannot_hold():
    assert safe_name("A/B/C@0.5") == "A_B_C@0.5"
