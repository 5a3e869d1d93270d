"""What arms do beyond their members, and members' mean effects, pair by pair."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from scvci.model._arms import mean_effects, variance_beyond
from scvci.pooling import PairMeans, Pairs

#: Control, two members at half and full dose, a combination, and one that leaves no control over.
DOSES = np.array([[0, 0], [0.5, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5], [1, 0.5]])


@pytest.fixture
def table(rng):
    observed = rng.random((5, len(DOSES))) < 0.7
    observed[:3, :4] = True
    observed[3, 0] = observed[4, 0] = False
    value, noise = rng.normal(size=(5, len(DOSES), 6)), rng.uniform(size=(5, len(DOSES), 6))
    pairs = Pairs(*np.nonzero(observed), *observed.shape)
    arms = SimpleNamespace(
        relative_doses=sparse.csr_matrix(DOSES),
        alone=(DOSES > 0).sum(axis=1) == 1,
        members=("a", "b"),
    )
    return PairMeans(pairs, value[observed], noise[observed]), arms, value, noise, observed


def test_variance_beyond_members_against_a_loop(table):
    means, arms, value, noise, observed = table
    excess = []
    for t in (1, 4, 5, 6):
        weights = np.zeros(len(DOSES))
        weights[[t, 2, 3]] = 1, -DOSES[t, 0], -DOSES[t, 1]
        weights[0] = -weights.sum()
        for x in range(5):
            if observed[x, weights != 0].all():
                excess.append((weights @ value[x]) ** 2 - weights**2 @ noise[x])
    expected = max(np.mean(excess), 0)
    assert expected > 0.1
    assert variance_beyond(means, arms) == pytest.approx(expected)


def test_nothing_to_compare(table):
    means, arms, *_ = table
    alone = means.take(np.isin(means.pairs.treatment, [0, 2, 3]))
    assert variance_beyond(alone, arms) == 0


def test_mean_effects_against_a_loop(table):
    means, arms, value, _, observed = table
    found = mean_effects(means, arms)
    for member, t in enumerate((2, 3)):
        rows = observed[:, t] & observed[:, 0]
        expected = (value[rows, t] - value[rows, 0]).mean(axis=0)
        np.testing.assert_allclose(found[member], expected)
    without = means.take(means.pairs.treatment != 3)
    assert np.isnan(mean_effects(without, arms)[1]).all()
