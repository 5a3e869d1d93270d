"""Tables of the means of pairs."""

from __future__ import annotations

import numpy as np

from scvci import metrics
from scvci.metrics._tables import baseline_tables


def test_pair_pseudobulks(rng):
    counts = rng.poisson(5, size=(40, 6))
    treatment, stratum = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    table = metrics.pair_pseudobulks(counts, treatment, stratum, (3, 2))
    np.testing.assert_allclose(
        table[1, 0], metrics.pseudobulk(counts[(treatment == 0) & (stratum == 1)])
    )
    assert np.isnan(table[2]).all()
    assert set(baseline_tables(table)) == set(metrics.BASELINES)
