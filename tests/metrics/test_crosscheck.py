"""The same numbers as other packages give, where they compute the same thing.

Skipped where those are not installed: ``pip install "scvci[crosscheck]"``.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from scvci import metrics
from scvci.metrics._distributions import MMD_GAMMAS


@pytest.fixture
def cells(rng):
    return rng.gamma(2, 1, size=(40, 12)), rng.gamma(3, 1, size=(30, 12))


def _pertpy_distance(name):
    distances = pytest.importorskip("pertpy.tools")
    return distances.Distance(name)


def test_energy_distance_is_pertpys_without_pairs_of_a_cell_with_itself(cells):
    """pertpy counts those pairs in the means within: W (n − 1) / n in place of W."""
    within = [pdist(group).mean() / len(group) for group in cells]
    expected = _pertpy_distance("edistance")(*cells) - sum(within)
    assert metrics.energy_distance(*cells) == pytest.approx(expected, rel=1e-5)


def test_mmd_is_the_mean_of_pertpys_over_the_ladder(cells):
    distance = _pertpy_distance("mmd")
    values = [distance(*cells, kernel="rbf", gamma=g) for g in MMD_GAMMAS]
    assert metrics.mmd(*cells) == pytest.approx(np.mean(values), rel=1e-5)


def test_pearson_delta_is_one_minus_pertpys_distance(cells, rng):
    """pertpy correlates means; of differences from the control they are effects."""
    true, pred = cells
    control = rng.gamma(2, 1, size=12)
    expected = 1 - _pertpy_distance("pearson_distance")(true - control, pred - control)
    found = metrics.pearson_delta(true.mean(axis=0), pred.mean(axis=0), control)
    assert found == pytest.approx(expected)


def test_r2_of_means_is_one_minus_pertpys_distance(cells):
    true, pred = cells
    expected = 1 - _pertpy_distance("r2_distance")(true, pred)
    assert metrics.r2_means(true.mean(axis=0), pred.mean(axis=0)) == pytest.approx(expected)


@pytest.fixture
def bulks(rng):
    """Control and 6 treatments; predictions are noisy, and one is no change at all."""
    real = rng.gamma(2, 1, size=(7, 25))
    pred = real + rng.normal(0, 1, size=real.shape)
    pred[0] = real[0]
    pred[4] = real[0]
    return real, pred, np.array(["ctrl", *(f"t{i}" for i in range(1, 7))])


@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_discrimination_is_that_of_cell_eval2(bulks, metric):
    """With its ties and denominator of version 2. It leaves out target genes; we have none."""
    module = pytest.importorskip("cell_eval2.metrics.discrimination")
    real, pred, names = bulks
    expected = module.discrimination_score(
        pred_bulk=(names, pred),
        real_bulk=(names, real),
        control="ctrl",
        distance=metric,
        rank_denominator="n-1",
        tie_policy="midrank",
        exclude_target_gene=False,
        control_source="real",
    )
    effects = real[1:] - real[0]
    for i, name in enumerate(names[1:]):
        found = metrics.perturbation_discrimination(pred[i + 1] - real[0], effects, i, metric)
        assert found == pytest.approx(expected[name]), name


def test_pearson_delta_is_that_of_cell_eval2(bulks):
    module = pytest.importorskip("cell_eval2.metrics.delta")
    real, pred, names = bulks
    pred[4] += np.arange(25)
    expected = module.pearson_delta(
        pred_bulk=(names, pred), real_bulk=(names, real), control="ctrl", control_source="real"
    )
    for i, name in enumerate(names[1:]):
        found = metrics.pearson_delta(real[i + 1], pred[i + 1], real[0])
        assert found == pytest.approx(expected[name]), name
