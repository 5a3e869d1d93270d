"""What backbones say of the data, and names of kinds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from scvci import module
from scvci.module import BACKBONES, DataSizes, TrainingDefaults, VCIModule, _config
from scvci.module._presets import PRESETS, build_config, get_preset

#: The control, two doses of A, B, both, and B at a lower dose with A.
_DOSES = np.array([[0, 0], [0.1, 0], [1, 0], [0, 1], [1, 1], [1, 0.5]])


def test_arms_beyond_single_members_at_their_largest_dose_have_columns():
    codes = BACKBONES["effect"].encode_arms(_DOSES)
    np.testing.assert_array_equal(codes.table[:, codes.members], _DOSES)
    beyond = codes.table[:, codes.members.stop :]
    np.testing.assert_array_equal(np.argwhere(beyond), [[1, 0], [4, 1], [5, 2]])
    assert (beyond.sum(axis=0) == 1).all()


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_codes_hold_strengths_in_place_of_doses(kind):
    sizes = DataSizes(4, _DOSES, 0, [2], n_continuous=0)
    config = build_config(get_preset("default"), architecture={"kind": kind, "n_hidden": 8})
    net = VCIModule(sizes, config)
    codes = net.codes(torch.arange(len(_DOSES))).detach().numpy()
    table, members = net.backbone.codes.table, net.backbone.codes.members
    strengths = net.response(torch.as_tensor(_DOSES).float()).detach().numpy()
    np.testing.assert_allclose(codes[:, members], strengths, atol=1e-6)
    assert (strengths[1, 0] - _DOSES[1, 0]) ** 2 > 0.01
    others = np.delete(np.arange(table.shape[1]), np.arange(table.shape[1])[members])
    np.testing.assert_array_equal(codes[:, others], table[:, others])


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_a_shift_of_the_linear_predictor(kind):
    """`generative` is the likelihood of the linear predictor, with the shift in its first head."""
    torch.manual_seed(0)
    sizes = DataSizes(4, _DOSES, 0, [2], n_continuous=0)
    architecture = {"kind": kind, "n_hidden": 8}
    net = VCIModule(sizes, build_config(get_preset("default"), "zinb", architecture)).eval()
    z, arm, x = torch.randn(3, 5, 10), torch.arange(5), torch.eye(2)[torch.arange(5) % 2]
    size, shift = torch.full((5, 1), 20.0), torch.randn(5, 4)
    heads = net.linear_predictor(z, arm, x)
    assert heads.shape == (3, 5, 2, 4)
    with torch.no_grad():
        moved = torch.stack([heads[..., 0, :] + shift, heads[..., 1, :]], dim=-2)
    found = net.generative(z, size, arm, x, shift=shift)["px"].mean
    torch.testing.assert_close(found, net.likelihood.distribution(moved, size).mean)
    plain = net.generative(z, size, arm, x)["px"].mean
    torch.testing.assert_close(plain, net.likelihood.distribution(heads, size).mean)


def test_epochs_of_a_training_of_default_length():
    default = TrainingDefaults()
    found = [default.n_epochs(n, batch_size=100) for n in (50, 1_000, 20_000, 10**7)]
    assert found == [400, 400, 20, 10]
    assert TrainingDefaults(max_epochs=7, n_steps=None).n_epochs(10**7, 100) == 7


def test_names_are_those_of_the_kinds():
    for names, kinds in (
        (_config.BackboneName, module.BACKBONES),
        (_config.CovariateTermName, module.COVARIATE_TERMS),
        (_config.DoseResponseName, module.DOSE_RESPONSES),
        (_config.LikelihoodName, module.LIKELIHOODS),
    ):
        assert set(get_args(names)) == set(kinds), names
        assert all(name == kind.name for name, kind in kinds.items())
    assert set(get_args(_config.PresetName)) == set(PRESETS)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="preset='papers' is unknown.*paper"):
        get_preset("papers")
    sizes = DataSizes(4, _DOSES, 0, [2], n_continuous=0)
    with pytest.raises(ValueError, match="kind='unet' is unknown.*effect"):
        VCIModule(sizes, build_config(get_preset("default"), architecture={"kind": "unet"}))
