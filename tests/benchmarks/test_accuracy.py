"""The accuracy benchmark's driver and report, on cases that need no training."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import accuracy  # noqa: E402
import methods  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import report_numbers  # noqa: E402
from cases import REGIMES, simulated  # noqa: E402
from methods import Prediction  # noqa: E402


@pytest.fixture
def small(monkeypatch):
    """A small data set, an absent one, and methods that are perfect, fail and count calls."""
    monkeypatch.setitem(REGIMES, "small", {"n_cells": 200, "n_genes": 30, "n_treatments": 3})
    calls = []

    def absent(seed):
        raise FileNotFoundError("no such data")
        yield

    def failing(case, seed):
        raise ValueError("singular\nmatrix")

    def perfect(case, seed):
        calls.append(seed)
        stratum = case.query.obs["stratum"]
        return Prediction(
            {t: accuracy.log_normalise(v) for t, v in case.truth.items()},
            {
                (t, x): accuracy.pseudobulk(v[(stratum == x).to_numpy()])
                for t, v in case.truth.items()
                for x in stratum.unique()
            },
        )

    monkeypatch.setitem(accuracy.DATASETS, "simulated small", lambda s: simulated("small", s))
    monkeypatch.setitem(accuracy.DATASETS, "absent", absent)
    monkeypatch.setitem(accuracy.METHODS, "perfect", perfect)
    monkeypatch.setitem(accuracy.METHODS, "failing", failing)
    return calls


def test_a_perfect_prediction_has_perfect_scores(small):
    table = accuracy.run_job("simulated small", "perfect", 0, commit="abc")
    assert set(table["pair"]) == {"seen", "held out"}
    for name in ("ite_corr", "r2_delta", "r2_change", "pearson_delta"):
        np.testing.assert_allclose(table[name], 1, atol=1e-6)
    for name in ("mse", "pehe", "rmse"):
        np.testing.assert_allclose(table[name], 0, atol=1e-6)
    assert set(table["scores"].iloc[0].split()) == set(accuracy.METRICS) - {"ceiling"}
    assert set(table["split"]) == {"all"}
    assert set(table["commit"]) == {"abc"}
    assert {"python", "scvci", "torch"} <= set(json.loads(table["versions"].iloc[0]))
    assert '--methods "perfect" --seed-list 0' in table["command"].iloc[0]


@pytest.mark.parametrize(
    ("dataset", "method", "reason"),
    [
        ("simulated small", "failing", "ValueError: singular matrix"),
        ("absent", "perfect", "FileNotFoundError: no such data"),
    ],
)
def test_a_failure_is_a_row(small, dataset, method, reason):
    table = accuracy.run_job(dataset, method, 0)
    assert table["error"].tolist() == [reason]
    assert table[["dataset", "method", "seed"]].values.tolist() == [[dataset, method, 0]]


def _case(**changes):
    """A small simulated case, two of whose pairs are held out."""
    [case] = simulated("small", 0)
    return replace(case, **changes)


def test_a_peer_is_not_asked_for_what_it_cannot_predict(small):
    case = _case()
    for name in peers.PEERS:
        peers.check_supported(case, name)
    held_out = {pair: kind for pair, kind in case.pairs.items() if kind == "held out"}
    with pytest.raises(NotImplementedError, match="CINEMA-OT cannot predict for pairs"):
        peers.check_supported(_case(pairs=held_out), "CINEMA-OT")
    peers.check_supported(_case(pairs=held_out), "CellFlow")
    stratum = case.query.obs["stratum"].iloc[0]
    train = case.train[(case.train.obs["stratum"] != stratum).to_numpy()].copy()
    for name, peer in peers.PEERS.items():
        if not peer.new_strata:
            with pytest.raises(NotImplementedError, match=f"{name} cannot predict for strata"):
                peers.check_supported(_case(train=train), name)
    train = case.train[1:].copy()
    for name, peer in peers.PEERS.items():
        if not peer.new_cells:
            with pytest.raises(NotImplementedError, match=f"{name} cannot predict for cells"):
                peers.check_supported(_case(train=train), name)


def test_pairs_that_a_peer_leaves_out_are_not_scored(small, monkeypatch):
    case = _case()

    def predict(case, treatments, seed, name):
        values = {t: case.truth[t].copy() for t in treatments}
        for (t, x), kind in case.pairs.items():
            if kind == "held out":
                values[t][(case.query.obs["stratum"] == x).to_numpy()] = np.nan
        return values, "counts"

    monkeypatch.setattr(methods, "predict", predict)
    rows = pd.DataFrame(accuracy.score(case, methods.peer(case, 0, "CINEMA-OT")))
    assert set(rows["pair"]) == {"seen"}
    assert len(rows) == len(case.pairs) - 2
    np.testing.assert_allclose(rows["ite_corr"], 1, atol=1e-6)


def test_every_peer_has_its_script_and_versions():
    for peer in peers.PEERS.values():
        for name in (f"run_{peer.script}.py", f"{peer.script}.in", f"{peer.script}.txt"):
            assert (peers.SCRIPTS / name).exists(), name


def test_finished_jobs_are_not_run_again(small, tmp_path, capsys, monkeypatch):
    names = ["--datasets", "simulated small", "absent", "--methods", "perfect", "failing"]
    arguments = [*names, "--seeds", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(accuracy, "code_commit", lambda: "first")
    accuracy.main(arguments)
    assert small == [0, 1]
    table = pd.read_csv(tmp_path / "accuracy.csv")
    assert len(list((tmp_path / "jobs").iterdir())) == 8  # no temporary file is left
    assert table["error"].notna().sum() == 6

    monkeypatch.setattr(accuracy, "code_commit", lambda: "second")
    accuracy.main(arguments)
    accuracy.main([*arguments, "--rerun", "errors"])
    assert small == [0, 1]
    assert "mixes rows of different code" in capsys.readouterr().err
    accuracy.main([*arguments, "--rerun", "stale"])
    assert small == [0, 1, 0, 1]
    assert set(pd.read_csv(tmp_path / "accuracy.csv")["commit"]) == {"second"}


def test_parts_are_narrowed_by_data_sets_and_methods():
    assert accuracy.choose_jobs(["simulated"], ["simulated deep"], ["ridge"], [3]) == [
        ("simulated deep", "ridge", 3)
    ]
    everything = accuracy.choose_jobs(None, None, None, [0])
    assert len(everything) == len(set(everything))
    assert ("kang pairs", "VCI", 0) in everything


def _table(**errors_of_vci):
    """RMSE of the model by data set and seed; additive has 0.30, no change 1."""
    rows = []
    for dataset, values in errors_of_vci.items():
        known = dataset.startswith("simulated")
        for seed, value in enumerate(values):
            for method, rmse in (("VCI", value), ("additive", 0.30), ("no change", 1.0)):
                row = {"dataset": dataset.replace("_", " "), "method": method, "seed": seed}
                row |= {"case": f"{dataset}/all/0", "treatment": "A", "stratum": "x"}
                row |= {"pair": "held out", "rmse": rmse, "r2_delta": 1 - rmse, "seconds": 1.0}
                if known:
                    row |= {"mse": rmse, "ite_corr": 0.9 if method == "VCI" else 0.0}
                rows.append(row | {"a new column": 1})
    rows.append({"dataset": "mcfaline pairs", "method": "CPA", "seed": 0, "error": "a | b"})
    return pd.DataFrame(rows)


def test_verdicts_compare_the_paired_difference_with_its_standard_error(tmp_path):
    file = tmp_path / "accuracy.csv"
    _table(
        simulated_a=[0.20, 0.22, 0.18],
        simulated_b=[0.20, 0.41, 0.30],
        simulated_c=[0.40, 0.42, 0.41],
        kang_pairs=[0.40, 0.40, 0.40],
    ).to_csv(file, index=False)
    scores, errors = report_numbers.load(file)
    assert len(errors) == 1
    compared = report_numbers.compare_all(scores).set_index("dataset")
    # Of real data there is one pair, however many seeds: it is not judged.
    assert compared["means"].to_dict() == {
        "simulated a": "ahead",
        "simulated b": "level",
        "simulated c": "behind",
        "kang pairs": "not judged",
    }
    assert compared.loc["simulated c", "individuals"] == "ahead"
    assert compared.loc["kang pairs", "individuals"] == "no truth"
    found = compared.loc["simulated a", "rmse"]
    assert found.other == "additive"
    assert found.advantage == pytest.approx(0.10)
    assert found.error == pytest.approx(np.std([0.20, 0.22, 0.18], ddof=1) / np.sqrt(3))
    failing = report_numbers.failing(compared.reset_index())
    assert failing["dataset"].tolist() == ["simulated c"]


def test_the_page_says_what_fails_and_includes_the_note(tmp_path):
    file, notes = tmp_path / "accuracy.csv", tmp_path / "notes.md"
    table = _table(
        simulated_default=[0.40, 0.42, 0.41], simulated_deep=[0.2, 0.21], kang_pairs=[0.2]
    )
    # Baselines alone, where the model has not been run yet.
    table[(table["method"] != "VCI") | (table["dataset"] != "kang pairs")].to_csv(file)
    notes.write_text("<!-- a comment -->\n\n## simulated default\n\nBecause of this.\n\n## x\n")
    report.main(["--table", str(file), "--docs", str(tmp_path), "--notes", str(notes)])
    text = (tmp_path / "accuracy.md").read_text()
    assert "{{" not in text
    assert "#### simulated default" in text
    assert "#### simulated deep" not in text
    assert "Because of this." in text
    assert "a \\| b" in text
    assert "individual-effect correlation | ≥ 0.93 | 0.900 ± 0.000 | **NOT met**" in text
    numbers = pd.read_csv(tmp_path / "_static" / "accuracy.csv")
    assert {"mean", "sd_between_seeds", "standard_error", "n_seeds"} <= set(numbers)
    assert (tmp_path / "_static" / "accuracy_means.png").exists()


def test_the_page_says_which_code_each_method_is_of():
    rows = {
        "method": ["VCI", "VCI 5 latents", "VCI", "additive", "no change"],
        "seed": [0, 0, 1, 0, 0],
        "commit": ["aaa", "aaa", "aaa", "bbb", None],
    }
    text = report._provenance(pd.DataFrame(rows))
    assert "- Code aaa: VCI, VCI 5 latents.\n- Code bbb: additive." in text
    assert "mixed" not in text
    rows["commit"][2] = "bbb"
    assert "**Rows of different code are mixed**: VCI." in report._provenance(pd.DataFrame(rows))
