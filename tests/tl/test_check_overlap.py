"""Whether every treatment is represented in every stratum of an AnnData."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from scvci import tl
from scvci.model import VCI


def _set_up(adata, **setup):
    """Register cells; returns an untrained model of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        VCI.setup_anndata(
            adata, layer="counts", **{"categorical_covariate_keys": ["cell_type"], **setup}
        )
    return VCI(adata, n_latent=3, seed=0)


def test_overlap_lists_every_pair_and_names_the_poor_ones(adata):
    lost = (adata.obs["cell_type"] == "B") & (adata.obs["treatment"] == "IFNb")
    kept = adata[~lost].copy()
    _set_up(kept)
    with pytest.warns(UserWarning, match=r"(?s)No cells.*extrapolated.*\(IFNb, B\)"):
        table = tl.check_overlap(kept, min_cells=5)
    assert len(table) == 3 * 3
    counts = kept.obs.groupby(["cell_type", "treatment"], observed=False).size()
    for _, row in table.iterrows():
        assert row["n_cells"] == counts[row["stratum"], row["treatment"]]
    assert table.loc[table["flag"] != "", ["stratum", "treatment"]].to_numpy().tolist() == [
        ["B", "IFNb"]
    ]


def test_good_overlap_warns_of_nothing(adata):
    _set_up(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tl.check_overlap(adata, min_cells=5)
    assert (table["flag"] == "").all()
    assert "share_low" not in table
    few = np.arange(60)
    with pytest.warns(UserWarning, match="Few cells"):
        part = tl.check_overlap(adata, indices=few)
    assert part["n_cells"].sum() == 60
    with pytest.raises(ValueError, match="min_cells=0"):
        tl.check_overlap(adata, min_cells=0)


def test_continuous_covariates_enter_the_propensity(adata):
    treated = (adata.obs["treatment"] != "control").to_numpy()
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs) + 6 * treated
    _set_up(adata, continuous_covariate_keys=["age"])
    with pytest.warns(UserWarning, match="Low propensity"):
        table = tl.check_overlap(adata, min_cells=5)
    assert (table.loc[table["treatment"] == "control", "share_low"] > 0.1).all()


def test_combinations_that_training_did_not_see_are_strata_of_their_own(adata):
    adata.obs["donor"] = np.where(adata.obs["cell_type"] == "B", "d1", "d2")
    model = _set_up(adata, categorical_covariate_keys=["cell_type", "donor"])
    other = adata.copy()
    other.obs["donor"] = "d1"
    with pytest.warns(UserWarning, match="Overlap is poor"):
        table = tl.check_overlap(other, min_cells=200, model=model)
    assert list(table["stratum"].unique()[:3]) == model.strata
    assert table["n_cells"].sum() == adata.n_obs
    assert table.loc[table["stratum"] == "CD4 T | d1", "n_cells"].sum() > 0
