"""The paper's rules of evaluation and the corrected ones, recomputed by hand on tiny data."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import paper_methods  # noqa: E402
from paper_methods import Baseline, Model, _sizes, training_means  # noqa: E402
from paper_rules import (  # noqa: E402
    Experiment,
    corrected_genes,
    corrected_scores,
    paper_genes,
    paper_scores,
    summary,
)

N_GENES = 60


def r2(true, guess):
    """Coefficient of determination, written out."""
    true, guess = np.asarray(true), np.asarray(guess)
    return 1 - np.sum((true - guess) ** 2) / np.sum((true - true.mean()) ** 2)


def make(cells, seed=0, noise=0.1):
    """Build an experiment from rows of (stratum, treatment, dose, split, number of cells).

    Genes differ in level; treatment "A" moves the first twenty, by more at dose 1 than at 0.1.
    """
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.5, 4, N_GENES)
    rows = [row[:4] for row in cells for _ in range(row[4])]
    obs = pd.DataFrame(rows, columns=["cell_type", "treatment", "dose", "split"])
    obs.index = obs.index.astype(str)
    effect = np.zeros((len(obs), N_GENES))
    effect[:, :20] = (0.2 * (obs["treatment"] == "A") * (1 + obs["dose"])).to_numpy()[:, None]
    shift = 0.3 * (obs["cell_type"] == "y").to_numpy()[:, None]
    values = level + effect + shift + noise * rng.normal(size=(len(obs), N_GENES))
    adata = anndata.AnnData(sparse.csr_matrix(np.maximum(values, 0)), obs=obs)
    return Experiment("tiny", adata, "control", ["cell_type"])


class Recorder:
    """A method that says what it is told to, and remembers what it was asked."""

    def __init__(self, answer, name="recorder"):
        self.answer, self.name, self.asked = answer, name, []

    def means(self, cells, arms):
        self.asked.append((cells.copy(), list(arms)))
        return np.stack([self.answer(cells, arm) for arm in arms])


def plus_one(cells, arm):
    """Mean of the given cells, a tenth higher where treated."""
    return np.asarray(cells.X.mean(axis=0)).ravel() + 0.1 * (arm[0] != "control")


TWO_STRATA = [
    (x, t, float(t != "control"), split, n)
    for x in "xy"
    for t, split, n in [
        ("control", "train", 40),
        ("control", "test", 33),
        ("A", "train", 35),
        ("A", "test", 31),
        ("B", "train", 35),
        ("B", "test", 32),
    ]
] + [("y", "C", 1.0, "ood", 36), ("x", "C", 1.0, "train", 20)]


def cells_of(experiment, **wanted):
    """Dense expression of the cells with these labels."""
    obs = experiment.adata.obs
    keep = np.all([obs[k].isin(np.atleast_1d(v)) for k, v in wanted.items()], axis=0)
    return experiment.adata.X[np.flatnonzero(keep)].toarray()


# -- groups -------------------------------------------------------------------------------------


def test_a_group_has_more_than_thirty_cells():
    experiment = make(
        [
            ("x", "control", 0.0, "train", 40),
            ("x", "A", 1.0, "test", 30),
            ("x", "B", 1.0, "test", 31),
            ("x", "A", 1.0, "train", 40),
        ]
    )
    table = paper_scores(experiment, Recorder(plus_one), "native", ["test"])
    assert list(table["treatment"]) == ["B"]
    assert list(table["n_cells"]) == [31]


def test_the_paper_pools_doses_and_predicts_for_the_first():
    """A perfect prediction of every dose is scored as an error; by dose it is perfect."""
    cells = [
        ("x", "control", 0.0, "train", 50),
        ("x", "A", 0.1, "train", 20),
        ("x", "A", 1.0, "test", 16),
        ("x", "A", 0.1, "test", 17),
    ]
    experiment = make(cells, noise=0.0)
    truth = {d: cells_of(experiment, treatment="A", dose=d).mean(axis=0) for d in (0.1, 1.0)}
    control = cells_of(experiment, treatment="control").mean(axis=0)
    perfect = Recorder(lambda cells, arm: truth.get(arm[1], control))
    (row,) = paper_scores(experiment, perfect, "native", ["test"]).to_dict("records")
    assert row["n_cells"] == 33
    assert row["dose"] == 1.0  # of the first evaluation cell
    assert perfect.asked[0][1] == [("A", 1.0)]
    pooled = (16 * truth[1.0] + 17 * truth[0.1]) / 33
    assert row["r2"] == pytest.approx(r2(pooled, truth[1.0]))
    assert row["r2"] < 1
    table = corrected_scores(experiment, [perfect], ["test"])
    own = table[table["method"] == "recorder"]
    assert list(own["dose"]) == [0.1, 1.0]
    assert list(own["n_cells"]) == [17, 16]
    np.testing.assert_allclose(own[["r2_delta", "r2_change", "pearson_delta"]], 1)


# -- where predictions start --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "base"), [("train", "train"), ("test", "train"), ("ood", "test")]
)
def test_native_starts_from_all_cells_of_the_stratum(split, base):
    experiment = make(TWO_STRATA)
    recorder = Recorder(plus_one)
    table = paper_scores(experiment, recorder, "native", [split]).set_index(
        ["stratum", "treatment"]
    )
    for (x, t), row in table.iterrows():
        start = cells_of(experiment, cell_type=x, split=base)
        true = cells_of(experiment, cell_type=x, treatment=t, split=split)
        assert row["r2"] == pytest.approx(r2(true.mean(axis=0), start.mean(axis=0) + 0.1))
    groups = {"train": "AB", "test": "AB", "ood": "C"}[split]
    assert {t for _, t in table.index} == set(groups)
    for cells, _ in recorder.asked:
        assert set(cells.obs["split"]) == {base}
        assert cells.obs["cell_type"].nunique() == 1


@pytest.mark.parametrize(
    ("split", "base"), [("train", "train"), ("test", "test"), ("ood", "test")]
)
def test_classic_starts_from_the_relabelled_controls_of_all_strata(split, base):
    experiment = make(TWO_STRATA)
    recorder = Recorder(plus_one)
    table = paper_scores(experiment, recorder, "classic", [split])
    start = cells_of(experiment, treatment="control", split=base)
    for row in table.to_dict("records"):
        true = cells_of(
            experiment, cell_type=row["stratum"], treatment=row["treatment"], split=split
        )
        assert row["r2"] == pytest.approx(r2(true.mean(axis=0), start.mean(axis=0) + 0.1))
    asked = [set(cells.obs["cell_type"]) for cells, _ in recorder.asked]
    assert asked == [{x} for x in sorted(set(table["stratum"]))]
    # The experiment's own labels stay.
    assert (experiment.adata.obs["cell_type"] == experiment.obs["stratum"].to_numpy()).all()
    assert "r2_robust" not in table


def test_robust_adds_the_mean_residual_of_the_treated_base_cells():
    experiment = make(TWO_STRATA)
    rng = np.random.default_rng(1)
    offset = rng.normal(0, 0.1, N_GENES)
    # A prediction that depends on the cell: the leak that "robust" does not take away.
    leaky = Recorder(lambda cells, arm: 0.7 * np.asarray(cells.X.mean(axis=0)).ravel() + offset)
    table = paper_scores(experiment, leaky, "native", ["test", "ood"])
    row = table[(table["stratum"] == "y") & (table["treatment"] == "A")].iloc[0]
    base = cells_of(experiment, cell_type="y", split="train")
    treated = cells_of(experiment, cell_type="y", split="train", treatment="A").mean(axis=0)
    robust = 0.7 * base.mean(axis=0) + offset + treated - (0.7 * treated + offset)
    true = cells_of(experiment, cell_type="y", split="test", treatment="A").mean(axis=0)
    assert row["r2_robust"] == pytest.approx(r2(true, robust))
    # No test cell of the held-out pair was treated with it.
    assert table.loc[table["split"] == "ood", "r2_robust"].isna().all()


def test_fewer_base_cells_are_the_same_in_every_call():
    experiment = make(TWO_STRATA)
    recorder = Recorder(plus_one)
    for _ in range(2):
        paper_scores(experiment, recorder, "classic", ["ood"], base_cells=7)
    first, second = (list(cells.obs_names) for cells, _ in recorder.asked)
    assert len(first) == 7
    assert first == second


# -- genes --------------------------------------------------------------------------------------


def test_genes_of_the_paper_are_ranked_on_all_cells():
    experiment = make(TWO_STRATA)
    (genes,) = paper_genes(experiment, "y", ("C",)).values()
    groups = [cells_of(experiment, cell_type="y", treatment=t) for t in ("C", "control")]
    t = np.abs(stats.ttest_ind(*groups, equal_var=False).statistic)
    assert len(genes) == 50
    assert set(genes) == set(np.argsort(-t)[:50])


def test_corrected_genes_do_not_see_the_cells_that_are_scored():
    experiment = make(TWO_STRATA)
    before = corrected_genes(experiment, "y", "C"), corrected_genes(experiment, "y", "A")
    of_paper = paper_genes(experiment, "y", ("C",))["C"]
    held_out = (experiment.adata.obs["split"] != "train").to_numpy()
    values = experiment.adata.X.toarray()
    values[held_out, 30:] += (
        5 * (experiment.adata.obs["treatment"] == "C")[held_out].to_numpy()[:, None]
    )
    changed = Experiment(
        "changed",
        anndata.AnnData(sparse.csr_matrix(values), obs=experiment.adata.obs),
        "control",
        ["cell_type"],
    )
    np.testing.assert_array_equal(corrected_genes(changed, "y", "C"), before[0])
    np.testing.assert_array_equal(corrected_genes(changed, "y", "A"), before[1])
    assert set(paper_genes(changed, "y", ("C",))["C"]) != set(of_paper)
    # Training cells of the pair where there are any, else those of the other stratum.
    for x, t, genes in [("x", "C", before[0]), ("y", "A", before[1])]:
        groups = [
            cells_of(experiment, cell_type=x, treatment=u, split="train") for u in (t, "control")
        ]
        score = np.abs(stats.ttest_ind(*groups, equal_var=False).statistic)
        assert set(genes) == set(np.argsort(-score)[:50])
    assert corrected_genes(experiment, "y", "unknown") is None


# -- change and level ---------------------------------------------------------------------------


def test_no_change_scores_high_on_the_level_and_nothing_on_the_change():
    experiment = make(TWO_STRATA, noise=0.02)
    nothing = Baseline("no change", experiment)
    level = paper_scores(experiment, nothing, "native", ["test"])
    assert (level["r2"] > 0.9).all()
    table = corrected_scores(experiment, [nothing], ["test"])
    rows = table[table["method"] == "no change"]
    assert (rows["r2"] > 0.9).all()
    assert (rows["r2_delta"] <= 0).all()
    assert (rows["r2_change"] <= 0).all()
    assert rows["pearson_delta"].isna().all()
    of_a = rows[rows["treatment"] == "A"]
    for row in of_a.to_dict("records"):
        base = cells_of(experiment, cell_type=row["stratum"], treatment="control", split="train")
        true = cells_of(experiment, cell_type=row["stratum"], treatment="A", split="test")
        change = true.mean(axis=0) - base.mean(axis=0)
        assert row["r2_delta"] == pytest.approx(r2(change, np.zeros(N_GENES)))


def test_corrected_predictions_start_from_the_controls_of_the_stratum():
    experiment = make(TWO_STRATA)
    recorder = Recorder(plus_one)
    corrected_scores(experiment, [recorder], ["ood"])
    ((cells, arms),) = recorder.asked
    assert arms == [("C", 1.0), ("control", 0.0)]
    assert set(cells.obs["cell_type"]) == {"y"}
    assert set(cells.obs["treatment"]) == {"control"}
    assert set(cells.obs["split"]) == {"train"}


def test_the_ceiling_is_one_without_noise_and_low_where_nothing_happens():
    exact = corrected_scores(make(TWO_STRATA, noise=0.0), [], ["test"])
    ceiling = exact[(exact["method"] == "half of the cells") & (exact["treatment"] == "A")]
    np.testing.assert_allclose(ceiling[["r2", "r2_delta", "pearson_delta"]], 1)
    noisy = corrected_scores(make(TWO_STRATA, noise=1.0), [], ["test"])
    of_b = noisy[noisy["treatment"] == "B"]
    assert (of_b["r2_delta"] < 0).all()
    assert (of_b["pearson_delta"].abs() < 0.5).all()


# -- methods ------------------------------------------------------------------------------------


def test_baselines_are_means_of_training_cells_at_the_nearest_dose():
    cells = [
        ("x", "control", 0.0, "train", 5),
        ("y", "control", 0.0, "train", 5),
        ("x", "A", 0.01, "train", 4),
        ("x", "A", 1.0, "train", 4),
        ("y", "A", 1.0, "train", 3),
        ("y", "A", 1.0, "test", 3),
    ]
    experiment = make(cells)
    arms, table = training_means(experiment)
    assert arms == [("control", 0.0), ("A", 0.01), ("A", 1.0)]
    mean = {
        (x, t, d): cells_of(experiment, cell_type=x, treatment=t, dose=d, split="train").mean(0)
        for x, t, d, split, _ in cells
        if split == "train"
    }
    np.testing.assert_allclose(table[1, 2], mean["y", "A", 1.0])
    assert np.isnan(table[1, 1]).all()
    query = experiment.adata[experiment.rows("test", "y")]
    (guess,) = Baseline("additive", experiment).means(query, [("A", 0.02)])
    by_hand = mean["y", "control", 0.0] + mean["x", "A", 0.01] - mean["x", "control", 0.0]
    np.testing.assert_allclose(guess, by_hand)
    (own,) = Baseline("mean of the pair", experiment).means(query, [("A", 0.9)])
    np.testing.assert_allclose(own, mean["y", "A", 1.0])


def counted(seed=0):
    """An experiment of counts, normalised by totals over more genes than there are."""
    rng = np.random.default_rng(seed)
    n = 120
    counts = rng.poisson(rng.lognormal(0.5, 1, 12), (n, 12)).astype(np.float32)
    total = counts.sum(1) + rng.integers(20, 200, n)
    adata = anndata.AnnData(
        sparse.csr_matrix(np.log1p(counts * (100 / total)[:, None])),
        obs=pd.DataFrame(
            {
                "treatment": np.tile(["control", "A", "B"], n // 3),
                "dose": np.tile([0.0, 1.0, 0.1], n // 3),
                "cell_type": np.repeat(["x", "y"], n // 2),
                "split": "train",
            },
            index=[f"c{i}" for i in range(n)],
        ),
        layers={"counts": sparse.csr_matrix(counts)},
    )
    return Experiment("counted", adata, "control", ["cell_type"]), total


def test_factors_of_normalisation_are_read_off_the_data():
    experiment, total = counted()
    sizes = _sizes(experiment.adata)
    np.testing.assert_allclose(sizes["factor"], 100 / total, rtol=1e-4)
    ratio = sizes["size"].to_numpy() / total
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["VCI", "VCI paper", "conditional VAE"])
def test_means_of_a_model_are_those_of_its_cells(name, monkeypatch):
    """Against layers of the same model; a count model's mean is that of normalised draws."""
    monkeypatch.setattr(paper_methods, "_LEAST_DRAWS", 30_000)
    experiment, total = counted()
    model = Model(name, experiment, epochs=1)
    cells = experiment.adata[experiment.rows("train", "x")].copy()
    arms = [("B", 0.1), ("control", 0.0), ("A", 1.0)]
    found = model.means(cells, arms)
    prepared = model._prepared(cells)
    options = {"calibrated": name == "VCI", "n_samples": 400 if model.counts else None}
    for mean, (treatment, dose) in zip(found, arms, strict=True):
        request = pd.DataFrame({"treatment": [treatment], "dose": [dose]})
        layers = model.model.predict_counterfactual(request, prepared, **options)
        values = [prepared.layers[layer] for layer in layers]
        if model.counts:
            scale = (100 / total[: cells.n_obs])[:, None]
            values = [np.log1p(v.toarray() * scale) for v in values]
        expected = np.mean([np.asarray(v).mean(axis=0) for v in values], axis=0)
        np.testing.assert_allclose(mean, expected, atol=0.04 if model.counts else 1e-4)
    other = model.other_calibration()
    assert other.name == f"{name} {'uncalibrated' if name == 'VCI' else 'calibrated'}"
    assert other.calibrated != model.calibrated


def test_the_summary_weighs_groups_alike():
    table = pd.DataFrame(
        {
            "rules": "corrected",
            "split": "test",
            "stratum": ["x", "y", "x", "y"],
            "treatment": "A",
            "dose": 1.0,
            "n_cells": [1000, 10, 1000, 10],
            "method": ["a", "a", "b", "b"],
            "r2": [0.2, 0.4, 0.9, np.nan],
        }
    )
    ((title, means),) = summary(table)
    assert title == "corrected rules, test (2 groups)"
    assert means.loc["a", "r2"] == pytest.approx(0.3)
    assert means.loc["b", "r2"] == pytest.approx(0.9)
