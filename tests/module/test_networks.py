"""The decoder's mixed model of effects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scvci.module._networks import EffectDecoder

N_T, N_X, N_GENES, N_LATENT = 3, 2, 7, 4


def _decoder(**settings):
    torch.manual_seed(0)
    decoder = EffectDecoder(N_LATENT, N_T, N_X, N_GENES, 1, 16, 1, **settings)
    with torch.no_grad():
        decoder.effects.weight.normal_()
    return decoder


def _log_density_ratio(weight, scale):
    density = stats.t(4, scale=scale)
    return (density.logpdf(0) - density.logpdf(weight.detach().numpy())).sum()


def test_the_effect_is_the_sum_of_its_parts():
    decoder = _decoder(interaction=False)
    m, a, s, e, _ = decoder.effects.weight.detach().split(decoder.blocks, dim=1)
    z = torch.randn(5, N_LATENT)
    treatment = torch.tensor([[0, 0, 1.0]]).expand(5, -1)
    covariates = torch.tensor([[0, 1.0]]).expand(5, -1)
    control = decoder(z, torch.zeros(5, N_T), covariates)
    effect = (decoder(z, treatment, covariates) - control).squeeze(1)
    expected = m[:, 0] + a[:, 2] + s[:, 1] + e[:, 2 * N_X + 1]
    torch.testing.assert_close(effect, expected.expand(5, -1))


def test_the_control_and_an_unknown_stratum():
    """The control has no effect; without a stratum the effect is what strata have in common."""
    decoder = _decoder()
    m, a, *_ = decoder.effects.weight.detach().split(decoder.blocks, dim=1)
    z, nowhere = torch.randn(5, N_LATENT), torch.zeros(5, N_X)
    baseline = decoder.baseline_out(decoder.baseline(torch.cat([z, nowhere], -1)))
    control = decoder(z, torch.zeros(5, N_T), nowhere).squeeze(1)
    torch.testing.assert_close(control, baseline)
    first = torch.tensor([[1.0, 0, 0]]).expand(5, -1)
    effect = decoder(z, first, nowhere).squeeze(1) - control
    torch.testing.assert_close(effect, (m[:, 0] + a[:, 0]).expand(5, -1))


def test_members_add_up_and_what_they_share_comes_once():
    decoder = _decoder(order=2)
    with torch.no_grad():
        decoder.interaction_out.weight.normal_()
        decoder.interaction_out.bias.normal_()
    m, _, s, *_ = decoder.effects.weight.detach().split(decoder.blocks, dim=1)
    z, covariates = torch.randn(5, N_LATENT), torch.tensor([[1.0, 0]]).expand(5, -1)
    control = decoder(z, torch.zeros(5, N_T), covariates)

    def effect(*strengths):
        code = torch.tensor([strengths]).expand(5, -1)
        return (decoder(z, code, covariates) - control).squeeze(1)

    joint = effect(1.0, 0, 1.0)
    torch.testing.assert_close(joint, effect(1.0, 0, 0) + effect(0, 0, 1.0) - (m[:, 0] + s[:, 0]))
    # Strengths are proportional to effects, also of the part that depends on the latent state.
    torch.testing.assert_close(effect(0.3, 0, 0), 0.3 * effect(1.0, 0, 0))
    torch.testing.assert_close(
        effect(0.3, 0, 0.5), 0.3 * effect(1.0, 0, 0) + 0.5 * effect(0, 0, 1.0)
    )


def test_arms_have_terms_beyond_their_members():
    decoder = _decoder(n_members=2, order=2, interaction=False)
    *_, r = decoder.effects.weight.detach().split(decoder.blocks, dim=1)
    z, covariates = torch.randn(5, N_LATENT), torch.tensor([[1.0, 0]]).expand(5, -1)
    codes = (torch.tensor([[1.0, 1, beyond]]).expand(5, -1) for beyond in (0, 1))
    without, with_term = (decoder(z, code, covariates).squeeze(1) for code in codes)
    torch.testing.assert_close(with_term - without, r[:, 0].expand(5, -1))


def test_latent_draws_share_an_effect():
    decoder = _decoder()
    z = torch.randn(6, 5, N_LATENT)
    treatment = torch.eye(N_T)[torch.tensor([0, 1, 2, 0, 1])]
    covariates = torch.eye(N_X)[torch.tensor([0, 1, 0, 1, 0])]
    together = decoder(z, treatment, covariates)
    for draw, eta in zip(z, together, strict=True):
        torch.testing.assert_close(decoder(draw, treatment, covariates), eta)


def test_the_penalty_is_the_log_density_of_student_t():
    decoder = _decoder()
    assert decoder.penalty() == 0  # no prior before its scales are known
    variances, n_cells = (0.1, 0.4, 0.02, 0.05, 0.3), 500
    decoder.set_prior(variances, n_cells)
    scale = np.sqrt(np.repeat(variances, decoder.blocks))
    expected = _log_density_ratio(decoder.effects.weight, scale)
    assert decoder.penalty().item() * n_cells == pytest.approx(expected, rel=1e-4)
    out = decoder.interaction_out
    with torch.no_grad():
        out.weight.normal_()
        out.bias.normal_()
    # Effects on cells vary as much as all parts of effects on means do together.
    expected += _log_density_ratio(out.weight, np.sqrt(sum(variances[:4]) * 2 / 16))
    expected += _log_density_ratio(out.bias, np.sqrt(sum(variances[:4])))
    assert decoder.penalty().item() * n_cells == pytest.approx(expected, rel=1e-4)


def test_prior_scales_are_never_zero():
    decoder = _decoder()
    decoder.set_prior((0.0, 0.0, 0.0, 0.0, 0.0), 10)
    assert torch.isfinite(decoder.penalty())
    assert (decoder.prior_variance > 0).all()
