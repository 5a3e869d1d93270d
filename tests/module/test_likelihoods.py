"""Likelihoods against closed forms, and means at shifts against distributions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from scvci.module import BACKBONES, LIKELIHOODS, DataSizes, VCIModule
from scvci.module._presets import PRESETS


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_count_likelihoods_are_distributions_with_the_library_as_mean(name):
    torch.manual_seed(1)
    likelihood = LIKELIHOODS[name](4)
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
    likelihood = LIKELIHOODS["nb"](3)
    heads = torch.tensor([[[0.2, -0.4, 1.0]]])
    counts = torch.tensor([[0.0, 3.0, 11.0]])
    mu = 20 * torch.softmax(heads[0, 0], -1).numpy()
    theta = likelihood.log_theta.exp().detach().numpy()
    expected = stats.nbinom.logpmf(counts[0].numpy(), theta, theta / (theta + mu))
    found = likelihood.distribution(heads, torch.tensor([[20.0]])).log_prob(counts)[0]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)


def test_zero_inflation_against_hand_computed_mixture():
    likelihood = LIKELIHOODS["zinb"](2)
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
    assert float(LIKELIHOODS["nb"](4).distribution(heads, size).mean.sum()) == pytest.approx(2)
    open_ended = LIKELIHOODS["nb"](4, composition=False)
    assert float(open_ended.distribution(heads, size).mean.sum()) == pytest.approx(8)


def test_normal_has_a_floor_under_sigma():
    likelihood = LIKELIHOODS["normal"](2)
    with torch.no_grad():
        likelihood.raw_sigma.fill_(-50.0)
    px = likelihood.distribution(torch.zeros(1, 1, 2), torch.ones(1, 1))
    assert px.scale.min().item() == pytest.approx(0.05)


def test_unknown_likelihood_is_named():
    sizes = DataSizes(3, np.eye(2)[:, 1:], 0, [2], n_continuous=0)
    with pytest.raises(ValueError, match="gamma.*nb"):
        VCIModule(sizes, replace(PRESETS["default"], likelihood="gamma"))


_BY_NAME = {
    **LIKELIHOODS,
    **{f"paper {name}": kind for name, kind in BACKBONES["paper"].likelihoods.items()},
}


@pytest.mark.parametrize("composition", [True, False])
@pytest.mark.parametrize("name", sorted(_BY_NAME))
def test_means_at_shifts_are_those_of_the_distribution(name, composition):
    """For one batch of cells and several shifts, and for a shift of each of several batches."""
    torch.manual_seed(0)
    n_batches, n_cells, n_genes, size = 3, 20, 7, 30.0
    likelihood = _BY_NAME[name](n_genes, composition=composition).double()
    heads = torch.randn(n_batches, n_cells, likelihood.n_heads, n_genes).double()
    shift = 2 * torch.randn(n_batches, n_genes).double()
    pairs = {"own": (heads, shift), "shared": (heads[0].expand_as(heads), shift)}
    expected = {}
    for key, (h, s) in pairs.items():
        moved = h.clone()
        moved[..., 0, :] += s[:, None]
        cells = likelihood.distribution(moved, torch.full((n_cells, 1), size).double())
        expected[key] = cells.mean.mean(dim=1)
    torch.testing.assert_close(likelihood.shifted_means(heads, size).at(shift), expected["own"])
    means = likelihood.shifted_means(heads[0], torch.tensor(size).double())
    torch.testing.assert_close(means.at(shift), expected["shared"])
    torch.testing.assert_close(means.at(shift[1]), expected["shared"][1])


@pytest.mark.parametrize("composition", [True, False])
@pytest.mark.parametrize("name", sorted(_BY_NAME))
def test_cells_can_have_weights_in_means_at_shifts(name, composition):
    """Whole weights are cells that are there several times."""
    torch.manual_seed(0)
    likelihood = _BY_NAME[name](7, composition=composition).double()
    heads = torch.randn(3, likelihood.n_heads, 7).double()
    copies, shift = torch.tensor([1, 0, 3]), torch.randn(7).double()
    weighted = likelihood.shifted_means(heads, 30.0, copies / copies.double().mean())
    repeated = likelihood.shifted_means(heads.repeat_interleave(copies, dim=0), 30.0)
    torch.testing.assert_close(weighted.at(shift), repeated.at(shift))


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_shifted_means_of_a_composition_do_not_overflow(name):
    torch.manual_seed(0)
    likelihood = LIKELIHOODS[name](4)
    heads = torch.randn(5, likelihood.n_heads, 4)
    shift = torch.randn(4)
    means = likelihood.shifted_means(heads, 10.0)
    torch.testing.assert_close(means.at(shift + 500), means.at(shift), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_exponentials_of_a_composition_are_taken_once(name, monkeypatch):
    likelihood = LIKELIHOODS[name](4)
    means = likelihood.shifted_means(torch.randn(5, likelihood.n_heads, 4), 10.0)
    monkeypatch.setattr(torch, "softmax", None)
    monkeypatch.setattr(type(likelihood), "distribution", None)
    assert torch.isfinite(means.at(torch.zeros(4))).all()
