"""Moments of the training cells."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from helpers import table_of_cells
from scipy import sparse

from scvci.data._statistics import compute_statistics

_N_CELLS, _N_PAIRS = 4000, 4


def _statistics(theta: np.ndarray, mean: np.ndarray, seed: int):
    """Moments of counts whose means differ between pairs, at sizes that differ between cells."""
    rng = np.random.default_rng(seed)
    pair = rng.integers(_N_PAIRS, size=_N_CELLS)
    size = np.exp(rng.normal(0, 0.6, size=_N_CELLS))
    rate = (mean * np.exp(rng.normal(0, 0.5, size=(_N_PAIRS, len(mean)))))[pair] * size[:, None]
    counts = rng.poisson(rate * rng.gamma(theta, 1 / theta, size=rate.shape))
    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    codes = np.zeros(_N_CELLS, dtype=np.int64)
    cells = table_of_cells(adata, pair, codes, _N_PAIRS, 1, size_factor=size)
    return compute_statistics(cells, uses_size=True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overdispersion_of_each_gene_is_found(seed):
    theta = np.repeat([0.5, 2.0, 20.0], 20)
    found = _statistics(theta, np.full(60, 5.0), seed).overdispersion()
    np.testing.assert_allclose(found.reshape(3, 20).mean(axis=1), [2.0, 0.5, 0.05], rtol=0.15)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overdispersion_of_rare_genes_is_that_of_the_others(seed):
    """What a gene with forty counts says of its own is noise; sizes are not taken for it."""
    mean = np.repeat([5.0, 0.01], 30)
    found = _statistics(np.full(60, 2.0), mean, seed).overdispersion()
    assert np.abs(np.log(found[30:] / 0.5)).mean() < 0.3
    poisson = _statistics(np.full(60, 1e6), mean, seed).overdispersion()
    assert poisson.max() < 0.1


def test_overdispersion_does_not_depend_on_the_reference_size():
    statistics = _statistics(np.full(20, 2.0), np.full(20, 3.0), 0)
    np.testing.assert_allclose(
        statistics.at_size(7.0).overdispersion(), statistics.overdispersion(), rtol=0.02
    )
