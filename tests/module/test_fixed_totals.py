"""Counts with given totals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial

from scvci.module._fixed_totals import sample_with_totals


def _distribution(kind, mu, theta=5.0, dropout_logits=-1.0):
    full = torch.full_like(mu, theta)
    if kind == "poisson":
        return Poisson(mu)
    if kind == "nb":
        return NegativeBinomial(mu=mu, theta=full)
    return ZeroInflatedNegativeBinomial(
        mu=mu, theta=full, zi_logits=torch.full_like(mu, dropout_logits)
    )


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
@pytest.mark.parametrize("shape", [(40, 37), (3, 40, 64), (40, 1)])
def test_totals_are_exact(kind, shape):
    mu = torch.rand(shape, generator=_generator()) * 10
    totals = torch.randint(0, 30_000, (40, 1), generator=_generator())
    totals[:3] = 0
    counts = sample_with_totals(_distribution(kind, mu), totals, _generator())
    assert counts.shape == mu.shape
    assert counts.dtype == mu.dtype
    assert (counts >= 0).all()
    assert (counts == counts.round()).all()
    expected = totals.expand(*shape[:-1], 1).to(counts.dtype)
    torch.testing.assert_close(counts.sum(-1, keepdim=True), expected, rtol=0, atol=0)
    assert (counts[..., :3, :] == 0).all()


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_means_follow_the_distribution(kind):
    """Many genes, none with much of the total: means within five standard errors."""
    mu = torch.rand(300, generator=_generator(3)).expand(4000, 300) + 0.05
    counts = sample_with_totals(_distribution(kind, mu), torch.full((4000, 1), 900), _generator())
    expected = 900 * mu[0] / mu[0].sum()
    z = (counts.mean(dim=0) - expected) / (counts.std(dim=0) / 4000**0.5)
    assert z.abs().max() < 5
    # Dividing by a random sum moves means by a few tenths of a per cent.
    assert z.square().mean() < 1.6


def test_poisson_is_multinomial():
    """Given its total, each gene's Poisson count is binomial."""
    share = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    mu = (40 * share).expand(20_000, 5)
    counts = sample_with_totals(Poisson(mu), torch.full((20_000, 1), 12), _generator()).numpy()
    for gene, p in enumerate(share[:4].tolist()):
        expected = stats.binom.pmf(np.arange(13), 12, p) * 20_000
        seen = np.bincount(counts[:, gene].astype(int), minlength=13)
        large = expected > 5
        statistic = ((seen - expected) ** 2 / expected)[large].sum()
        assert stats.chi2.sf(statistic, large.sum()) > 1e-4
    assert (counts[:, 4] == 0).all()
    covariance = np.cov(counts[:, :4].T)
    p = share[:4].numpy()
    np.testing.assert_allclose(covariance, 12 * (np.diag(p) - np.outer(p, p)), atol=0.08)


def test_negative_binomial_keeps_its_dispersion():
    """With many genes the total hardly ties them: variances are μ + μ²/θ."""
    mu = torch.full((4000, 400), 8.0)
    counts = sample_with_totals(
        NegativeBinomial(mu=mu, theta=torch.full_like(mu, 2.0)),
        torch.full((4000, 1), 3200),
        _generator(),
    )
    np.testing.assert_allclose(counts.var(dim=0).mean(), 8 + 64 / 2, rtol=0.03)


def test_zero_inflation_drops_genes_but_never_all():
    mu = torch.full((3000, 200), 50.0)
    counts = sample_with_totals(
        _distribution("zinb", mu, theta=50.0, dropout_logits=0.0),
        torch.full((3000, 1), 10_000),
        _generator(),
    )
    np.testing.assert_allclose((counts == 0).float().mean(), 0.5, atol=0.01)
    sure = _distribution("zinb", mu[:50], dropout_logits=40.0)
    counts = sample_with_totals(sure, torch.full((50, 1), 7), _generator())
    assert (counts.sum(dim=-1) == 7).all()


def test_seeds_and_generators_fix_the_sample():
    distribution = _distribution("zinb", torch.rand((20, 30), generator=_generator()) + 0.1)
    totals = torch.full((20, 1), 500)
    a, b, other = (sample_with_totals(distribution, totals, _generator(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    torch.manual_seed(4)
    a = sample_with_totals(distribution, totals)
    torch.manual_seed(4)
    assert torch.equal(a, sample_with_totals(distribution, totals))


def test_rare_counts_of_tiny_theta_and_many_genes():
    """Nearly all gamma variables underflow; totals are met all the same."""
    mu = torch.rand((5, 50_000), generator=_generator()) * 1e-3
    totals = torch.arange(5)[:, None] * 1000
    for theta in (1e-8, 1e-3):
        counts = sample_with_totals(_distribution("nb", mu, theta), totals, _generator())
        assert torch.equal(counts.sum(dim=-1, keepdim=True).long(), totals)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_with_its_own_generator():
    mu = torch.rand((40, 37), generator=_generator()).cuda() + 0.1
    totals = torch.arange(40)[:, None] * 500
    distribution = _distribution("zinb", mu)
    a, b = (
        sample_with_totals(distribution, totals, torch.Generator("cuda").manual_seed(0))
        for _ in range(2)
    )
    assert a.device == mu.device
    assert torch.equal(a, b)
    assert torch.equal(a.sum(dim=-1, keepdim=True).long().cpu(), totals)


@pytest.mark.parametrize(
    ("totals", "message"),
    [
        (torch.full((4, 1), 2.5), "has the value 2.5 .*row 0"),
        (torch.tensor([[1.0], [-1.0], [2.0], [3.0]]), "has the value -1 .*row 1"),
        (torch.full((4, 1), torch.nan), "has the value nan"),
        (torch.full((4, 1), 2.0**25), "whole numbers from 0 to 16777216"),
        (torch.ones(3, 1), r"shape \(3, 1\), not \(4, 1\)"),
    ],
)
def test_wrong_totals_are_named(totals, message):
    with pytest.raises(ValueError, match=message):
        sample_with_totals(Poisson(torch.ones(4, 5)), totals)


def test_other_likelihoods_and_empty_cells_are_refused():
    normal = Normal(torch.zeros(4, 5), torch.ones(4, 5))
    with pytest.raises(TypeError, match="Normal has no totals to fix"):
        sample_with_totals(normal, torch.ones(4, 1))
    mu = torch.ones(4, 5)
    mu[2] = 0
    with pytest.raises(ValueError, match="Row 2 has means that are all zero"):
        sample_with_totals(Poisson(mu), torch.ones(4, 1))
    totals = torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    assert (sample_with_totals(Poisson(mu), totals).sum(dim=-1) == totals[:, 0]).all()
