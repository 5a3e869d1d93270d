"""The module as a whole; on fake CUDA tensors, too, so that mixed devices fail without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scvci.data import _constants as keys
from scvci.module import COVARIATE_TERMS, DataSizes, VCIModule
from scvci.module._presets import build_config, get_preset

N, G, T = 8, 5, 3


def _module(term="moments", likelihood="nb", preset="default", weights=None, **objective):
    sizes = DataSizes(G, np.eye(T)[:, 1:], 0, [2], n_continuous=1)
    objective["covariate_term"] = term
    return VCIModule(sizes, build_config(get_preset(preset), likelihood, None, weights, objective))


def _tensors(device):
    """A batch as the loader gives it, on a device."""
    tensors = {
        "X": torch.ones(N, G),
        keys.TREATMENT_KEY: torch.ones(N, 1),
        keys.COVARIATES_KEY: torch.zeros(N, 1),
        keys.CONTINUOUS_KEY: torch.zeros(N, 1),
        keys.STRATUM_KEY: torch.zeros(N, 1, dtype=torch.long),
        keys.TARGET_KEY: torch.zeros(N, 1, dtype=torch.long),
        keys.SUPPORTED_KEY: torch.ones(N, 1),
        keys.REFERENCE_MEAN_KEY: torch.ones(N, G),
        keys.REFERENCE_VAR_KEY: torch.ones(N, G),
        keys.REFERENCE_KEY: torch.ones(N, 4, G),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _exercise(module, device, backward=False):
    """Forward, loss, critic and prediction."""
    module.train()
    tensors = _tensors(device)
    loss = module(tensors)[2].loss
    if module.covariate_term.has_critic:
        loss = loss + module.critic_loss(tensors)
    if backward:
        loss.backward()
    module.eval()
    inputs = module._get_inference_input(tensors)
    outputs = module.inference(**inputs, n_samples=2)
    shift = torch.zeros(N, G, device=device)
    px = module.generative(
        outputs["z"], inputs["size"], inputs["treatment"], inputs["covariates"], shift=shift
    )["px"]
    return loss, px.mean


def _on_fake_cuda(*arguments):
    with torch.device("cuda"):
        return _module(*arguments)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
@pytest.mark.parametrize("term", sorted(COVARIATE_TERMS))
def test_fake_cuda(term, likelihood, monkeypatch):
    # scvi-tools' zero-inflated distribution looks at the values, which fake tensors do not have.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_sample", lambda *_: None)
    with FakeTensorMode():
        loss, mean = _exercise(_on_fake_cuda(term, likelihood), "cuda")
    assert loss.device.type == mean.device.type == "cuda"


def test_fake_cuda_paper():
    with FakeTensorMode():
        loss, _ = _exercise(_on_fake_cuda("kernel", "normal", "paper"), "cuda")
    assert loss.device.type == "cuda"


def test_fake_cuda_catches_a_mixed_device():
    """The checks above can fail: a batch left on the CPU is noticed."""
    with FakeTensorMode(), pytest.raises(RuntimeError, match="(?i)device"):
        _exercise(_on_fake_cuda(), "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("term", sorted(COVARIATE_TERMS))
def test_cuda(term):
    loss, mean = _exercise(_module(term).to("cuda"), "cuda", backward=True)
    assert torch.isfinite(loss)
    assert torch.isfinite(mean).all()


def test_gene_order_does_not_change_the_objective():
    """Permuting genes in data and weights alike leaves every term as it is."""
    torch.manual_seed(0)
    module = _module().eval()
    tensors = _tensors("cpu")
    tensors["X"] = torch.poisson(torch.rand(N, G) * 20)
    tensors[keys.REFERENCE_MEAN_KEY] = torch.rand(N, G)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.manual_seed(1)
    before = module(tensors)[2].loss
    with torch.no_grad():
        first = module.encoder.body.fc_layers[0][0].weight
        first[:, :G] = first[:, :G][:, order]
        for layer in (module.decoder.baseline_out, module.decoder.interaction_out):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        module.decoder.effects.weight.copy_(module.decoder.effects.weight[order])
        module.likelihood.log_theta.copy_(module.likelihood.log_theta[order])
    for key in ("X", keys.REFERENCE_MEAN_KEY, keys.REFERENCE_VAR_KEY):
        tensors[key] = tensors[key][:, order]
    torch.manual_seed(1)
    torch.testing.assert_close(module(tensors)[2].loss, before)


def test_gradients_reach_every_part_and_the_control_has_no_effect():
    torch.manual_seed(0)
    module = _module()
    tensors = _tensors("cpu")
    tensors["X"] = torch.poisson(torch.rand(N, G) * 20)
    with torch.no_grad():
        module.decoder.interaction_out.weight.normal_()
        module.decoder.effects.weight.normal_()
    module(tensors)[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    z = torch.randn(4, 10)
    control = module.treatment_codes[torch.zeros(4, dtype=torch.long)]
    x = torch.zeros(4, 3)
    eta = module.decoder(z, control, x)
    hidden = module.decoder.baseline(torch.cat([z, x], -1))
    torch.testing.assert_close(eta[:, 0], module.decoder.baseline_out(hidden))


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("covariate", [0.0, 2.0])
def test_a_standard_prior_is_the_divergence_to_the_standard_normal(preset, covariate, monkeypatch):
    """The closed form of N(μ, σ²) to N(0, 1); the covariate term counts by its weight alone."""
    torch.manual_seed(0)
    weights = {"covariate": covariate, "divergence": 1.5}
    module = _module(preset=preset, weights=weights, prior="standard")
    calls = []
    construct = VCIModule.counterfactual
    monkeypatch.setattr(VCIModule, "counterfactual", lambda *a: calls.append(1) or construct(*a))
    outputs, _, losses = module(_tensors("cpu"))
    qz = outputs["qz"]
    closed = 0.5 * (qz.loc**2 + qz.scale**2 - 1 - 2 * torch.log(qz.scale)).sum(-1)
    standard = torch.distributions.Normal(torch.zeros_like(qz.loc), torch.ones_like(qz.scale))
    of_torch = torch.distributions.kl_divergence(qz, standard).sum(-1)
    divergence = losses.kl_local["kl_local"]
    torch.testing.assert_close(divergence, closed)
    torch.testing.assert_close(divergence, of_torch)
    terms = losses.extra_metrics
    assert (terms["covariate"] > 0) == (covariate > 0)
    assert len(calls) == (covariate > 0)
    penalty = module.decoder.penalty(module.response.penalty()) / (G if preset == "paper" else 1)
    total = terms["individual"] + covariate * terms["covariate"] + 1.5 * terms["divergence"]
    torch.testing.assert_close(losses.loss, total + penalty)


def test_an_unknown_prior_is_refused():
    with pytest.raises(ValueError, match="prior must be 'counterfactual' or 'standard'.*'flat'"):
        _module(prior="flat")
