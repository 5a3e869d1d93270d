"""Can the answers be trusted? Overlap of the data, and treatment left in the latent state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scvci.data import (
    CellReader,
    control_index,
    resolve_indices,
    stratum_codes,
    stratum_names,
)
from scvci.data import _constants as keys
from scvci.effects import conditional_independence_test, overlap_table

from ._registry import RegistryMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from anndata import AnnData


class DiagnosticsMixin(RegistryMixin):
    """Checks of what counterfactuals rest on: positivity, and Z ⟂ T | X."""

    _require_trained: Callable[[str], None]
    _cells_of: Callable[[AnnData | None], AnnData]
    get_latent_representation: Callable[..., Any]

    def test_disentanglement(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_permutations: int = 999,
        min_cells: int = 10,
        max_cells: int = 1000,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        r"""Test whether the latent state is free of the treatment within strata, Z ⟂ T | X.

        A counterfactual keeps the latent state and exchanges the treatment. Treatment left in the
        latent state is therefore not exchanged. A classifier and an energy distance look for it
        among the means of q(z | y, x, t); their p-values come from shuffling treatments within
        strata. See :func:`scvci.effects.conditional_independence_test` for the statistics.

        Parameters
        ----------
        adata
            Cells, by default the model's.
        indices
            Rows, mask or names of the cells, by default all. Cells that training did not use are
            a cleaner test: ``indices=model.test_indices`` after
            ``train(train_size=0.8, validation_size=0.1)``.
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
        One row for each test (``"auc"``, ``"energy"``) and stratum, the joint test of all strata
        (``"all"``) first: ``statistic``, ``null_mean``, ``null_sd``, ``null_q05``, ``null_q95``,
        ``p_value``, ``q_value``, ``n_cells``, ``n_treatments``, ``note``. ``attrs["verdict"]``
        says in words what follows.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If all cells have one treatment, or a number is out of range.

        Notes
        -----
        The encoder sees y and t, so it can only be approximately blind to t: a leak of any size is
        significant with enough cells. Read the AUC as its size (0.5 none, 1 complete) and the
        p-value as whether there is one. The means also carry what t does to measurement: where it
        changes the counts per cell, posteriors are wider and means closer together, without any
        fault of the latent state. Passing the test does not show that counterfactuals are right;
        a latent state of pure noise passes.
        """
        self._require_trained("test its latent state")
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        stratum, strata = self._strata_of(reader, rows)
        latent = self.get_latent_representation(cells, rows, batch_size=batch_size)
        return conditional_independence_test(
            latent,
            np.asarray(self.treatments, dtype=object)[reader.treatment[rows]],
            np.asarray(strata, dtype=object)[stratum],
            n_permutations=n_permutations,
            min_cells=min_cells,
            max_cells=max_cells,
            seed=seed,
        )

    def check_overlap(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        min_cells: int = 30,
        min_propensity: float = 0.01,
    ) -> pd.DataFrame:
        """List how well every treatment is represented in every stratum.

        A counterfactual is supported by data only where its stratum has cells with that treatment
        (positivity). The model need not be trained.

        Parameters
        ----------
        adata
            Cells, by default the model's.
        indices
            Rows, mask or names of the cells, by default all; ``indices=model.train_indices`` for
            what training saw.
        min_cells
            Fewest cells a pair should have.
        min_propensity
            Lowest share of a stratum's cells that should have received a treatment. In screens of
            many treatments equal shares may be lower than the default.

        Returns
        -------
        One row per (stratum, treatment): ``n_cells``, ``propensity``, ``weight``,
        ``effective_size``, ``flag``; with continuous covariates also ``share_low``, the share of
        the stratum's cells for which the treatment is improbable given these. See
        :func:`scvci.effects.overlap_table`.

        Raises
        ------
        ValueError
            If the model holds no cells and none are given, or a number is out of range.

        Warns
        -----
        UserWarning
            If overlap is poor: which pairs, and what it means for their counterfactuals.
        """
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        stratum, strata = self._strata_of(reader, rows)
        table = overlap_table(
            reader.treatment[rows],
            stratum,
            self.treatments,
            strata,
            control=control_index(self._state(keys.TREATMENT_KEY)),
            min_cells=min_cells,
            min_propensity=min_propensity,
            continuous=None if reader.continuous is None else reader.continuous[rows],
        )
        if table.attrs["verdict"]:
            warnings.warn(table.attrs["verdict"], UserWarning, stacklevel=2)
        return table

    def _strata_of(self, reader: CellReader, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Stratum of each cell and names of the strata, those that training did not see last."""
        state = self._state(keys.COVARIATES_KEY)
        codes = reader.covariates[rows]
        new = np.unique(codes[reader.stratum[rows] < 0], axis=0)
        state = {**state, "strata": [*np.asarray(state["strata"]).tolist(), *new.tolist()]}
        return stratum_codes(codes, state), stratum_names(state)
