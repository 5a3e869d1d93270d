"""Targets and reference cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvci.data import Cohort, CounterfactualSampler, compute_statistics, split_cells
from scvci.data import _constants as keys


@pytest.fixture
def cohort(adata):
    treatment = adata.obs["treatment"].cat.codes.to_numpy().astype(int)
    stratum = adata.obs["cell_type"].cat.codes.to_numpy().astype(int)
    # (stratum 0, treatment 2) has no cells.
    treatment[(stratum == 0) & (treatment == 2)] = 1
    return Cohort(adata, "counts", np.arange(0, adata.n_obs, 2), treatment, stratum, 3, 3)


def test_statistics_against_direct_computation(cohort):
    statistics = compute_statistics(cohort, uses_size=True)
    x = cohort.adata.layers["counts"].toarray()[cohort.indices].astype(float)
    size = x.sum(1)
    assert statistics.reference_size == np.median(size)
    scaled = x / size[:, None] * np.median(size)
    pair = cohort.pair[cohort.indices]
    for p in range(9):
        rows = scaled[pair == p]
        assert statistics.pair_count[p] == len(rows)
        if len(rows):
            np.testing.assert_allclose(statistics.pair_mean[p], rows.mean(0))
            np.testing.assert_allclose(statistics.pair_var[p], rows.var(0), atol=1e-8)
    np.testing.assert_allclose(statistics.feature_mean, np.log1p(scaled).mean(0))
    np.testing.assert_allclose(statistics.mean_rate, (x / size[:, None]).mean(0))


def test_references_come_from_the_pair_and_from_training_cells(cohort, rng):
    sampler = CounterfactualSampler(
        cohort, compute_statistics(cohort, True), n_reference=4, uses_size=True
    )
    rows = np.arange(cohort.adata.n_obs)
    batch = sampler(rows, rng)
    target = batch[keys.TARGET_KEY].ravel()
    pair = cohort.stratum[rows] * 3 + target
    drawn = sampler.draw_references(pair, rng)
    supported = batch[keys.SUPPORTED_KEY].ravel() > 0
    assert supported.any()
    assert not supported.all()
    np.testing.assert_array_equal(supported, pair != 2)
    assert np.isin(drawn[supported], cohort.indices).all()
    np.testing.assert_array_equal(
        cohort.pair[drawn[supported]], np.repeat(pair[supported, None], 4, axis=1)
    )
    size = batch[keys.REFERENCE_KEY].sum(-1)[supported]
    np.testing.assert_allclose(size, sampler.statistics.reference_size, rtol=1e-5)
    statistics = sampler.statistics
    np.testing.assert_allclose(
        batch[keys.REFERENCE_MEAN_KEY], statistics.pair_mean[pair], rtol=1e-6
    )


def test_balanced_targets_include_the_control_and_never_the_received_treatment(cohort, rng):
    sampler = CounterfactualSampler(cohort, compute_statistics(cohort, True))
    stratum, treatment = np.ones(9000, dtype=int), np.repeat([0, 1, 2], 3000)
    target = sampler.draw_targets(stratum, treatment, rng)
    assert (target != treatment).all()
    counts = np.stack([np.bincount(target[treatment == t], minlength=3) for t in range(3)])
    for t in range(3):
        observed = np.delete(counts[t], t)
        assert stats.chisquare(observed).pvalue > 1e-4


def test_arms_without_cells_are_drawn_less_often(cohort, rng):
    sampler = CounterfactualSampler(cohort, compute_statistics(cohort, True))
    target = sampler.draw_targets(np.zeros(8000, int), np.zeros(8000, int), rng)
    # 0.2 against 0.8 / 2 for the one supported arm besides the received control
    assert (target == 2).mean() == pytest.approx(0.2 / (0.2 + 0.4), abs=0.03)


def test_paper_targets_follow_the_treated_cells_and_never_the_control(cohort, rng):
    sampler = CounterfactualSampler(cohort, compute_statistics(cohort, True), mode="paper")
    target = sampler.draw_targets(np.zeros(6000, int), np.ones(6000, int), rng)
    treated = cohort.treatment[cohort.indices]
    treated = treated[treated > 0]
    assert (target > 0).all()
    assert (target == 1).any()
    assert (target == 1).mean() == pytest.approx((treated == 1).mean(), abs=0.03)


def test_split_is_stratified_and_keeps_a_training_cell_per_group(rng):
    group = np.repeat([0, 1, 2, 3], [200, 50, 10, 1])
    train, validation, test = split_cells(group, 0.8, 0.1, rng)
    joined = np.sort(np.concatenate([train, validation, test]))
    np.testing.assert_array_equal(joined, np.arange(261))
    for g, n in ((0, 200), (1, 50), (2, 10)):
        assert abs((group[train] == g).sum() - 0.8 * n) <= 1
    assert 260 in train
    again = split_cells(group, 0.8, 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(
        again[0], split_cells(group, 0.8, 0.1, np.random.default_rng(0))[0]
    )


def test_split_without_rest_has_no_test_cells(rng):
    train, validation, test = split_cells(np.zeros(101, int), 0.9, None, rng)
    assert len(test) == 0
    assert len(validation) in (10, 11)


@pytest.mark.parametrize(("train", "validation"), [(0.0, None), (1.2, None), (0.9, 0.2)])
def test_impossible_splits_are_refused(train, validation):
    with pytest.raises(ValueError, match="train_size"):
        split_cells(np.zeros(10, int), train, validation)
