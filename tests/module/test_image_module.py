"""Networks for images and the module around them, also on fake CUDA tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Normal, kl_divergence

from scvci.data import _constants as keys
from scvci.module import ImageModule, ImageSizes
from scvci.module._config import ImageArchitecture, ImageConfig
from scvci.module._image_likelihoods import IMAGE_LIKELIHOODS
from scvci.module._image_networks import ImageDecoder, ImageEncoder, ImageGrid
from scvci.module._presets import build_config

N = 6
SIZES = ImageSizes((2, 9, 12), n_values=[0, 3], n_levels=[2])


def _config(term="discriminator", likelihood="bernoulli", **objective):
    small = {"width": 4, "n_latent": 3, "n_maps": 2, "depth": 1, "n_condition": 8}
    return build_config(
        ImageConfig(), likelihood, small, None, {"covariate_term": term, **objective}
    )


def _tensors(device="cpu", **changes):
    torch.manual_seed(0)
    values = torch.stack([torch.rand(N), torch.arange(N) % 3], dim=1)
    tensors = {
        "X": torch.rand(N, SIZES.n_pixels),
        keys.TREATMENT_KEY: values,
        keys.COVARIATES_KEY: (torch.arange(N) % 2)[:, None],
        keys.TARGET_KEY: values.flip(0),
        keys.SUPPORTED_KEY: torch.ones(N, 1),
        **changes,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.mark.parametrize("likelihood", sorted(IMAGE_LIKELIHOODS))
@pytest.mark.parametrize("term", ["discriminator", "classifier"])
def test_fake_cuda(term, likelihood):
    with FakeTensorMode():
        with torch.device("cuda"):
            module = ImageModule(SIZES, _config(term, likelihood))
        tensors = _tensors("cuda")
        loss = module(tensors)[2].loss + module.critic_loss(tensors)
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 9, 31), (2, 8, 8), (1, 5, 5)])
def test_unfolding_is_undone_by_folding(shape):
    grid = ImageGrid(shape, ImageArchitecture())
    images = torch.rand(3, *shape)
    torch.testing.assert_close(grid.fold(grid.unfold(images)), images)
    assert max(grid.sides[-1]) <= 8
    assert all(
        2 * b == a
        for fine, coarse in zip(grid.sides, grid.sides[1:], strict=False)
        for a, b in zip(fine, coarse, strict=True)
    )


@pytest.mark.parametrize("n_scales", [1, 2, 3])
def test_latents_of_all_scales_reach_the_image(n_scales):
    architecture = ImageArchitecture(
        n_latent=3, n_maps=2, n_scales=n_scales, width=4, depth=1, n_condition=8
    )
    shape = (1, 28, 28)
    encoder, decoder = (
        ImageEncoder(shape, 2, architecture),
        ImageDecoder(shape, 2, 1, architecture),
    )
    qz = encoder(torch.rand(N, *shape), torch.rand(N, 1), torch.rand(N, 1))
    n_latent = ImageGrid(shape, architecture).n_latent(architecture)
    assert n_latent == 3 + 2 * sum([49, 196][: n_scales - 1])
    assert qz.loc.shape == (N, n_latent)
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    z = qz.loc.detach().requires_grad_()
    decoder(z, torch.rand(N, 1), torch.rand(N, 1)).square().sum().backward()
    assert (z.grad.abs().sum(dim=0) > 0).all()


def test_codes_are_standardised_numbers_and_one_hot_levels():
    module = ImageModule(SIZES, _config())
    module.set_statistics(np.array([2.0, 9.0]), np.array([0.5, 9.0]))
    codes = module.treatment_codes(torch.tensor([[3.0, 2.0], [2.0, 0.0]]))
    torch.testing.assert_close(codes, torch.tensor([[2.0, 0, 0, 1], [0.0, 1, 0, 0]]))


def test_bernoulli_is_the_cross_entropy_of_shares():
    likelihood = IMAGE_LIKELIHOODS["bernoulli"](3)
    logits, pixels = torch.tensor([[[0.3, -2.0, 4.0]]]), torch.tensor([[0.0, 0.4, 1.0]])
    p = 1 / (1 + np.exp(-logits.numpy()[:, 0]))
    expected = pixels.numpy() * np.log(p) + (1 - pixels.numpy()) * np.log(1 - p)
    found = likelihood.distribution(logits, torch.ones(1))
    np.testing.assert_allclose(found.log_prob(pixels).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean.numpy(), p, rtol=1e-5)


def test_normal_is_scipys():
    likelihood = IMAGE_LIKELIHOODS["normal"](2)
    means, pixels = torch.tensor([[[0.3, -2.0]]]), torch.tensor([[1.0, 0.0]])
    sigma = np.log(2) + likelihood.sigma_floor
    np.testing.assert_allclose(
        likelihood.distribution(means, torch.ones(1)).log_prob(pixels).detach().numpy(),
        stats.norm.logpdf(pixels.numpy(), means.numpy()[:, 0], sigma),
        rtol=1e-5,
    )


class _Copy(nn.Module):
    """Encoder whose latent state is the image, known to a thousandth."""

    def forward(self, images, treatment, covariates):
        return Normal(images.flatten(1), torch.full_like(images.flatten(1), 1e-3))


class _Brighten(nn.Module):
    """Decoder: the image times what the first code says, in a parameter's units."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.tensor(1.0))

    def forward(self, z, treatment, covariates):
        return (z * (1 + self.unit * treatment[:, :1])).unflatten(1, (1, *SIZES.shape))


