"""The regression test of effect heterogeneity, on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scvci.effects._heterogeneity import heterogeneity_test
from scvci.effects._regressions import Sample, fit_genes


def _softmax(eta):
    rate = np.exp(eta)
    return rate / rate.sum(axis=1, keepdims=True)


def _simulate(seed, n=300, heterogeneity=0.0, noise=0.5, n_genes=40, leak=0.0, clusters=None):
    """Predictions expect ``heterogeneity=1``; baselines differ between cells in any case."""
    rng = np.random.default_rng(seed)
    z, treated = rng.normal(size=(n, 2)), rng.random(n) < 0.4
    offset, loadings = rng.normal(0, 1, n_genes), rng.normal(0, 0.4, (2, n_genes))
    effect, gains = rng.normal(0.3, 0.8, n_genes), rng.normal(0, 0.5, (2, n_genes))
    gains[:, ::2] = 0
    # The baseline is not quite what is predicted.
    eta = offset + z @ loadings + 0.2 * z[:, :1] ** 2 * (loadings[0] > 0)
    eta = eta + treated[:, None] * (effect + heterogeneity * z @ gains)
    if clusters is not None:
        eta = (
            eta + treated[:, None] * (rng.normal(0, 0.3, (clusters.max() + 1, n_genes)))[clusters]
        )
    library = 2000 * np.exp(rng.normal(0, 0.3, n))[:, None]
    counts = rng.poisson(_softmax(eta) * library * rng.gamma(5, 1 / 5, eta.shape))
    seen = (z + noise * rng.normal(size=z.shape)) / (1 + noise**2) + leak * treated[:, None]
    base = offset + seen @ loadings
    genes = [f"g{i}" for i in range(n_genes)]
    return counts, treated, _softmax(base), _softmax(base + effect + seen @ gains), genes


def test_p_values_are_uniform_without_heterogeneity():
    """A homogeneous fold change of heterogeneous baselines, in data of three sizes."""
    p_values, joint, signature, leakage = [], [], [], []
    for seed in range(60):
        data = _simulate(seed, n=(120, 250, 400)[seed % 3])
        table = heterogeneity_test(*data, min_cells=10, margin=0.0)
        p_values += table["p_value"][2:].dropna().tolist()
        joint.append(table["p_value"][0])
        signature.append(table["p_value"][1])
        leakage.append(table["shift_p_value"][1])
    assert stats.kstest(p_values[::10], "uniform").pvalue > 0.01
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.075
    for p in (joint, signature, leakage):
        assert stats.kstest(p, "uniform").pvalue > 0.005


def test_estimates_what_came_true():
    estimates, covered, found, wrong = [], [], [], []
    for seed in range(12):
        table = heterogeneity_test(*_simulate(seed, heterogeneity=1.0, noise=1e-3))
        estimates.append(table["estimate"][0])
        genes = table.iloc[2:].dropna(subset="estimate")
        covered += ((genes["ci_low"] < 1) & (genes["ci_high"] > 1)).tolist()
        differing = genes["gene"].str[1:].astype(int) % 2 == 1
        found.append((genes.loc[differing, "q_value"] < 0.05).mean())
        wrong.append((genes.loc[~differing, "q_value"] < 0.05).any())
    assert np.mean(wrong) <= 0.25
    assert np.mean(estimates) == pytest.approx(1, abs=0.05)
    assert 0.9 < np.mean(covered) < 0.98
    assert np.mean(found) > 0.8
    weaker = [
        heterogeneity_test(*_simulate(seed, heterogeneity=0.5, noise=1e-3))["estimate"][0]
        for seed in range(12)
    ]
    assert np.mean(weaker) == pytest.approx(0.5, abs=0.05)


def test_composition_is_taken_off():
    """Without it, raising some genes looks like different effects on the others."""
    with_it, without = [], []
    for seed in range(8):
        counts, treated, base, predicted, genes = _simulate(seed, n=1500, noise=1e-3)
        # A model that knows the truth: no differences but those of the composition.
        rng = np.random.default_rng(seed)
        effect = rng.normal(1.0, 1.5, len(genes))
        predicted = base * np.exp(effect)
        predicted /= predicted.sum(axis=1, keepdims=True)
        counts = rng.poisson(2000 * np.where(treated[:, None], predicted, base))
        table = heterogeneity_test(counts, treated, base, predicted, genes, margin=0.0)
        with_it.append(table["predicted_sd"][0])
        table = heterogeneity_test(
            counts, treated, base, predicted, genes, margin=0.0, composition=False
        )
        without.append(table["p_value"][0])
    assert np.nanmax(with_it) < 0.02
    assert np.median(without) < 1e-3


def test_agrees_with_a_general_fit():
    """Coefficients and HC3 errors against Newton steps on the full design, strata included."""
    rng = np.random.default_rng(0)
    n = 400
    treated, stratum = rng.random(n) < 0.5, rng.integers(3, size=n)
    base, score, offset = rng.normal(size=(n, 1)), rng.normal(size=(n, 1)), rng.normal(0, 0.2, n)
    eta = 0.5 + 0.3 * stratum + 0.4 * treated * (stratum == 1) + 0.3 * base[:, 0]
    y = rng.poisson(np.exp(eta + offset + 0.4 * treated * score[:, 0]))[:, None].astype(float)
    sample = Sample(treated, offset, stratum, None)
    fits = fit_genes(sample, y, base, score, min_counts=5)
    arm = np.eye(6)[2 * stratum + treated]
    centred = sample.centred(score)
    design = np.column_stack([arm, base, centred, treated[:, None] * centred])
    beta = np.zeros(design.shape[1])
    for _ in range(60):
        mean = np.exp(design @ beta + offset)
        inverse = np.linalg.inv(design.T @ (mean[:, None] * design))
        beta += inverse @ design.T @ (y[:, 0] - mean)
    assert fits.estimate[0] == pytest.approx(beta[-1], abs=1e-5)
    leverage = mean * ((design @ inverse) * design).sum(axis=1)
    influence = (design @ inverse)[:, -1] * (y[:, 0] - mean) / (1 - leverage)
    np.testing.assert_allclose(fits.influence[:, 0], influence, atol=1e-6)


def test_invariances():
    counts, treated, base, predicted, genes = _simulate(1)
    table = heterogeneity_test(counts, treated, base, predicted, genes)
    order = np.random.default_rng(0).permutation(len(treated))
    shuffled = heterogeneity_test(
        sparse.csr_matrix(counts[order]), treated[order], base[order], predicted[order], genes
    )
    # The unit of predictions does not matter, nor does that of the size.
    scaled = heterogeneity_test(
        counts, treated, 7 * base, 7 * predicted, genes, size=3.0 * counts.sum(axis=1)
    )
    reverse = heterogeneity_test(
        counts[:, ::-1], treated, base[:, ::-1], predicted[:, ::-1], genes[::-1]
    )
    for other in (shuffled, scaled, reverse.set_index("gene").loc[table["gene"]]):
        for column in ("estimate", "std_error", "shift"):
            np.testing.assert_allclose(other[column], table[column], rtol=1e-4, atol=1e-6)


def test_leakage_is_reported():
    kept = [heterogeneity_test(*_simulate(s))["leakage"][:2].any() for s in range(20)]
    caught = [heterogeneity_test(*_simulate(s, leak=0.5))["leakage"][0] for s in range(20)]
    assert np.mean(kept) <= 0.2
    assert np.mean(caught) >= 0.9


def test_strata_have_effects_of_their_own():
    """Strata that differ in effect and are told apart by the prediction: not heterogeneity."""
    p_values = []
    for seed in range(6):
        one, two = _simulate(2 * seed, n=250), _simulate(2 * seed + 1, n=250)
        counts, treated, base, predicted = (
            np.concatenate([a, b]) for a, b in zip(one[:4], two[:4], strict=True)
        )
        stratum = np.repeat(["a", "b"], 250)
        arguments = counts, treated, base, predicted, one[4]
        table = heterogeneity_test(*arguments, stratum=stratum, margin=0.0)
        p_values.append(table["p_value"][0])
        assert heterogeneity_test(*arguments, margin=0.0)["p_value"][0] < 1e-3
    assert np.median(p_values) > 0.1


def test_clusters_widen_intervals_and_few_are_few():
    clusters = np.random.default_rng(0).integers(6, size=300)
    data = _simulate(0, clusters=clusters)
    table = heterogeneity_test(*data, cluster=clusters)
    half = (table["ci_high"] - table["estimate"]) / table["std_error"]
    np.testing.assert_allclose(half.dropna(), stats.t.ppf(0.975, 5), rtol=1e-6)
    one = heterogeneity_test(*data, cluster=np.zeros(300))
    assert (one["note"] == "all cells are of one cluster").all()


def test_rows_without_estimate_say_why():
    counts, treated, base, predicted, genes = _simulate(0)
    counts[:, 0] = 0
    ratio = np.exp(0.3) * base[:, 1]
    predicted[:, 1] = ratio
    table = heterogeneity_test(counts, treated, base, predicted, genes).set_index("gene")
    assert table.loc["g0", "note"] == "too few counts in an arm"
    assert np.isnan(table.loc["g0", "estimate"])
    same = heterogeneity_test(counts, treated, base, 2 * base, genes)
    assert same["estimate"].isna().all()
    assert same["note"][3] == "all cells have the same predicted effect"
    assert same["note"][0] == "no gene could be tested"
    few = heterogeneity_test(counts, treated, base, predicted, genes, min_cells=500)
    assert (few["note"] == "fewer than min_cells=500 cells in an arm").all()
    none = heterogeneity_test(counts, np.zeros(300, bool), base, predicted, genes)
    assert none["estimate"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": np.ones((3, 4))}, r"baseline of shape \(3, 4\)"),
        ({"outcome": -np.ones((300, 40))}, "outcome holds negative"),
        ({"prediction": np.zeros((300, 40))}, "prediction must be positive"),
        ({"cluster": np.zeros(3)}, "3 values of cluster for 300 cells"),
    ],
)
def test_errors(change, message):
    names = ("outcome", "treated", "baseline", "prediction", "genes")
    data = dict(zip(names, _simulate(0), strict=True))
    with pytest.raises(ValueError, match=message):
        heterogeneity_test(**{**data, **change})
