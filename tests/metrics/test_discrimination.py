"""Whether a prediction is nearest to the treatment that it is for."""

from __future__ import annotations

import numpy as np
import pytest

from scvci import metrics


def test_centroid_accuracy_by_hand():
    means = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert metrics.centroid_accuracy(np.array([0.8, 0.0]), means, 1) == 1
    assert metrics.centroid_accuracy(np.array([0.4, 0.0]), means, 1) == 0.5
    assert metrics.centroid_accuracy(np.array([-9.0, 0.0]), means, 2) == 0
    assert np.isnan(metrics.centroid_accuracy(means[0], means[:1], 0))


def test_discrimination_by_hand():
    true = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    pds = metrics.perturbation_discrimination
    assert pds(np.array([2.0, 0.1]), true, 0) == 1
    assert pds(np.array([2.0, 0.1]), true, 1) == 0.5
    assert pds(np.array([2.0, 0.1]), true, 2) == 0
    for metric in ("cosine", "l1", "l2"):
        # A prediction of nothing is equally far from all of them: ties share their ranks.
        assert pds(np.zeros(2), true, 1, metric) == 0.5
    # Cosine is blind to size, the others are not.
    far, near = np.array([[1.0, 0.0], [9.0, 3.0]]), np.array([9.0, 0.0])
    assert pds(near, far, 0, "cosine") == 1
    assert pds(near, far, 0, "l1") == pds(near, far, 0, "l2") == 0
    assert np.isnan(pds(true[0], true[:1], 0))
    with pytest.raises(ValueError, match=r"'l3'.*cosine"):
        pds(true[0], true, 0, "l3")
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 2\)"):
        pds(np.zeros(3), true, 0)


def test_discrimination_of_noise_is_one_half(rng):
    scores = [
        metrics.perturbation_discrimination(rng.normal(size=20), rng.normal(size=(9, 20)), 4)
        for _ in range(400)
    ]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.06)
