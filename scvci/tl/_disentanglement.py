"""Whether treatment is left in the latent state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvci.effects import conditional_independence_test

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvci.model import VCI


def disentanglement_test(
    model: VCI,
    adata: AnnData | None = None,
    *,
    indices: Any = None,
    n_draws: int = 5,
    n_permutations: int = 999,
    min_cells: int = 10,
    max_cells: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
) -> pd.DataFrame:
    r"""Test whether the latent state is free of the treatment within strata, Z ⟂ T | X.

    A counterfactual keeps the latent state and exchanges the treatment. Treatment left in the
    latent state is therefore not exchanged. A classifier and an energy distance look for it
    among draws from q(z | y, x, t), whose distribution over cells is what the divergence of the
    objective makes independent of treatment; p-values come from shuffling treatments within
    strata. See :func:`scvci.effects.conditional_independence_test` for the statistics.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells, by default the model's.
    indices
        Rows, mask or names of the cells, by default all. Cells that training did not use are
        a cleaner test: ``indices=model.test_indices`` after
        ``train(train_size=0.8, validation_size=0.1)``.
    n_draws
        Draws of each cell's latent state, over which statistics are averaged.
    n_permutations
        Number of relabellings, at least 39; the smallest possible p-value is
        1 / (n_permutations + 1).
    min_cells
        Fewest cells with which a treatment takes part in a stratum's test.
    max_cells
        Most cells of a stratum that are used.
    seed
        Seed of the choice of cells, the folds and the relabellings.
    batch_size
        Cells per step of the encoder.

    Returns
    -------
    One row for each test and stratum, the joint test of all strata (``"all"``) first. Tests are
    ``"auc"`` and ``"energy"`` of the latent state, and ``"spread"`` of how wide posteriors are.
    Columns are ``statistic``, ``null_mean``, ``null_sd``, ``null_q05``, ``null_q95``, ``p_value``,
    ``q_value``, ``n_cells``, ``n_treatments``, ``note``. ``attrs["verdict"]`` says in words what
    follows.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If there are no cells, all have one treatment, or a number is out of range.

    Notes
    -----
    The encoder sees y and t, so it can only be approximately blind to t: a leak of any size is
    significant with enough cells. Read the AUC as its size (0.5 none, 1 complete) and the
    p-value as whether there is one. ``"spread"`` is not about a leak. Where a treatment changes
    how many counts cells have, or silences the genes that tell cells apart, posteriors are wider
    and means closer together without any fault of the latent state; predictions of such cells
    are less certain. A difference between arms that the strata do not hold, such as sub-types
    whose shares differ, is found as well, and rightly: it is no response to the treatment. Passing
    the test does not show that counterfactuals are right; a latent state of pure noise passes.
    """
    model.require_trained("test its latent state")
    cells = model.cells(adata, indices).with_new_strata()
    if not len(cells.rows):
        raise ValueError(
            "indices= holds no cells. model.test_indices is empty unless train leaves cells out, "
            "as train(train_size=0.8, validation_size=0.1) does."
        )
    mean, variance = model.get_latent_representation(
        cells.adata, cells.rows, batch_size=batch_size, return_dist=True
    )
    return conditional_independence_test(
        mean,
        np.asarray(model.treatments, dtype=object)[cells.treatment[cells.rows]],
        np.asarray(cells.strata, dtype=object)[cells.stratum[cells.rows]],
        std=np.sqrt(variance),
        n_draws=n_draws,
        n_permutations=n_permutations,
        min_cells=min_cells,
        max_cells=max_cells,
        seed=seed,
    )
