"""Whose generators move: nobody's but those that a call says it follows."""

from __future__ import annotations

import threading
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from scvci import pl, tl
from scvci.model import VCI

mpl.use("Agg")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def _train(adata):
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, n_latent=3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(3, **QUIET)
    return model


def test_trainings_in_threads_are_those_that_would_run_alone(adata):
    alone, found = _train(adata.copy()), {}

    def job(i):
        found[i] = _train(adata.copy())

    threads = [threading.Thread(target=job, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in found.values():
        for name, weights in alone.module.state_dict().items():
            assert torch.equal(weights, model.module.state_dict()[name]), name
        np.testing.assert_array_equal(model.calibration.shift, alone.calibration.shift)


#: Calls that compute; plots that lay out a table draw nothing at random.
CALLS = {
    "predict_counterfactual": lambda m, a: m.predict_counterfactual("IFNb"),
    "get_latent_representation": lambda m, a: m.get_latent_representation(),
    "get_normalized_expression": lambda m, a: m.get_normalized_expression(),
    "load_query_data": lambda m, a: VCI.load_query_data(a.copy(), m),
    "estimate_effects": lambda m, a: tl.estimate_effects(a, "IFNb"),
    "estimate_effects of a model": lambda m, a: tl.estimate_effects(a, "IFNb", model=m),
    "check_overlap": lambda m, a: tl.check_overlap(a),
    "evaluate": lambda m, a: tl.evaluate(m, max_folds=1, max_epochs=1, **QUIET),
    "predict_interval": lambda m, a: tl.predict_interval(m, "IFNb", n_samples=20),
    "leakage_test": lambda m, a: tl.leakage_test(m, n_folds=2, max_epochs=1, **QUIET),
    "disentanglement_test": lambda m, a: tl.disentanglement_test(m),
    "heterogeneity_test": lambda m, a: tl.heterogeneity_test(m, "IFNb"),
    "effect_scores": lambda m, a: tl.effect_scores(m, "IFNb"),
    "rank_genes_counterfactual": lambda m, a: tl.rank_genes_counterfactual(m, "IFNb"),
    "counterfactual_shift": lambda m, a: pl.counterfactual_shift(m, "IFNb", show=False),
    "training_curves": lambda m, a: pl.training_curves(m, show=False),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_no_call_moves_a_generator_or_the_number_of_threads(trained, name):
    model, data = trained
    np.random.seed(3)  # noqa: NPY002 - the global generator is what is tested
    torch.manual_seed(3)
    before = np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CALLS[name](model, data)
    plt.close("all")
    assert all(np.array_equal(a, b) for a, b in zip(before[0], np.random.get_state(), strict=True))  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == torch.get_num_threads()
