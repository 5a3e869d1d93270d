"""Split conformal intervals: exact on exchangeable arrays, and sensible on counts."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.effects._conformal import (
    conformal_rank,
    conformal_threshold,
    least_calibration_cells,
    predictive_interval,
    predictive_score,
)


@pytest.mark.parametrize(("level", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_fewest_cells_of_a_finite_interval(level, least):
    assert least_calibration_cells(level) == least
    assert conformal_rank(least, level) == least
    assert np.isfinite(conformal_threshold(np.arange(least, dtype=float), level))
    assert np.isinf(conformal_threshold(np.arange(least - 1, dtype=float), level))


@pytest.mark.parametrize("n", [9, 13, 40])
@pytest.mark.parametrize("level", [0.8, 0.9])
def test_coverage_of_exchangeable_scores_is_exact(n, level):
    # 2,000 independent columns, 50 new scores each; the law of the scores does not matter.
    for seed in range(3):
        rng = np.random.default_rng(seed)
        calibration, new = (rng.standard_cauchy((m, 2000)) for m in (n, 50))
        upper = (new <= conformal_threshold(calibration, level)).mean()
        assert upper == pytest.approx(conformal_rank(n, level) / (n + 1), abs=0.01)
        exact = (new <= conformal_threshold(calibration, level, rng)).mean()
        assert exact == pytest.approx(level, abs=0.012)


def test_ties_cover_at_least_as_much():
    rng = np.random.default_rng(0)
    calibration, new = (rng.poisson(0.3, (20, 3000)) for _ in range(2))
    assert (new <= conformal_threshold(calibration, 0.9, rng)).mean() >= 0.9


def test_thresholds_rise_with_the_level_and_columns_are_apart():
    scores = np.random.default_rng(0).random((30, 4, 5))
    thresholds = np.stack([conformal_threshold(scores, level) for level in (0.5, 0.8, 0.95)])
    assert thresholds.shape == (3, 4, 5)
    assert (np.diff(thresholds, axis=0) >= 0).all()
    alone = conformal_threshold(scores[:, 2, 3], 0.8)
    assert alone == thresholds[1, 2, 3]


@pytest.mark.parametrize("kind", ["normal", "high counts", "low counts"])
def test_an_outcome_is_within_the_interval_exactly_if_its_score_is_within_the_threshold(kind):
    rng = np.random.default_rng(1)
    is_count = kind != "normal"
    shape = (25, 60, 8)
    draws = {
        "normal": rng.normal(size=shape),
        "high counts": rng.poisson(40, shape),
        "low counts": rng.poisson(0.7, shape),
    }[kind]
    outcome = {
        "normal": 2 * rng.normal(size=shape[1:]),
        "high counts": rng.poisson(rng.gamma(2, 20, shape[1:])),
        "low counts": rng.poisson(rng.gamma(1, 1.5, shape[1:])),
    }[kind]
    scores = predictive_score(draws, outcome, is_count)
    for threshold in (0.05, 0.2, 0.4, 0.49, 0.7, 1.5):
        low, high = predictive_interval(draws, threshold, is_count)
        assert (low <= high).all()
        within = (low <= outcome) & (outcome <= high)
        # An interval that would be empty holds one count all the same.
        assert within[scores <= threshold - 1e-6].all()
        if is_count:
            wider = (high > low) & within
            assert (scores[wider] <= threshold + 1e-6).all()
            np.testing.assert_array_equal(low, np.rint(low))
            assert (low >= 0).all()
        else:
            # Between two draws the score is a step; the ends are the draws themselves.
            assert (scores[within] <= threshold + 0.5 / 26 + 1e-6).all()
    # A threshold that equals a score includes it.
    low, high = predictive_interval(draws, scores, is_count)
    assert ((low <= outcome + 1e-9) & (outcome - 1e-9 <= high)).all()


def test_half_the_level_gives_the_quantiles_of_the_draws():
    draws = np.random.default_rng(0).normal(size=(999, 3, 2))
    low, high = predictive_interval(draws, 0.45, is_count=False)
    ordered = np.sort(draws, axis=0)
    np.testing.assert_array_equal(low, ordered[49])
    np.testing.assert_array_equal(high, ordered[949])


def _coverage(mean, predicted_mean, seed, n=60, n_new=300, n_genes=80):
    """Coverage and mean width where counts of cells of any size are predicted with an error."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 0.4, (n + n_new, 1))
    rates = mean * rng.lognormal(0, 0.5, n_genes)
    outcome = rng.poisson(sizes * rates * rng.gamma(5, 0.2, (n + n_new, n_genes)))
    predicted = sizes * rates * predicted_mean / mean
    draws = rng.poisson(predicted, (100, n + n_new, n_genes))
    scores = predictive_score(draws[:, :n], outcome[:n])
    low, high = predictive_interval(draws[:, n:], conformal_threshold(scores, 0.9, rng))
    new = outcome[n:]
    return ((low <= new) & (new <= high)).mean()