def test_the_objective_of_own_networks_by_hand():
    """Three terms of networks whose every value is known."""
    module = ImageModule(SIZES, _config(likelihood="normal"), _Copy(), _Brighten())
    module.eval()
    tensors = _tensors()
    torch.manual_seed(1)
    _, _, output = module(tensors)
    torch.manual_seed(1)
    pixels = tensors["X"]
    own, target = tensors[keys.TREATMENT_KEY], tensors[keys.TARGET_KEY]
    z = pixels + 1e-3 * torch.randn(1, *pixels.shape)[0]
    mean = z * (1 + own[:, :1])
    sigma = np.log(2) + module.likelihood.sigma_floor
    individual = -Normal(mean, sigma).log_prob(pixels).sum(1)
    torch.testing.assert_close(output.extra_metrics["individual"], individual.mean())
    z = pixels + 1e-3 * torch.randn(*pixels.shape)
    counterfactual = z * (1 + target[:, :1])
    spread = torch.full_like(pixels, 1e-3)
    divergence = kl_divergence(Normal(pixels, spread), Normal(counterfactual, spread)).sum(1)
    torch.testing.assert_close(
        output.extra_metrics["divergence"], divergence.mean(), rtol=1e-4, atol=0
    )
    codes = torch.cat([module.treatment_codes(target), module.covariate_codes(tensors)], dim=1)
    logit = module.covariate_term.critic(counterfactual, codes)
    torch.testing.assert_close(
        output.extra_metrics["covariate"], torch.nn.functional.softplus(-logit).mean()
    )


def test_only_whole_treatments_feed_the_covariate_term():
    """The critic and the term leave cells out that no real cell is like."""
    module = ImageModule(SIZES, _config())
    module.eval()
    supported = torch.tensor([1.0, 1, 0, 0, 0, 0])[:, None]
    tensors = _tensors(**{keys.SUPPORTED_KEY: supported})
    other = _tensors(**{keys.SUPPORTED_KEY: supported})
    other[keys.TARGET_KEY] = other[keys.TARGET_KEY].clone()
    other[keys.TARGET_KEY][2:, 0] += 5.0
    values = []
    for batch in (tensors, other):
        torch.manual_seed(0)
        term = module(batch)[2].extra_metrics["covariate"]
        torch.manual_seed(0)
        values.append(torch.stack([term, module.critic_loss(batch).detach()]))
    torch.testing.assert_close(values[0], values[1])


def test_terms_that_need_pairs_are_refused():
    with pytest.raises(ValueError, match="'moments' compares with several cells"):
        ImageModule(SIZES, _config("moments"))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="n_scales=0 must be at least 1"):
        ImageArchitecture(n_scales=0)
