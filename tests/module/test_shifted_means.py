"""Mean predictions at a shift of the linear predictor."""

from __future__ import annotations

import pytest
import torch

from scvci.module import LIKELIHOODS


@pytest.mark.parametrize("composition", [True, False])
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_means_at_a_shift_are_those_of_shifted_predictors(name, composition):
    """Over arms at once, and cell by cell through the distribution."""
    torch.manual_seed(0)
    likelihood = LIKELIHOODS[name](7, composition=composition)
    heads = torch.randn(3, 5, likelihood.n_heads, 7)
    size, shift = torch.rand(3, 5, 1) * 100, torch.randn(3, 7)
    with torch.inference_mode():
        means = likelihood.shifted_means(heads, size)
        for s in (torch.zeros_like(shift), shift):
            moved = heads.clone()
            moved[..., 0, :] += s[:, None]
            expected = likelihood.distribution(moved, size).mean.mean(dim=1)
            torch.testing.assert_close(means.at(s), expected, rtol=1e-5, atol=1e-6)