@pytest.mark.parametrize("mean", [1.0, 5.0, 60.0])
@pytest.mark.parametrize("error", [1.0, 1.6])
def test_counts_are_covered_although_their_predictive_distribution_is_wrong(mean, error):
    # Draws are Poisson, outcomes are overdispersed, and means are off by a factor.
    coverage = np.mean([_coverage(mean, mean * error, seed) for seed in range(3)])
    assert 0.88 <= coverage <= 0.925


def test_silent_genes_keep_a_zero_and_are_covered_too_often():
    rng = np.random.default_rng(0)
    outcome = (rng.random((400, 50)) < 0.002).astype(int)
    draws = np.zeros((100, 400, 50), dtype=int)
    threshold = conformal_threshold(predictive_score(draws[:, :50], outcome[:50]), 0.9)
    low, high = predictive_interval(draws[:, 50:], threshold)
    assert (low == 0).all()
    assert (high == 0).mean() > 0.95
    assert ((low <= outcome[50:]) & (outcome[50:] <= high)).mean() > 0.99


def test_rotated_worlds_fit_alike_and_only_the_stratum_covers_both():
    """Y(0) = Z, Y(1) = R Z + 3 with any rotation R gives the same data (an angle is not seen)."""
    rng = np.random.default_rng(0)
    n, noise = 2000, 0.3
    z = rng.normal(size=(n, 2))
    held = rng.normal(size=(200, 2)) + 3 + noise * rng.normal(size=(200, 2))
    stratum = np.broadcast_to(
        (rng.normal(size=(200, 2)) + noise * rng.normal(size=(200, 2)) + 3)[:, None], (200, n, 2)
    )
    individual = z + 3 + noise * rng.normal(size=(200, n, 2))
    scores = predictive_score(stratum[:, :200], held, is_count=False)
    by_stratum = predictive_interval(stratum, conformal_threshold(scores, 0.9), is_count=False)
    own = predictive_interval(individual, 0.45, is_count=False)
    found = {}
    for name, angle in (("assumed", 0.0), ("rotated", np.pi / 2)):
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        truth = z @ rotation.T + 3 + noise * rng.normal(size=(n, 2))
        found[name] = [
            ((low <= truth) & (truth <= high)).mean() for low, high in (by_stratum, own)
        ]
    assert found["assumed"] == pytest.approx([0.9, 0.9], abs=0.03)
    assert found["rotated"][0] == pytest.approx(0.9, abs=0.03)
    assert found["rotated"][1] < 0.5


def test_missing_thresholds_are_missing_intervals():
    draws = np.random.default_rng(0).poisson(3, (20, 4, 2))
    threshold = np.array([0.4, np.nan, np.inf, 0.4])[:, None]
    low, high = predictive_interval(draws, threshold)
    assert np.isnan(low[1]).all()
    assert np.isnan(high[1]).all()
    assert (low[2] == 0).all()
    assert np.isinf(high[2]).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"level=1\.0"):
        conformal_threshold(np.ones(5), 1.0)
    with pytest.raises(ValueError, match="level=0"):
        least_calibration_cells(0)
    with pytest.raises(ValueError, match="NaN"):
        conformal_threshold(np.array([1.0, np.nan] * 10), 0.9)
    with pytest.raises(ValueError, match="shape"):
        predictive_score(np.zeros((5, 3, 2)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no draws"):
        predictive_interval(np.zeros((0, 3, 2)), 0.4)


def test_a_cell_of_a_new_donor_is_covered_by_donors_not_by_cells():
    """Donors differ as much as their cells; one has half of all cells."""
    rng, n_repeats = np.random.default_rng(3), 4000
    size = np.array([5, 8, 10, 12, 15, 20, 20, 25, 30, 40, 185])
    donor = np.repeat(np.arange(len(size)), size)
    level = rng.normal(size=(len(size) + 1, n_repeats))
    scores = np.abs(level[donor] + rng.normal(size=(len(donor), n_repeats)))
    new = np.abs(level[-1] + rng.normal(size=n_repeats))
    by_donors = conformal_threshold(scores, 0.9, clusters=donor)
    by_cells = conformal_threshold(scores, 0.9)
    # Standard error 0.005; the mass that is kept for the new donor makes it cover more.
    assert 0.89 < (new <= by_donors).mean() < 0.99
    assert (new <= by_cells).mean() < (new <= by_donors).mean() - 0.02
    assert np.isinf(conformal_threshold(scores[donor < 8], 0.9, clusters=donor[donor < 8])).all()
    with pytest.raises(ValueError, match="clusters has shape"):
        conformal_threshold(scores, 0.9, clusters=donor[1:])


def test_no_score_bounds_nothing():
    for clusters in (None, np.zeros(0)):
        bound = conformal_threshold(np.zeros((0, 3)), 0.9, clusters=clusters)
        np.testing.assert_array_equal(bound, np.full(3, np.inf))
