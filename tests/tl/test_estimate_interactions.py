"""Effects of combinations beside the sum of their members' effects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvci import tl


def test_interactions_of_measured_combinations(screen):
    table = tl.estimate_interactions(screen.adata, min_cells=5)
    pd.testing.assert_frame_equal(
        tl.estimate_interactions(screen.adata, min_cells=5, model=screen), table
    )
    assert set(table["treatment"].str.count("\\+")) == {1}
    np.testing.assert_allclose(
        table["interaction"], table["effect"] - table["additive"], equal_nan=True
    )
    name = table["treatment"].iloc[0]
    effect = tl.estimate_effects(screen.adata, name, min_cells=5)
    assert set(effect["treatment"]) == {name}
    with pytest.raises(ValueError, match="'drug_1@1' has no interaction.*not a combination"):
        tl.estimate_interactions(screen.adata, "drug_1@1")


def test_interactions_take_clusters_from_a_column(screen):
    cells = screen.adata.copy()
    donor = np.random.default_rng(0).integers(4, size=cells.n_obs)
    cells.obs["donor"] = pd.Categorical([f"d{i}" for i in donor])
    with pytest.warns(UserWarning, match="cluster_key='donor'"):
        without = tl.estimate_interactions(cells, min_cells=5)
    table = tl.estimate_interactions(cells, min_cells=5, cluster_key="donor")
    assert (table["note"] == "").any()
    assert (table["std_error"] != without["std_error"]).any()
    name, stratum = table.loc[table["note"] == "", ["treatment", "stratum"]].iloc[0]
    single = tl.estimate_effects(
        cells,
        name,
        groupby="cell_type",
        min_cells=5,
        cluster_key="donor",
        scale="log1p",
        normalisation="given",
    )
    own = table[(table["treatment"] == name) & (table["stratum"] == stratum)]
    np.testing.assert_allclose(
        own["effect"], single.loc[single["stratum"] == stratum, "estimate"], rtol=1e-5
    )
    with pytest.raises(KeyError, match="argument cluster_key"):
        tl.estimate_interactions(cells, cluster_key="mouse")
    cells.obs["donor"] = cells.obs["donor"].cat.remove_categories("d0")
    with pytest.raises(ValueError, match=r"obs\['donor'\] has .* missing"):
        tl.estimate_interactions(cells, cluster_key="donor")
