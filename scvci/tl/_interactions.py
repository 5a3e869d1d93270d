"""Whether the members of a combination add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scvci.data._conditions import Condition
from scvci.data._requests import read_requests
from scvci.effects import interaction_effects
from scvci.model import VCI

from ._comparison import Comparison

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvci.data import Treatments


def estimate_interactions(
    adata: AnnData,
    treatment: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    min_cells: int = 30,
    cluster_key: str | None = None,
    model: VCI | None = None,
) -> pd.DataFrame:
    """Compare the effect of combinations with the sum of their members' effects.

    Effects are differences of mean log-normalised expression (log1p per 10,000, or the data
    themselves where they are log-normalised) to the control, in each stratum, among measured
    cells.

    Parameters
    ----------
    adata
        Cells registered with :meth:`scvci.model.VCI.setup_anndata`, or any that ``model`` reads.
    treatment
        A combination, several, or ``None`` for all whose members were measured alone, at the
        same doses.
    level
        Coverage of the intervals.
    min_cells
        Fewest cells in each of the arms.
    cluster_key
        Column of ``obs`` with the donor, animal, well or guide of each cell. Cells of one are
        not independent: without it, errors are too small.
    model
        A model by whose registry to read ``adata``; its predictions do not enter.

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
    setup_args = VCI.registry_of(adata)["setup_args"] if model is None else model.setup_args
    comparison = Comparison.of(adata, setup_args, model=model, cluster_key=cluster_key)
    cells = comparison.cells
    combinations = _combinations(cells.treatments, treatment)
    outcomes = comparison.outcomes
    if comparison.is_count:
        outcomes = outcomes.log1p() if sparse.issparse(outcomes) else np.log1p(outcomes)
    return interaction_effects(
        outcomes,
        cells.treatment,
        cells.stratum,
        combinations,
        treatments=cells.treatments.names,
        group_names=cells.strata,
        genes=cells.genes.tolist(),
        clusters=comparison.clusters,
        level=level,
        min_cells=min_cells,
    )


def _combinations(
    arms: Treatments, treatment: str | Sequence[str] | None
) -> list[tuple[int, list[int], int]]:
    """Codes of combinations, of their members alone, and of the control."""
    found = []
    for condition in read_requests(arms, treatment):
        name, code = arms.name(condition), arms.find(condition)
        parts = [Condition.of({member: dose}) for member, dose in condition.items()]
        codes = [arms.find(part) for part in parts]
        missing = [arms.name(p) for p, c in zip(parts, codes, strict=True) if c is None]
        if code is not None and len(parts) > 1 and not missing:
            found.append((code, [c for c in codes if c is not None], 0))
        elif treatment is not None:
            why = "it is not a combination"
            if code is None:
                why = "it was not measured"
            elif len(parts) > 1:
                why = f"{missing} were not measured alone, so nothing is expected of it"
            raise ValueError(f"Treatment {name!r} has no interaction to estimate: {why}.")
    if not found:
        raise ValueError(
            "No combination was measured beside its members alone. Combinations are read from "
            "labels when the data are set up with separator=."
        )
    return found
