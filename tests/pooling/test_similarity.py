"""Weights of measured treatments for unmeasured ones, against brute force and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from scvci.pooling import _similarity
from scvci.pooling._similarity import similarity_weights

N_QUERY = 50


def _simulate(seed, n_members, n_features, informative, n_genes=100):
    """Effects that follow the features linearly, or others of the same kind."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_members + N_QUERY, n_features))
    source = features if informative else rng.normal(size=features.shape)
    slopes = rng.normal(size=(n_features, 5)) @ rng.normal(size=(5, n_genes))
    slopes /= np.sqrt(5 * n_features)
    own = 0.3 * rng.normal(size=(len(features), n_genes))
    return features, rng.normal(size=n_genes) + source @ slopes + own


def _errors(seed, n_members, n_features, informative):
    """Mean squared errors of the weights, of the mean and of the nearest neighbour."""
    features, effects = _simulate(seed, n_members, n_features, informative)
    own, query = features[:n_members], features[n_members:]
    known, truth = effects[:n_members], effects[n_members:]
    weights = similarity_weights(own, known, query)
    distance = ((query[:, None] - own[None]) ** 2).sum(axis=-1)
    predictions = [weights @ known, known.mean(axis=0), known[distance.argmin(axis=1)]]
    return [float(((p - truth) ** 2).mean()) for p in predictions]


@pytest.mark.parametrize(("n_members", "n_features"), [(20, 5), (30, 50), (60, 20)])
def test_informative_features_beat_mean_and_neighbour(n_members, n_features):
    ours, mean, neighbour = np.mean(
        [_errors(seed, n_members, n_features, True) for seed in range(8)], axis=0
    )
    assert ours < 0.9 * mean
    assert ours < 0.9 * neighbour


@pytest.mark.parametrize(("n_members", "n_features"), [(20, 5), (30, 50), (60, 200)])
def test_uninformative_features_are_ignored(n_members, n_features):
    errors = np.array([_errors(seed, n_members, n_features, False) for seed in range(20)])
    assert errors[:, 0].mean() < 1.02 * errors[:, 1].mean()
    plain = 0
    for seed in range(20):
        features, effects = _simulate(seed, n_members, n_features, False)
        weights = similarity_weights(
            features[:n_members], effects[:n_members], features[n_members:]
        )
        plain += np.allclose(weights, 1 / n_members)
    assert plain >= 13


@pytest.mark.parametrize("noisy", [False, True])
def test_weights_sum_to_one_and_are_those_of_kriging(noisy, monkeypatch):
    features, effects = _simulate(0, 12, 4, True)
    own, query, known = features[:12], features[12:], effects[:12]
    noise = np.linspace(0.1, 2, 12) if noisy else None
    monkeypatch.setattr(_similarity, "_PENALTIES", (0.5,))
    weights = similarity_weights(own, known, query, noise)
    assert np.allclose(weights.sum(axis=1), 1)

    # The system of ordinary kriging with its Lagrange multiplier.
    spread = _similarity._relative_variances(known, noise)
    z, z_query = ((a - own.mean(axis=0)) / own.std(axis=0) for a in (own, query))
    system = np.ones((13, 13))
    system[:12, :12] = z @ z.T / 4 + 0.5 * np.diag(spread)
    system[12, 12] = 0
    right = np.vstack([z @ z_query.T / 4, np.ones(N_QUERY)])
    assert np.allclose(weights, np.linalg.solve(system, right)[:12].T)


@pytest.mark.parametrize("penalty", [np.inf, 10.0, 0.1])
def test_left_out_errors_are_those_of_refits(penalty):
    features, effects = _simulate(1, 9, 4, True)
    own, known = features[:9], effects[:9]
    spread = np.random.default_rng(2).uniform(0.5, 2, size=9)
    z = (own - own.mean(axis=0)) / own.std(axis=0)
    kernel = z @ z.T / 4 / penalty
    centred = known - known.mean(axis=0)
    fast = _similarity._left_out_errors(kernel, centred @ centred.T, spread)
    for i in range(9):
        rest = np.delete(np.arange(9), i)
        precision = np.linalg.inv(kernel[np.ix_(rest, rest)] + np.diag(spread[rest]))
        mean = precision.sum(axis=0) @ known[rest] / precision.sum()
        predicted = mean + kernel[i, rest] @ precision @ (known[rest] - mean)
        assert np.isclose(fast[i], ((known[i] - predicted) ** 2).sum() / spread[i])


