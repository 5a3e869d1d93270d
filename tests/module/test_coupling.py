"""Noise that worlds share: consistency, coupling, and what its mean is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from torch._subclasses.fake_tensor import FakeTensorMode

import scvci
from scvci.module._coupling import expect_with_residuals, keep_rates, sample_with_residuals

_MEAN = torch.tensor([[0.5, 2.0, 8.0]])
_OUTCOME = torch.tensor([[0.0, 5.0, 7.0]])


def _worlds(kind: str, ratio: float):
    other = _MEAN * ratio
    if kind == "nb":
        return [
            NegativeBinomial(mu=m, theta=torch.tensor([0.5, 2.0, 9.0])) for m in (_MEAN, other)
        ]
    if kind == "poisson":
        return [Poisson(rate=m) for m in (_MEAN, other)]
    return [Normal(m, torch.ones_like(m)) for m in (_MEAN, other)]


@pytest.mark.parametrize("kind", ["nb", "poisson", "normal"])
def test_the_same_world_shows_the_same_outcome(kind):
    here, there = _worlds(kind, 1.0)
    for function in (expect_with_residuals, sample_with_residuals):
        torch.testing.assert_close(function(here, there, _OUTCOME), _OUTCOME)


@pytest.mark.parametrize("kind", ["nb", "poisson", "normal"])
@pytest.mark.parametrize("ratio", [0.3, 3.0])
def test_draws_have_the_stated_mean(kind, ratio):
    torch.manual_seed(0)
    here, there = _worlds(kind, ratio)
    expected = expect_with_residuals(here, there, _OUTCOME)
    outcome = _OUTCOME.expand(40_000, -1)
    draws = sample_with_residuals(*[_expand(d, 40_000) for d in (here, there)], outcome)
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - expected[0]).abs() <= 5 * error + 1e-5).all()


def _expand(distribution, n):
    if isinstance(distribution, NegativeBinomial):
        mean, theta = distribution.mu.expand(n, -1), distribution.theta.expand(n, -1)
        return NegativeBinomial(mu=mean, theta=theta)
    if isinstance(distribution, Poisson):
        return Poisson(rate=distribution.rate.expand(n, -1))
    return Normal(distribution.loc.expand(n, -1), distribution.scale.expand(n, -1))


def test_closed_forms():
    here, there = _worlds("nb", 3.0)
    theta = here.theta
    frailty = (theta + _OUTCOME) / (theta + _MEAN)
    torch.testing.assert_close(
        expect_with_residuals(here, there, _OUTCOME), _OUTCOME + 2 * _MEAN * frailty
    )
    torch.testing.assert_close(expect_with_residuals(*_worlds("nb", 0.25), _OUTCOME), _OUTCOME / 4)
    torch.testing.assert_close(
        expect_with_residuals(*_worlds("poisson", 3.0), _OUTCOME), _OUTCOME + 2 * _MEAN
    )
    torch.testing.assert_close(
        expect_with_residuals(*_worlds("normal", 3.0), _OUTCOME), _OUTCOME + 2 * _MEAN
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expectations_are_those_of_coupled_counts(seed):
    """With the true means, what is left of coupled counts has mean zero and is small."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=2000, n_genes=50, n_treatments=3, counterfactual_counts=True, seed=seed
    )
    means = [torch.tensor(adata.layers[f"true_{t}"]).double() for t in ("IFNb", "TNFa")]
    rows = (adata.obs["treatment"] == "IFNb").to_numpy()
    theta = torch.tensor(5.0, dtype=torch.float64)
    here, there = (NegativeBinomial(mu=m[rows], theta=theta.expand_as(m[rows])) for m in means)
    outcome = torch.tensor(adata.layers["counts"][rows].toarray(), dtype=torch.float64)
    truth = adata.layers["counts_TNFa"][rows].toarray()
    kept = expect_with_residuals(here, there, outcome).numpy()
    left = truth - kept
    standard_error = left.std(axis=0) / np.sqrt(rows.sum())
    assert np.abs(left.mean(axis=0) / standard_error).max() < 4.5
    assert (left**2).mean() < 0.6 * ((truth - there.mean.numpy()) ** 2).mean()


