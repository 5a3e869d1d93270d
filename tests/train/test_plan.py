"""Optimisers, schedules and clipping of the training plan."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR

from scvci.module import DataSizes, VCIModule
from scvci.module._presets import build_config, get_preset
from scvci.train import VCITrainingPlan


def _plan(term="moments", n_epochs=4, **settings):
    torch.manual_seed(0)
    sizes = DataSizes(5, np.eye(3)[:, 1:], 0, [2], n_continuous=0)
    config = build_config(get_preset("default"), objective={"covariate_term": term})
    plan = VCITrainingPlan(VCIModule(sizes, config), **settings)
    plan.trainer = SimpleNamespace(max_epochs=n_epochs)
    return plan


def _learning_rates(plan, n_epochs):
    (optimizer,), schedules = plan.configure_optimizers()
    rates = []
    for _ in range(n_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


def test_the_learning_rate_falls_along_a_cosine_to_zero():
    rates = _learning_rates(_plan(lr=0.1), 4)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_other_schedules():
    assert _learning_rates(_plan(lr=0.1, lr_decay=None), 3) == [0.1] * 4
    rates = _learning_rates(_plan(lr=0.1, lr_decay=[1, 3]), 4)
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("term", ["moments", "discriminator"])
def test_each_parameter_has_one_optimiser_and_a_critic_its_own(term):
    plan = _plan(term, lr_decay=[2])
    optimizers, schedules = plan.configure_optimizers()
    sets = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    critic = {id(p) for p in plan.module.covariate_term.parameters()}
    everything = {id(p) for p in plan.module.parameters()}
    assert sets == ([everything - critic, critic] if critic else [everything])
    assert len(schedules) == len(optimizers)
    assert all(isinstance(schedule, MultiStepLR) for schedule in schedules)
    assert plan.automatic_optimization == (not critic)


@pytest.mark.parametrize(("clip", "expected"), [(2.0, 2.0), (50.0, 5.0), (None, 5.0)])
def test_the_gradient_s_norm_is_limited(clip, expected):
    weights = torch.nn.Parameter(torch.zeros(2))
    weights.grad = torch.tensor([3.0, 4.0])
    _plan(clip=clip).configure_gradient_clipping(torch.optim.SGD([weights], lr=1.0))
    assert float(weights.grad.norm()) == pytest.approx(expected, rel=1e-5)