def test_units_of_features_and_effects_do_not_matter():
    features, effects = _simulate(3, 20, 5, True)
    own, query, known = features[:20], features[20:], effects[:20]
    scale, shift = np.array([1e-3, 1, 7, 1e4, 50]), np.array([5, -2, 0, 1e3, 1])
    weights = similarity_weights(own, known, query)
    other = similarity_weights(own * scale + shift, 3 * known + 1, query * scale + shift)
    assert np.allclose(weights, other)


def test_order_of_members_does_not_matter():
    features, effects = _simulate(4, 20, 5, True)
    order = np.random.default_rng(0).permutation(20)
    weights = similarity_weights(features[:20], effects[:20], features[20:])
    other = similarity_weights(features[order], effects[order], features[20:])
    assert np.allclose(weights[:, order], other)


def test_constant_columns_are_ignored():
    features, effects = _simulate(5, 20, 5, True)
    constant = np.full((len(features), 3), 0.1)
    constant[20:] = 99
    wide = np.hstack([features, constant])
    weights = similarity_weights(features[:20], effects[:20], features[20:])
    assert np.allclose(weights, similarity_weights(wide[:20], effects[:20], wide[20:]))
    alone = similarity_weights(constant[:20], effects[:20], constant[20:])
    assert np.allclose(alone, 1 / 20)


@pytest.mark.parametrize("n_members", [1, 2])
def test_few_members_have_equal_weights(n_members):
    features, effects = _simulate(6, n_members, 5, True)
    weights = similarity_weights(features[:n_members], effects[:n_members], features[n_members:])
    assert np.allclose(weights, 1 / n_members)
    assert weights.shape == (N_QUERY, n_members)


def test_no_query_gives_no_rows():
    features, effects = _simulate(6, 5, 3, True)
    assert similarity_weights(features[:5], effects[:5], features[:0]).shape == (0, 5)


def test_equal_effects_have_equal_weights():
    features, _ = _simulate(7, 10, 3, True)
    weights = similarity_weights(features[:10], np.ones((10, 4)), features[10:], np.zeros(10))
    assert np.allclose(weights, 0.1)


def test_noisy_members_count_less():
    rng = np.random.default_rng(8)
    noise = np.repeat([0.05, 5.0], 15)
    gain = []
    for _ in range(10):
        truth = rng.normal(size=100)
        own = truth + 0.3 * rng.normal(size=(30, 100))
        effects = own + np.sqrt(noise)[:, None] * rng.normal(size=own.shape)
        features, query = rng.normal(size=(30, 4)), rng.normal(size=(5, 4))
        weights = similarity_weights(features, effects, query, noise)
        per_gene = np.tile(noise[:, None], (1, 100))
        assert np.allclose(weights, similarity_weights(features, effects, query, per_gene))
        ours = ((weights @ effects - truth) ** 2).mean()
        gain.append(ours / ((effects.mean(axis=0) - truth) ** 2).mean())
    assert np.mean(gain) < 0.5


def test_equal_noise_changes_nothing():
    features, effects = _simulate(9, 20, 5, True)
    weights = similarity_weights(features[:20], effects[:20], features[20:])
    same = similarity_weights(features[:20], effects[:20], features[20:], np.full(20, 0.3))
    assert np.allclose(weights, same)


def test_errors_say_what_is_wrong():
    features, effects = np.eye(4), np.ones((4, 3))
    with pytest.raises(ValueError, match="Shapes do not fit"):
        similarity_weights(features, effects, np.ones((2, 3)))
    with pytest.raises(ValueError, match="Shapes do not fit"):
        similarity_weights(features, effects[:3], features)
    with pytest.raises(ValueError, match="two dimensions"):
        similarity_weights(features, effects[:, 0], features)
    with pytest.raises(ValueError, match="no measured treatment"):
        similarity_weights(features[:0], effects[:0], features)
    with pytest.raises(ValueError, match=r"effects has a NaN.*row 1, column 2"):
        similarity_weights(
            features, np.where(np.arange(12).reshape(4, 3) == 5, np.nan, 1), features
        )
    with pytest.raises(ValueError, match=r"noise has the shape \(3,\)"):
        similarity_weights(features, effects, features, np.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        similarity_weights(features, effects, features, -np.ones(4))