def test_dropout_has_no_residuals():
    zinb = ZeroInflatedNegativeBinomial(mu=_MEAN, theta=torch.ones(3), zi_logits=torch.zeros(1, 3))
    for function in (expect_with_residuals, sample_with_residuals):
        with pytest.raises(TypeError, match="ZeroInflatedNegativeBinomial has no molecules"):
            function(zinb, zinb, _OUTCOME)


@pytest.mark.parametrize("kind", ["nb", "poisson", "normal"])
def test_fake_cuda(kind):
    with FakeTensorMode(), torch.device("cuda"):
        mean, theta = torch.ones(2, 3), torch.ones(3)
        world = {
            "nb": lambda: NegativeBinomial(mu=mean, theta=theta, validate_args=False),
            "poisson": lambda: Poisson(rate=mean, validate_args=False),
            "normal": lambda: Normal(mean, mean, validate_args=False),
        }[kind]()
        # torch.binomial, which draws use, has no fake kernel.
        assert expect_with_residuals(world, world, torch.ones(2, 3)).device.type == "cuda"


@pytest.mark.cuda
def test_cuda():
    world = Poisson(rate=_MEAN.to("cuda"))
    draw = sample_with_residuals(world, world, _OUTCOME.to("cuda"))
    torch.testing.assert_close(draw.cpu(), _OUTCOME)


def test_rates_are_the_best_linear_prediction_of_the_part_that_stays():
    """Frailties of two factors of variances that make up 1/θ; one of them stays."""
    torch.manual_seed(0)
    n, mean, theta = 200_000, 3.0, 2.0
    own_variance, rest = 0.5 / theta, (theta + 0.5) / 0.5
    own = torch.distributions.Gamma(1 / own_variance, 1 / own_variance).sample((n, 1))
    y = NegativeBinomial(mu=mean * own, theta=torch.tensor(rest)).sample()
    # Both factors together are as dispersed as the negative binomial.
    assert y.var().item() == pytest.approx(mean + mean**2 / theta, rel=0.03)
    here = NegativeBinomial(mu=torch.full((n, 1), mean), theta=torch.tensor(theta))
    there = NegativeBinomial(mu=torch.full((n, 1), 2 * mean), theta=torch.tensor(theta))
    predicted = keep_rates(here, there, y).mean
    slope = torch.cov(torch.hstack([y, 2 * mean * own]).T)
    best = 2 * mean + slope[0, 1] / slope[0, 0] * (y - mean)
    torch.testing.assert_close(predicted, best, atol=0.15, rtol=0.03)
    # Draws are as dispersed as cells that were measured there.
    draws = keep_rates(here, there, y, draw=True).sample()
    assert draws.mean().item() == pytest.approx(2 * mean, rel=0.02)
    assert draws.var().item() == pytest.approx(2 * mean + 4 * mean**2 / theta, rel=0.05)


def test_rates_of_lost_counts_stay_where_they_are():
    lost = torch.tensor([[30.0, -30.0]])
    here, there = (
        ZeroInflatedNegativeBinomial(mu=m.expand(1, 2), theta=torch.tensor(2.0), zi_logits=lost)
        for m in (torch.tensor([[4.0]]), torch.tensor([[8.0]]))
    )
    kept = keep_rates(here, there, torch.zeros(1, 2)).mu
    torch.testing.assert_close(kept, torch.tensor([[8.0, 8.0 * (1 - 0.5 * 4 / 6)]]))


@pytest.mark.parametrize("kind", ["poisson", "normal"])
def test_without_frailties_there_are_no_rates_to_keep(kind):
    here, there = _worlds(kind, 2.0)
    assert keep_rates(here, there, _OUTCOME) is there
