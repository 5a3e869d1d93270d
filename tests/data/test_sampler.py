"""Targets and reference cells."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from helpers import table_of_cells
from scipy import stats

from scvci.data import _constants as keys
from scvci.data._sampler import CounterfactualSampler
from scvci.data._statistics import compute_statistics


@pytest.fixture
def cells(adata):
    treatment = adata.obs["treatment"].cat.codes.to_numpy().astype(int)
    stratum = adata.obs["cell_type"].cat.codes.to_numpy().astype(int)
    # (stratum 0, treatment 2) has no cells.
    treatment[(stratum == 0) & (treatment == 2)] = 1
    rows = np.arange(0, adata.n_obs, 2)
    return table_of_cells(adata, treatment, stratum, 3, 3, rows, layer="counts")


def test_statistics_against_direct_computation(cells):
    statistics = compute_statistics(cells, uses_size=True)
    x = cells.adata.layers["counts"].toarray()[cells.rows].astype(float)
    size = x.sum(1)
    assert statistics.reference_size == np.median(size)
    scaled = x / size[:, None] * np.median(size)
    stratum, treatment = cells.stratum[cells.rows], cells.treatment[cells.rows]
    assert len(statistics.moments.pairs) == 8
    for pair in np.ndindex(3, 3):
        rows = scaled[(stratum == pair[0]) & (treatment == pair[1])]
        p = statistics.moments.pairs.rows(*pair)
        if len(rows):
            assert statistics.moments.count[p] == len(rows)
            np.testing.assert_allclose(statistics.moments.mean[p], rows.mean(0))
            np.testing.assert_allclose(statistics.moments.variance[p], rows.var(0), atol=1e-8)
        else:
            assert p == -1
    np.testing.assert_allclose(statistics.feature_mean, np.log1p(scaled).mean(0))
    np.testing.assert_allclose(statistics.mean_rate, (x / size[:, None]).mean(0))


def test_references_come_from_the_pair_and_from_training_cells(cells, rng):
    sampler = CounterfactualSampler(
        cells, compute_statistics(cells, True), n_reference=4, uses_size=True
    )
    rows = np.arange(cells.adata.n_obs)
    batch = sampler(rows, rng)
    target = batch[keys.TARGET_KEY].ravel()
    statistics = sampler.statistics
    pair = statistics.moments.pairs.rows(cells.stratum[rows], target)
    drawn = sampler.draw_references(pair, rng)
    supported = batch[keys.SUPPORTED_KEY].ravel() > 0
    assert supported.any()
    assert not supported.all()
    np.testing.assert_array_equal(supported, (cells.stratum[rows] > 0) | (target != 2))
    assert np.isin(drawn[supported], cells.rows).all()
    np.testing.assert_array_equal(
        statistics.moments.pairs.rows(cells.stratum[drawn], cells.treatment[drawn])[supported],
        np.repeat(pair[supported, None], 4, axis=1),
    )
    size = batch[keys.REFERENCE_KEY].sum(-1)[supported]
    np.testing.assert_allclose(size, statistics.reference_size, rtol=1e-5)
    expected = np.where(supported[:, None], statistics.moments.mean[pair], 0)
    np.testing.assert_allclose(batch[keys.REFERENCE_MEAN_KEY], expected, rtol=1e-6)


def test_balanced_targets_include_the_control_and_never_the_received_treatment(cells, rng):
    sampler = CounterfactualSampler(cells, compute_statistics(cells, True))
    stratum, treatment = np.ones(9000, dtype=int), np.repeat([0, 1, 2], 3000)
    target = sampler.draw_targets(stratum, treatment, rng)
    assert (target != treatment).all()
    counts = np.stack([np.bincount(target[treatment == t], minlength=3) for t in range(3)])
    for t in range(3):
        observed = np.delete(counts[t], t)
        assert stats.chisquare(observed).pvalue > 1e-4


def test_arms_without_cells_are_drawn_less_often(cells, rng):
    sampler = CounterfactualSampler(cells, compute_statistics(cells, True))
    target = sampler.draw_targets(np.zeros(8000, int), np.zeros(8000, int), rng)
    # 0.2 against 0.8 / 2 for the one supported arm besides the received control
    assert (target == 2).mean() == pytest.approx(0.2 / (0.2 + 0.4), abs=0.03)


@pytest.mark.parametrize(
    "supported",
    [
        [True, True, False, True, False, True, False],
        [True, False, False, False, False, False, False],
        [True] * 7,
        [True, True, False, False, False, False, False],
    ],
    ids=["some", "one with cells", "all with cells", "two with cells"],
)
def test_frequencies_of_targets_are_the_exact_probabilities(supported, rng):
    """0.8 / 0.2 among arms with and without cells, over all but the received arm."""
    supported = np.array(supported)
    arms = np.flatnonzero(supported).repeat(5)
    adata = AnnData(np.ones((len(arms), 2), dtype=np.float32))
    strata = np.zeros(len(arms), dtype=int)
    cells = table_of_cells(adata, arms, strata, len(supported), 1)
    sampler = CounterfactualSampler(cells, compute_statistics(cells, True))
    share = np.where(supported, 0.8 / supported.sum(), 0.2 / max((~supported).sum(), 1))
    for received in range(len(supported)):
        expected = np.where(np.arange(len(share)) == received, 0, share)
        expected /= expected.sum()
        n = 20000
        drawn = sampler.draw_targets(np.zeros(n, int), np.full(n, received), rng)
        counts = np.bincount(drawn, minlength=len(share))
        possible = expected > 0
        assert counts[~possible].sum() == 0
        test = stats.chisquare(counts[possible], n * expected[possible])
        assert possible.sum() == 1 or test.pvalue > 1e-4


def test_strata_draw_from_their_own_arms(rng):
    """Whether arms have cells differs between the strata of a batch."""
    treatment, stratum = np.array([0, 1, 0, 2]), np.array([0, 0, 1, 1])
    adata = AnnData(np.ones((4, 2), dtype=np.float32))
    cells = table_of_cells(adata, treatment, stratum, 3, 2)
    sampler = CounterfactualSampler(cells, compute_statistics(cells, True))
    x = rng.integers(2, size=20000)
    target = sampler.draw_targets(x, np.zeros(20000, int), rng)
    assert (target[x == 0] == 1).mean() == pytest.approx(0.4 / 0.6, abs=0.02)
    assert (target[x == 1] == 2).mean() == pytest.approx(0.4 / 0.6, abs=0.02)
    assert (target > 0).all()


def test_paper_targets_follow_the_treated_cells_and_never_the_control(cells, rng):
    sampler = CounterfactualSampler(cells, compute_statistics(cells, True), mode="treated")
    target = sampler.draw_targets(np.zeros(6000, int), np.ones(6000, int), rng)
    treated = cells.treatment[cells.rows]
    treated = treated[treated > 0]
    assert (target > 0).all()
    assert (target == 1).any()
    assert (target == 1).mean() == pytest.approx((treated == 1).mean(), abs=0.03)
