"""The ``paper`` preset against the reference arithmetic, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from scvci.data import _constants as keys
from scvci.module import BACKBONES, LIKELIHOODS, DataSizes, VCIModule
from scvci.module._paper import PaperDecoder, PaperEncoder
from scvci.module._presets import PRESETS

N, G, T = 6, 5, 3


@pytest.fixture
def module():
    torch.manual_seed(0)
    sizes = DataSizes(G, np.eye(T)[:, 1:], 0, n_levels=[2, 3], n_continuous=0)
    return VCIModule(sizes, PRESETS["paper"])


@pytest.fixture
def tensors():
    torch.manual_seed(1)
    return {
        "X": torch.rand(N, G) * 3,
        keys.TREATMENT_KEY: torch.tensor([[0.0], [1], [2], [0], [1], [2]]),
        keys.COVARIATES_KEY: torch.tensor([[0, 0], [1, 1], [0, 2], [1, 0], [0, 1], [1, 2]]),
        keys.STRATUM_KEY: torch.tensor([[0], [1], [2], [3], [0], [1]]),
        keys.TARGET_KEY: torch.tensor([[1], [2], [1], [2], [1], [2]]),
        keys.SUPPORTED_KEY: torch.tensor([[1.0], [1], [0], [1], [1], [1]]),
        keys.REFERENCE_MEAN_KEY: torch.rand(N, G),
        keys.REFERENCE_VAR_KEY: torch.rand(N, G),
        keys.REFERENCE_KEY: torch.rand(N, 20, G) * 3,
    }


def test_settings_are_those_of_the_reference():
    objective = PRESETS["paper"].objective
    assert (objective.individual, objective.covariate, objective.divergence) == (1.0, 1.7, 0.1)
    assert (objective.n_samples, objective.n_reference) == (30, 20)
    assert (objective.reduction, objective.kl) == ("mean", "paper")
    assert PRESETS["paper"].architecture.n_latent == 128
    assert PRESETS["paper"].target_sampling == "treated"


def test_training_is_that_of_the_reference():
    training = BACKBONES["paper"].training
    assert training.batch_size == 64
    assert training.n_epochs(n_cells=10**6, batch_size=64) == 1000
    assert training.plan == {
        "lr": 3e-4,
        "weight_decay": 4e-7,
        "clip": None,
        "lr_decay": [450, 900],
    }


def test_weights_have_no_prior_and_features_are_not_centred(module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.set_statistics(
        reference_size=2.0,
        mean_rate=np.full(G, 0.1),
        feature_mean=np.ones(G),
        continuous=(np.zeros(0), np.ones(0)),
        effect_variances=(0.1, 0.1, 0.1, 0.1, 0.1),
        n_cells=100,
    )
    assert module.decoder.penalty(1.0) == 0
    after = module.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["reference_size"]


def test_other_likelihoods_are_the_package_s():
    likelihoods = BACKBONES["paper"].likelihoods
    changed = {name for name in likelihoods if likelihoods[name] is not LIKELIHOODS[name]}
    assert changed == {"normal", "nb"}


def test_encoder_heads_are_rectified(module):
    encoder = module.encoder
    assert isinstance(encoder, PaperEncoder)
    assert encoder.outcome.out_features == 256
    assert [layer.out_features for layer in encoder.covariates] == [16, 16]
    q = encoder(torch.randn(64, G), torch.eye(T)[torch.arange(64) % T], _one_hots(64))
    assert float(q.loc.min()) >= 0
    assert float(q.scale.min()) >= math.log(2) + 1e-3 - 1e-6
    assert float(q.loc.max()) > 0


def _one_hots(n):
    i = torch.arange(n)
    return torch.cat([torch.eye(2)[i % 2], torch.eye(3)[i % 3]], dim=1)


def test_encoder_by_hand(module):
    """Embeddings, hidden layers and heads written out as plain matrix products."""
    encoder = module.encoder.eval()
    y, t, x = torch.rand(4, G), torch.eye(T)[torch.tensor([0, 1, 2, 0])], _one_hots(4)
    hidden = torch.cat(
        [
            y @ encoder.outcome.weight.T + encoder.outcome.bias,
            t,
            x[:, :2] @ encoder.covariates[0].weight.T + encoder.covariates[0].bias,
            x[:, 2:] @ encoder.covariates[1].weight.T + encoder.covariates[1].bias,
        ],
        dim=1,
    )
    linears = [layer for layer in encoder.body if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [
        (256 + T + 32, 128),
        (128, 128),
        (128, 256),
    ]
    for linear in linears[:-1]:
        # Fresh batch normalisation in evaluation mode divides by sqrt(1 + 1e-5).
        hidden = ((hidden @ linear.weight.T + linear.bias) / math.sqrt(1 + 1e-5)).clamp(min=0)
    heads = (hidden @ linears[-1].weight.T + linears[-1].bias).clamp(min=0).view(4, 128, 2)
    q = encoder(y, t, x)
    torch.testing.assert_close(q.loc, heads[..., 0])
    torch.testing.assert_close(q.scale, torch.log1p(torch.exp(heads[..., 1])) + 1e-3)


def test_decoder_ignores_covariates_and_gives_a_sigma_per_cell_and_gene(module):
    decoder = module.decoder.eval()
    assert isinstance(decoder, PaperDecoder)
    z, t = torch.rand(7, 128), torch.eye(T)[torch.arange(7) % T]
    heads = decoder(z, t, torch.rand(7, 5))
    torch.testing.assert_close(heads, decoder(z, t, torch.rand(7, 5)))
    px = module.likelihood.distribution(heads, torch.ones(7, 1))
    torch.testing.assert_close(px.loc, heads[:, 0])
    torch.testing.assert_close(px.scale, softplus(heads[:, 1]) + 1e-3)


def test_control_has_a_column_of_its_own(module):
    torch.testing.assert_close(module.treatment_codes, torch.eye(T))
    doses = np.array([[0, 0], [0.5, 0], [1, 0], [1, 1]])
    codes = BACKBONES["paper"].encode_arms(doses)
    np.testing.assert_array_equal(codes.table, np.hstack([[[1], [0], [0], [0]], doses]))
    np.testing.assert_array_equal(codes.table[:, codes.members], doses)


def test_objective_by_hand(module, tensors):
    """All three terms and their sum, from the module's own networks, S = 30 and K = 20."""
    module.eval()
    torch.manual_seed(5)
    _, _, output = module(tensors)

    torch.manual_seed(5)
    t = torch.eye(T)[tensors[keys.TREATMENT_KEY].long().squeeze(1)]
    target = torch.eye(T)[tensors[keys.TARGET_KEY].squeeze(1)]
    codes = tensors[keys.COVARIATES_KEY]
    x = torch.cat([torch.eye(2)[codes[:, 0]], torch.eye(3)[codes[:, 1]]], dim=1)
    y = tensors["X"]
    q = module.encoder(y, t, x)
    z = q.rsample((30,))
    heads = module.decoder(z, t.expand(30, -1, -1), x)
    mu, sigma = heads[..., 0, :], softplus(heads[..., 1, :]) + 1e-3
    log_density = -0.5 * math.log(2 * math.pi) - sigma.log() - (y - mu) ** 2 / (2 * sigma**2)
    individual = -log_density.mean()

    counterfactual = module.decoder(q.rsample(), target, x)[:, 0]
    matched = tensors[keys.REFERENCE_KEY]
    log_kernel = -((counterfactual[:, None] - matched) ** 2) / (2 + 1e-8) - 0.5 * math.log(
        2 * math.pi
    )
    supported = tensors[keys.SUPPORTED_KEY].squeeze(1) > 0
    covariate = -log_kernel.mean((1, 2))[supported].mean()

    p = module.encoder(counterfactual, target, x)
    ratio = (q.scale / p.scale) ** 2
    divergence = -0.5 * (1 + ratio.log() - (q.loc - p.loc) ** 2 - ratio).sum(1).mean()
    metrics = output.extra_metrics
    torch.testing.assert_close(metrics["individual"], individual)
    torch.testing.assert_close(metrics["covariate"], covariate)
    torch.testing.assert_close(metrics["divergence"], divergence)
    torch.testing.assert_close(output.loss, individual + 1.7 * covariate + 0.1 * divergence)


def test_batch_without_matches_keeps_the_other_terms(module, tensors):
    module.eval()
    tensors[keys.SUPPORTED_KEY] = torch.zeros(N, 1)
    output = module(tensors)[2]
    assert torch.isfinite(output.loss)
    assert float(output.extra_metrics["covariate"]) == 0
    assert float(output.extra_metrics["divergence"]) > 0


def test_negative_binomial_heads():
    torch.manual_seed(0)
    sizes = DataSizes(G, np.eye(T)[:, 1:], 0, n_levels=[1], n_continuous=0)
    module = VCIModule(sizes, replace(PRESETS["paper"], likelihood="nb"))
    heads = torch.randn(4, 2, G)
    px = module.likelihood.distribution(heads, torch.full((4, 1), 1000.0))
    torch.testing.assert_close(px.mean, softplus(heads[:, 0]) + 1e-3)
    torch.testing.assert_close(px.theta, softplus(heads[:, 1]) + 1e-3)
