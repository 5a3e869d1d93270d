"""The mixed model of effects against brute force, and what it recovers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from scvci.pooling import (
    EffectVariances,
    PairMeans,
    Pairs,
    _mixed_model,
    effect_variances,
    forecast,
)


def _pairs(observed):
    return Pairs(*np.nonzero(observed), *observed.shape)


def _grid(means, variances):
    """Forecast of all pairs, shape ``(n_strata, n_treatments, n_genes)``."""
    shape = means.pairs.n_strata, means.pairs.n_treatments
    stratum, treatment = (codes.ravel() for codes in np.indices(shape))
    return forecast(means, variances, adaptive=False).at(stratum, treatment).reshape(*shape, -1)


def _dense(means, values):
    """Rows of measured pairs in a grid, with NaN elsewhere."""
    pairs = means.pairs
    grid = np.full((pairs.n_strata, pairs.n_treatments, values.shape[1]), np.nan)
    grid[pairs.stratum, pairs.treatment] = values
    return grid


def _draw(rng, variances, shape, noise, missing=()):
    """Means from the model itself; the control has no effect."""
    n_x, n_t, n_genes = shape
    scale = np.sqrt([variances.common, variances.treatment, variances.stratum, variances.pair])
    effect = (
        scale[0] * rng.normal(size=(1, 1, n_genes))
        + scale[1] * rng.normal(size=(1, n_t, n_genes))
        + scale[2] * rng.normal(size=(n_x, 1, n_genes))
        + scale[3] * rng.normal(size=shape)
    )
    effect[:, 0] = 0
    true = rng.normal(3, 1, size=(n_x, 1, n_genes)) + effect
    spread = np.full(shape, noise) * rng.uniform(0.5, 1.5, size=(1, 1, n_genes))
    observed = np.ones((n_x, n_t), dtype=bool)
    for pair in missing:
        observed[pair] = False
    value = true + np.sqrt(spread) * rng.normal(size=shape)
    return PairMeans(_pairs(observed), value[observed], spread[observed]), true


@pytest.mark.parametrize("seed", range(3))
def test_variances_are_recovered(seed):
    rng = np.random.default_rng(seed)
    truth = EffectVariances(common=0.2, treatment=0.5, stratum=0.1, pair=0.05)
    means, _ = _draw(rng, truth, (8, 12, 400), noise=0.1, missing=[(0, 3), (2, 5)])
    found = effect_variances(means)
    # The parts are averages over 400 genes and about ten draws each.
    for part in ("common", "treatment", "stratum", "pair"):
        assert getattr(found, part) == pytest.approx(getattr(truth, part), rel=0.35), part


def test_noise_alone_has_no_variance():
    found = []
    for seed in range(8):
        means, _ = _draw(
            np.random.default_rng(seed), EffectVariances(0, 0, 0, 0), (3, 9, 300), noise=0.2
        )
        found.append(effect_variances(means))
    assert np.mean([sum(vars(f).values()) for f in found]) < 0.02


def test_forecast_is_the_best_linear_prediction():
    """Parts against the conditional mean from the full covariance, gene by gene."""
    rng = np.random.default_rng(0)
    variances = EffectVariances(common=0.3, treatment=0.4, stratum=0.2, pair=0.1)
    means, _ = _draw(rng, variances, (3, 4, 5), noise=0.15, missing=[(1, 2)])
    value, noises = _dense(means, means.value), np.nan_to_num(_dense(means, means.noise))
    predicted = _grid(means, variances)
    pairs = [(x, t) for x in range(3) for t in range(1, 4)]
    seen = [p for p in pairs if p != (1, 2)]

    def covariance(p, q, gene, noise):
        shared = variances.common + variances.treatment * (p[1] == q[1])
        shared += variances.stratum * (p[0] == q[0]) + variances.pair * (p == q)
        # The control's noise is in all effects of its stratum.
        shared += noises[p[0], 0, gene] * (p[0] == q[0])
        return shared + noise * noises[(*p, gene)] * (p == q)

    for gene in range(5):
        k = np.array([[covariance(p, q, gene, 1) for q in seen] for p in seen])
        d = np.array([value[(*p, gene)] - value[p[0], 0, gene] for p in seen])
        for p in pairs:
            cross = np.array([covariance(p, q, gene, 0) for q in seen])
            expected = value[p[0], 0, gene] + cross @ np.linalg.solve(k, d)
            assert predicted[(*p, gene)] == pytest.approx(expected, abs=1e-3)
        for x in range(3):
            noise = noises[x, 0, gene] * np.array([q[0] == x for q in seen])
            expected = value[x, 0, gene] + noise @ np.linalg.solve(k, d)
            assert predicted[x, 0, gene] == pytest.approx(expected, abs=1e-3)


def test_forecast_beats_the_additive_mean_and_no_change_of_a_missing_pair():
    errors = {"forecast": [], "additive": [], "no change": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth = EffectVariances(common=0.05, treatment=0.05, stratum=0.05, pair=0.02)
        means, true = _draw(rng, truth, (3, 6, 200), noise=0.2, missing=[(0, 1)])
        value = _dense(means, means.value)
        base = value[0, 0]
        additive = base + np.mean([value[x, 1] - value[x, 0] for x in (1, 2)], 0)
        predicted = _grid(means, effect_variances(means))[0, 1]
        for name, guess in (("forecast", predicted), ("additive", additive), ("no change", base)):
            errors[name].append(np.mean((guess - true[0, 1]) ** 2))
    errors = {name: np.mean(values) for name, values in errors.items()}
    assert errors["forecast"] < 0.8 * errors["additive"]
    assert errors["forecast"] < 0.8 * errors["no change"]


@pytest.mark.parametrize("shape", [(1, 2, 20), (1, 5, 20), (4, 2, 20)])
def test_designs_that_cannot_tell_parts_apart(shape):
    rng = np.random.default_rng(0)
    means, _ = _draw(rng, EffectVariances(0.5, 0.2, 0.1, 0.1), shape, noise=0.01)
    variances = effect_variances(means)
    assert np.isfinite(list(vars(variances).values())).all()
    assert sum(vars(variances).values()) > 0.1
    assert np.isfinite(_grid(means, variances)).all()


def test_a_stratum_without_control_has_no_forecast():
    rng = np.random.default_rng(0)
    means, _ = _draw(rng, EffectVariances(0.5, 0.2, 0.1, 0.1), (3, 3, 20), 0.01, [(2, 0)])
    predicted = _grid(means, effect_variances(means))
    assert np.isnan(predicted[2]).all()
    assert np.isfinite(predicted[:2]).all()


def test_shares_of_noise():
    rng = np.random.default_rng(0)
    variances = EffectVariances(0.3, 0.2, 0.1, 0.1)
    missing = [(2, 0), (0, 1), (1, 1), (0, 2)]
    means, _ = _draw(rng, variances, (3, 3, 20), 0.3, missing)
    noise = _dense(means, means.noise)
    share = forecast(means, variances).noise_share
    assert np.isnan(share[1])
    for t, strata in ((0, [0, 1]), (2, [1])):
        mean = np.mean([noise[x, t] + noise[x, 0] for x in strata])
        assert share[t] == pytest.approx(mean / (mean + 0.7))


@pytest.mark.parametrize(
    "variances", [(0.04, 0.09, 0.01, 0.01), (0.05, 0.1, 0, 0), (0, 0.5, 0, 0)]
)
def test_parts_solve_the_mixed_model_equations(variances):
    """Against a direct solution, where noise differs by orders of magnitude."""
    rng = np.random.default_rng(0)
    observed = rng.random((12, 30)) < 0.4
    observed[:, 0] = True
    pairs = _pairs(observed)
    value, noise = rng.normal(3, 1, (len(pairs), 3)), np.exp(rng.normal(-4, 2, (len(pairs), 3)))
    variances = EffectVariances(*variances)
    fitted = forecast(PairMeans(pairs, value, noise), variances, adaptive=False)
    base = pairs.rows(pairs.stratum, 0)
    treated = np.flatnonzero(pairs.treatment > 0)
    x, t = pairs.stratum[treated], pairs.treatment[treated]
    design = np.hstack([np.ones((len(x), 1)), np.eye(30)[t], np.eye(12)[x]])
    for gene in range(3):
        stratum = variances.stratum + noise[pairs.rows(np.arange(12), 0), gene]
        sizes = np.repeat([variances.common, variances.treatment], [1, 30])
        scaled = design * np.sqrt(np.concatenate([sizes, stratum]))
        spread = noise[treated, gene] + variances.pair
        d = value[treated, gene] - value[base[treated], gene]
        # Parts are the conditional means of normal variables with these variances.
        covariance = scaled @ scaled.T + np.diag(spread)
        cross = design * np.concatenate([sizes, stratum])
        expected = cross.T @ np.linalg.solve(covariance, d)
        found = [fitted.common[:, gene], fitted.treatment[:, gene], fitted.stratum[:, gene]]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


def test_genes_are_fitted_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    variances = EffectVariances(0.3, 0.2, 0.1, 0.1)
    means, _ = _draw(rng, variances, (3, 4, 7), 0.3)
    whole = _grid(means, variances)
    monkeypatch.setattr(_mixed_model, "_MAX_NUMBERS", 2 * len(means.pairs))
    np.testing.assert_allclose(_grid(means, variances), whole, atol=1e-5)


def test_thousands_of_pairs_need_no_grid():
    """500 strata × 500 treatments × 20 genes would be 40 MB an array; the rows are 160 kB."""
    rng = np.random.default_rng(0)
    observed = rng.random((500, 500)) < 0.002
    observed[:, 0] = True
    pairs = _pairs(observed)
    value = rng.normal(3, 1, size=(len(pairs), 20))
    means = PairMeans(pairs, value, np.full_like(value, 0.1))
    tracemalloc.start()
    try:
        fitted = forecast(means, effect_variances(means))
        fitted.at(np.arange(500), np.arange(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_what_is_particular_to_a_pair_is_not_told_from_treatments_measured_once():
    rng = np.random.default_rng(8)
    x, t = (
        np.repeat([0, 1, 2], 11),
        np.concatenate([[0, *range(1 + 10 * i, 11 + 10 * i)] for i in range(3)]),
    )
    order = np.lexsort((t, x))
    pairs = Pairs(x[order], t[order], 3, 31)
    value = rng.normal(0, 0.5, (33, 200)) * (t[order] > 0)[:, None]
    variances = effect_variances(PairMeans(pairs, value, np.full(value.shape, 1e-4)))
    assert variances.pair == 0
    assert variances.treatment == pytest.approx(0.25, rel=0.15)
