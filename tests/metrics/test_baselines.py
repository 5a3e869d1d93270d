"""Baselines on tables of means."""

from __future__ import annotations

import numpy as np
import pytest

from scvci import metrics


@pytest.fixture
def table(rng):
    """Additive truth c_x + d_t for 3 strata, 4 treatments and 5 genes."""
    base, effect = rng.normal(size=(3, 1, 5)), rng.normal(size=(1, 4, 5))
    effect[:, 0] = 0
    return base + effect


def test_additive_recovers_what_is_additive(table):
    seen = table.copy()
    seen[1, 2] = np.nan
    np.testing.assert_allclose(metrics.additive(seen), table)


def test_baselines_never_use_the_pair_itself_where_there_is_another(table):
    poisoned = table.copy()
    poisoned[1, 2] += 100
    for name in ("treatment mean", "additive", "low-rank linear"):
        baseline = metrics.BASELINES[name]
        np.testing.assert_allclose(baseline(poisoned)[1, 2], baseline(table)[1, 2], err_msg=name)


def test_no_change_and_treatment_mean_by_hand(table):
    assert (metrics.no_change(table)[:, 3] == table[:, 0]).all()
    expected = (table[1, 2] + table[2, 2]) / 2
    np.testing.assert_allclose(metrics.treatment_mean(table)[0, 2], expected)


def test_treatment_of_a_single_stratum(table):
    only = table.copy()
    only[1:, 3] = np.nan
    np.testing.assert_allclose(metrics.additive(only)[1, 3], table[1, 3])
    np.testing.assert_allclose(metrics.treatment_mean(only)[0, 3], table[0, 3])
    nowhere = table.copy()
    nowhere[:, 3] = np.nan
    for baseline in (metrics.additive, metrics.treatment_mean, metrics.low_rank_linear):
        assert np.isnan(baseline(nowhere)[:, 3]).all()


def test_low_rank_linear_keeps_the_control_and_predicts_low_rank_effects(rng):
    profiles = rng.normal(size=(1, 30))
    size = np.array([0.0, 1.0, 2.0, 3.0, -2.0])[None, :, None]
    means = rng.normal(size=(6, 1, 30)) + size * profiles
    predicted = metrics.low_rank_linear(means, ridge=1e-6)
    np.testing.assert_allclose(predicted[:, 0], means[:, 0])
    np.testing.assert_allclose(predicted, means, atol=1e-3)


def test_tables_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        metrics.additive(np.zeros((2, 3)))
