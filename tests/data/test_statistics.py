"""Moments of the training cells."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from helpers import table_of_cells
from scipy import sparse

from scvci.data._statistics import compute_statistics, pseudobulk_moments

_N_CELLS, _N_PAIRS = 4000, 4


def _cells(theta: np.ndarray, mean: np.ndarray, seed: int):
    """Counts whose means differ between pairs, at sizes that differ between cells."""
    rng = np.random.default_rng(seed)
    pair = rng.integers(_N_PAIRS, size=_N_CELLS)
    size = np.exp(rng.normal(0, 0.6, size=_N_CELLS))
    rate = (mean * np.exp(rng.normal(0, 0.5, size=(_N_PAIRS, len(mean)))))[pair] * size[:, None]
    counts = rng.poisson(rate * rng.gamma(theta, 1 / theta, size=rate.shape))
    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    codes = np.zeros(_N_CELLS, dtype=np.int64)
    return table_of_cells(adata, pair, codes, _N_PAIRS, 1, size_factor=size)


def _statistics(theta: np.ndarray, mean: np.ndarray, seed: int):
    return compute_statistics(_cells(theta, mean, seed), uses_size=True)


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


def test_pseudobulks_are_sums_of_counts_over_sums_of_sizes():
    cells = _cells(np.full(20, 2.0), np.full(20, 3.0), 0)
    found = pseudobulk_moments(cells, 7.0)
    counts, size = cells.counts(np.arange(_N_CELLS)).toarray(), cells.size_factor
    for p in range(_N_PAIRS):
        own = cells.treatment == found.pairs.treatment[p]
        mean = 7 * counts[own].sum(axis=0) / size[own].sum()
        np.testing.assert_allclose(found.mean[p], mean, rtol=1e-6)
        left = 7 * counts[own] - mean * size[own, None]
        variance = own.sum() * (left**2).sum(axis=0) / size[own].sum() ** 2
        np.testing.assert_allclose(found.variance[p], variance, rtol=1e-5)
        assert found.count[p] == own.sum()


def test_noise_of_pseudobulks_is_that_of_repeated_experiments():
    """Poisson counts: the sampling variance of Σ counts / Σ sizes is mean / Σ sizes."""
    cells = _cells(np.full(200, 1e6), np.full(200, 2.0), 3)
    found = pseudobulk_moments(cells, 1.0)
    total = np.bincount(cells.treatment, cells.size_factor)[:, None]
    stated = found.variance / found.count[:, None]
    np.testing.assert_allclose((stated * total / found.mean).mean(), 1, rtol=0.05)


def test_log_data_have_no_size_to_count_by():
    cells = _cells(np.full(5, 2.0), np.full(5, 3.0), 0)
    found, moments = pseudobulk_moments(cells, None), compute_statistics(cells, False).moments
    np.testing.assert_allclose(found.mean, moments.mean)
    np.testing.assert_allclose(found.variance, moments.variance, rtol=1e-6)
