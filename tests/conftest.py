"""Shared fixtures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from helpers import train

import scvci

_REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _settings():
    """Leave no seed or thread setting behind, and keep progress bars out of the log."""
    scvi.settings.seed = 0
    scvi.settings.verbosity = 40
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "real" in item.keywords and not _REAL.is_dir():
            item.add_marker(pytest.mark.skip(reason="the real data are not beside this checkout"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data."""
    return _REAL


@pytest.fixture
def adata():
    """A small experiment: 3 strata, 3 treatments."""
    return scvci.datasets.simulate_perturbation(
        n_cells=300, n_genes=30, n_treatments=3, n_latent=2, depth=1500, seed=0
    )


@pytest.fixture(scope="session")
def trained():
    """A model with little training on the same kind of data, and its AnnData; do not change it."""
    data = scvci.datasets.simulate_perturbation(
        n_cells=300, n_genes=30, n_treatments=3, n_latent=2, depth=1500, seed=0
    )
    scvci.model.VCI.setup_anndata(data, layer="counts", categorical_covariate_keys=["cell_type"])
    model = scvci.model.VCI(data, n_latent=3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=8, enable_progress_bar=False, accelerator="cpu")
    return model, data


@pytest.fixture(scope="session")
def screen():
    """A model of a screen with doses and combinations, with little training; do not change it."""
    adata = scvci.datasets.simulate_screen(
        n_cells=900,
        n_genes=30,
        n_members=3,
        doses=(0.1, 1.0, 10.0),
        n_combinations=2,
        n_features=2,
        seed=0,
    )
    features = adata.uns["simulation"]["features"]
    features.loc["new"] = features.to_numpy()[0]
    setup = {"dose_key": "dose", "separator": "+", "treatment_embeddings": features}
    return train(adata, max_epochs=8, **setup)


@pytest.fixture
def rng():
    """Seeded generator."""
    return np.random.default_rng(0)
