"""Closed forms of the individual term and of the latent divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from scvci.module import get_likelihood, individual_term, latent_divergence


def _normal(mean, sd):
    return Normal(torch.tensor([[mean]]), torch.tensor([[sd]]))


@pytest.mark.parametrize(
    ("q", "p", "exact", "paper"),
    [
        # Check values of the reference implementation's form beside the exact divergence.
        ((0.0, 1.0), (1.0, 2.0), 0.4431, 0.8181),
        ((0.0, 0.7), (1.0, 0.7), 1.0204, 0.5),
        ((0.3, 1.2), (0.3, 1.2), 0.0, 0.0),
    ],
)
def test_divergence_check_values(q, p, exact, paper):
    assert float(latent_divergence(_normal(*q), _normal(*p))) == pytest.approx(exact, abs=1e-4)
    assert float(latent_divergence(_normal(*q), _normal(*p), "paper")) == pytest.approx(
        paper, abs=1e-4
    )


@pytest.mark.parametrize("sd", [0.7, 1.0, 2.0])
def test_paper_form_is_exact_times_variance_for_equal_spread(sd):
    gap = torch.linspace(-2, 2, 7)[None]
    scale = torch.full_like(gap, sd)
    q, p = Normal(gap, scale), Normal(torch.zeros_like(gap), scale)
    exact, paper = latent_divergence(q, p), latent_divergence(q, p, "paper")
    torch.testing.assert_close(paper, exact * sd**2)


def test_divergence_against_monte_carlo():
    torch.manual_seed(0)
    q = Normal(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.8, 1.5]]))
    p = Normal(torch.tensor([[0.0, 0.3]]), torch.tensor([[1.1, 0.9]]))
    z = q.sample((200_000,))
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(-1)
    error = 4 * float(ratio.std() / len(z) ** 0.5)
    assert float(latent_divergence(q, p)) == pytest.approx(float(ratio.mean()), abs=error)


def test_individual_term_sums_or_averages_genes_and_averages_draws():
    y = torch.tensor([[0.0, 1.0, 2.0]])
    py = Normal(torch.stack([torch.zeros(1, 3), torch.ones(1, 3)]), torch.ones(2, 1, 3))
    by_hand = -0.5 * (
        stats.norm.logpdf([0, 1, 2], 0).sum() + stats.norm.logpdf([0, 1, 2], 1).sum()
    )
    assert float(individual_term(py, y)) == pytest.approx(by_hand, rel=1e-5)
    assert float(individual_term(py, y, "mean")) == pytest.approx(by_hand / 3, rel=1e-5)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_count_likelihoods_are_distributions_with_the_library_as_mean(name):
    torch.manual_seed(1)
    likelihood = get_likelihood(name)(4)
    heads = torch.randn(1, likelihood.n_heads, 4)
    size = torch.tensor([[30.0]])
    px = likelihood.distribution(heads, size)
    counts = torch.arange(2000.0)[:, None].expand(-1, 4)
    # log pmf of every count for each gene: it sums to one and has the stated mean
    pmf = likelihood.distribution(heads, size).log_prob(counts).exp()
    torch.testing.assert_close(pmf.sum(0), torch.ones(4), atol=2e-3, rtol=0)
    torch.testing.assert_close((pmf * counts).sum(0), px.mean[0], rtol=2e-2, atol=1e-2)
    if name != "zinb":
        assert float(px.mean.sum()) == pytest.approx(30.0, rel=1e-4)


def test_negative_binomial_against_scipy():
    likelihood = get_likelihood("nb")(3)
    heads = torch.tensor([[[0.2, -0.4, 1.0]]])
    counts = torch.tensor([[0.0, 3.0, 11.0]])
    mu = 20 * torch.softmax(heads[0, 0], -1).numpy()
    theta = likelihood.log_theta.exp().detach().numpy()
    expected = stats.nbinom.logpmf(counts[0].numpy(), theta, theta / (theta + mu))
    found = likelihood.distribution(heads, torch.tensor([[20.0]])).log_prob(counts)[0]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)


def test_zero_inflation_against_hand_computed_mixture():
    likelihood = get_likelihood("zinb")(2)
    heads = torch.tensor([[[0.0, 0.0], [-1.0, 2.0]]])
    mu, theta = 5.0, likelihood.log_theta.exp().detach().numpy()
    share = 1 / (1 + np.exp(-np.array([-1.0, 2.0])))
    nb0 = stats.nbinom.pmf(0, theta, theta / (theta + mu))
    nb2 = stats.nbinom.pmf(2, theta, theta / (theta + mu))
    px = likelihood.distribution(heads, torch.tensor([[10.0]]))
    zero, two = px.log_prob(torch.zeros(1, 2))[0], px.log_prob(torch.full((1, 2), 2.0))[0]
    np.testing.assert_allclose(zero.exp().detach(), share + (1 - share) * nb0, rtol=1e-4)
    np.testing.assert_allclose(two.exp().detach(), (1 - share) * nb2, rtol=1e-4)


def test_size_factor_link_does_not_close_the_composition():
    heads = torch.zeros(1, 1, 4)
    size = torch.tensor([[2.0]])
    assert float(get_likelihood("nb")(4).distribution(heads, size).mean.sum()) == pytest.approx(2)
    open_ended = get_likelihood("nb")(4, composition=False)
    assert float(open_ended.distribution(heads, size).mean.sum()) == pytest.approx(8)


def test_normal_has_a_floor_under_sigma():
    likelihood = get_likelihood("normal")(2)
    with torch.no_grad():
        likelihood.raw_sigma.fill_(-50.0)
    px = likelihood.distribution(torch.zeros(1, 1, 2), torch.ones(1, 1))
    assert px.scale.min().item() == pytest.approx(0.05)


def test_unknown_likelihood_is_named():
    with pytest.raises(ValueError, match="gamma.*nb"):
        get_likelihood("gamma")
