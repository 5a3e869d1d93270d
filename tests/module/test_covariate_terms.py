"""Kinds of the covariate-specific term against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from scvci.module import COVARIATE_TERMS, Counterfactuals, TermInputs
from scvci.module._covariate_terms import dense_critic, get_covariate_term


def _cells(n=6, k=5, n_genes=4, seed=0, **changes):
    torch.manual_seed(seed)
    expression = torch.rand(n, n_genes) * 3
    cells = Counterfactuals(
        features=torch.log1p(expression),
        treatment=torch.eye(2)[torch.arange(n) % 2],
        covariates=torch.ones(n, 1),
        expression=expression,
        pair=torch.arange(n) % 2,
        supported=torch.ones(n, dtype=torch.bool),
        reference_mean=torch.rand(1, n_genes).expand(n, -1) * 3,
        reference_var=torch.full((n, n_genes), 0.5),
        reference=torch.rand(n, k, n_genes) * 3,
    )
    return replace(cells, **changes)


def _term(name, reduction="sum", n_genes=4):
    return get_covariate_term(name)(2, 1, dense_critic(n_genes), reduction)


def test_kernel_match_is_the_average_of_log_kernels():
    cells = _cells()
    log_kernel = stats.norm.logpdf(
        cells.expression.numpy()[:, None], cells.reference.numpy(), scale=1.0
    )
    by_hand = -log_kernel.mean(axis=(1, 2))
    np.testing.assert_allclose(_term("kernel", "mean")(cells), by_hand, rtol=1e-5)


def test_kernel_match_identity():
    """It equals ½ log 2π + ½ MSE to the matched mean + ½ variance within the matched cells."""
    cells = _cells()
    mean = cells.reference.mean(1)
    mse = (cells.expression - mean).square().mean(-1)
    within = (cells.reference - mean[:, None]).square().mean((1, 2))
    identity = 0.5 * math.log(2 * math.pi) + 0.5 * mse + 0.5 * within
    torch.testing.assert_close(_term("kernel", "mean")(cells), identity)


def test_moment_match_by_hand():
    expression = torch.tensor([[1.0], [3.0], [2.0]])
    cells = _cells(
        n=3,
        n_genes=1,
        expression=expression,
        pair=torch.tensor([0, 0, 1]),
        reference_mean=torch.tensor([[1.0], [1.0], [0.0]]),
        reference_var=torch.tensor([[0.5], [0.5], [0.5]]),
    )
    # d = (0, 2): ((0 + 2)² − (0 + 4)) / (2 · 1) = 0; the single cell of pair 1 gives nothing.
    torch.testing.assert_close(_term("moments", n_genes=1)(cells), torch.zeros(3))
    shifted = replace(cells, expression=expression + 1)
    # d = (1, 3): (16 − 10) / 2 = 3; ½ · 3 / 0.5 = 3.
    found = _term("moments", n_genes=1)(shifted)
    torch.testing.assert_close(found, torch.tensor([3.0, 3.0, 0.0]))


def test_moment_match_does_not_punish_spread_while_the_kernel_does():
    torch.manual_seed(0)
    mean = torch.full((4000, 1), 5.0)
    narrow, wide = mean + 0.1 * torch.randn(4000, 1), mean + 2 * torch.randn(4000, 1)
    base = _cells(
        n=4000,
        n_genes=1,
        pair=torch.arange(4000) // 4,
        reference_mean=mean,
        reference_var=torch.ones(4000, 1),
        reference=mean[:, None].expand(-1, 3, -1),
    )
    moments = [
        float(_term("moments", n_genes=1)(replace(base, expression=e)).mean())
        for e in (narrow, wide)
    ]
    kernel = [
        float(_term("kernel", n_genes=1)(replace(base, expression=e)).mean())
        for e in (narrow, wide)
    ]
    assert abs(moments[1]) < 0.2  # 5 standard errors of the mean of 1,000 groups
    assert kernel[1] - kernel[0] == pytest.approx(2.0, abs=0.2)  # ½ · (4 − 0.01)


def test_energy_match_prefers_the_right_distribution():
    torch.manual_seed(0)
    n, n_genes = 400, 3
    reference = torch.randn(n, 6, n_genes) + 5
    base = _cells(n=n, n_genes=n_genes, pair=torch.zeros(n).long(), reference=reference)
    term = _term("energy", n_genes=n_genes)
    right = term(replace(base, expression=torch.randn(n, n_genes) + 5)).mean()
    shifted = term(replace(base, expression=torch.randn(n, n_genes) + 7)).mean()
    collapsed = term(replace(base, expression=torch.full((n, n_genes), 5.0))).mean()
    assert right < shifted
    assert right < collapsed


def test_discriminator_losses_by_hand():
    cells = _cells()
    term = _term("discriminator")
    real = TermInputs(cells.features.flip(0), cells.treatment, cells.covariates)
    fake_logit, real_logit = term._logit(cells), term._logit(real)
    expected = 0.5 * (
        torch.log1p(torch.exp(-real_logit)).mean() + torch.log1p(torch.exp(fake_logit)).mean()
    )
    torch.testing.assert_close(term.critic_loss(real, cells), expected)
    torch.testing.assert_close(term(cells), torch.log1p(torch.exp(-fake_logit)))


def test_classifier_hinge():
    cells = _cells()
    term = _term("classifier")
    torch.testing.assert_close(term(cells), (term._error(cells) - 0.05).clamp(min=0) + 0.05)
    perfect = replace(cells, treatment=term.critic(cells.features, cells.covariates))
    torch.testing.assert_close(term(perfect), torch.full((6,), 0.05))


@pytest.mark.parametrize("name", sorted(COVARIATE_TERMS))
def test_every_kind_gives_a_value_per_cell_and_a_gradient(name):
    expression = (torch.rand(6, 4) + 0.5).requires_grad_()
    cells = _cells(expression=expression, features=torch.log1p(expression))
    value = _term(name)(cells)
    assert value.shape == (6,)
    value.sum().backward()
    assert torch.isfinite(expression.grad).all()
    assert expression.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["moments", "kernel"])
def test_gene_order_does_not_matter(name):
    cells = _cells()
    order = torch.tensor([2, 0, 3, 1])
    permuted = replace(
        cells,
        expression=cells.expression[:, order],
        reference_mean=cells.reference_mean[:, order],
        reference_var=cells.reference_var[:, order],
        reference=cells.reference[..., order],
    )
    torch.testing.assert_close(_term(name)(cells), _term(name)(permuted))


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="sinkhorn.*moments"):
        get_covariate_term("sinkhorn")
