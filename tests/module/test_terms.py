"""Closed forms of the individual term and of the latent divergence."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from scvci.module import individual_term, latent_divergence


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
