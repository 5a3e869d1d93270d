"""Whether the members of a combination add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scvci.effects import interaction_effects

from ._registry import RegistryMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from anndata import AnnData

    from ._study import Study


class CombinationsMixin(RegistryMixin):
    """Interactions of treatments that were measured together and alone."""

    _targets: Callable[[str | Sequence[str] | None], list[str]]
    _study: Callable[..., Study]

    def estimate_interactions(
        self,
        treatment: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        level: float = 0.95,
        min_cells: int = 30,
        cluster_key: str | None = None,
    ) -> pd.DataFrame:
        """Compare the effect of combinations with the sum of their members' effects.

        Effects are differences of mean log-normalised expression (log1p per 10,000, or the data
        themselves where they are log-normalised) to the control, in each stratum, among measured
        cells; the model's predictions do not enter.

        Parameters
        ----------
        treatment
            A combination, several, or ``None`` for all whose members were measured alone, at the
            same doses.
        adata
            Cells, by default the model's.
        level
            Coverage of the intervals.
        min_cells
            Fewest cells in each of the arms.
        cluster_key
            Column of ``obs`` with the donor, animal, well or guide of each cell. Cells of one are
            not independent: without it, errors are too small.

        Returns
        -------
        One row per combination, stratum and gene: ``effect``, ``additive``, ``interaction`` and
        its error, interval, p- and q-value; see :func:`scvci.effects.interaction_effects`.

        Raises
        ------
        KeyError
            If there is no such column.
        ValueError
            If a treatment is not a combination, a member was not measured alone, or a label of
            a cluster is missing.

        Warns
        -----
        UserWarning
            If ``obs`` has a column that looks like donors, animals or wells and ``cluster_key`` is
            not given.
        """
        combinations = self._combinations(treatment)
        study = self._study(adata, None, cluster_key, "log1p")
        outcomes = study.outcomes
        if study.is_count:
            outcomes = outcomes.log1p() if sparse.issparse(outcomes) else np.log1p(outcomes)
        known = study.stratum >= 0
        return interaction_effects(
            outcomes[known],
            study.reader.treatment[known],
            study.stratum[known],
            combinations,
            treatments=self.treatments,
            group_names=study.strata,
            genes=study.genes,
            clusters=None if study.clusters is None else study.clusters[known],
            level=level,
            min_cells=min_cells,
        )

    def _combinations(
        self, treatment: str | Sequence[str] | None
    ) -> list[tuple[int, list[int], int]]:
        """Codes of combinations, of their members alone, and of the control."""
        arms, names = self._arms, self.treatments
        found = []
        for name in self._targets(treatment):
            condition = arms.condition(name)
            parts = {member: arms.name({member: dose}) for member, dose in condition.items()}
            missing = [part for part in parts.values() if arms.find(part) is None]
            if len(parts) > 1 and not missing:
                codes = [names.index(part) for part in parts.values()]
                found.append((names.index(name), codes, names.index(self.control)))
            elif treatment is not None:
                why = (
                    f"{missing} were not measured alone, so nothing is expected of it"
                    if len(parts) > 1
                    else "it is not a combination"
                )
                raise ValueError(f"Treatment {name!r} has no interaction to estimate: {why}.")
        if not found:
            raise ValueError(
                "No combination was measured beside its members alone. Combinations are read from "
                "labels when the data are set up with separator=."
            )
        return found
