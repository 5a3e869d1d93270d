"""Whether every treatment is represented in every stratum."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from scvci.effects import overlap_table

from ._comparison import read_cells

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvci.model import VCI


def check_overlap(
    adata: AnnData,
    *,
    indices: Any = None,
    min_cells: int = 30,
    min_propensity: float = 0.01,
    model: VCI | None = None,
) -> pd.DataFrame:
    """List how well every treatment is represented in every stratum.

    A counterfactual is supported by data only where its stratum has cells with that treatment
    (positivity).

    Parameters
    ----------
    adata
        Cells registered with :meth:`scvci.model.VCI.setup_anndata`, or any that ``model`` reads.
    indices
        Rows, mask or names of the cells, by default all; ``indices=model.train_indices`` for
        what training saw.
    min_cells
        Fewest cells a pair should have.
    min_propensity
        Lowest share of a stratum's cells that should have received a treatment. In screens of
        many treatments equal shares may be lower than the default.
    model
        A model by whose registry to read ``adata``; it need not be trained.

    Returns
    -------
    One row per (stratum, treatment): ``n_cells``, ``propensity``, ``weight``,
    ``effective_size``, ``flag``; with continuous covariates also ``share_low``, the share of
    the stratum's cells for which the treatment is improbable given these, and with counts
    ``depth_ratio``, mean library size over that of the stratum's control cells. See
    :func:`scvci.effects.overlap_table`.

    Raises
    ------
    ValueError
        If ``adata`` was not set up, or a number is out of range.

    Warns
    -----
    UserWarning
        If overlap is poor: which pairs, and what it means for their counterfactuals.
    """
    cells = read_cells(adata, model, indices)
    rows = cells.rows
    table = overlap_table(
        cells.treatment[rows],
        cells.stratum[rows],
        cells.treatments.names,
        cells.strata,
        control=0,
        min_cells=min_cells,
        min_propensity=min_propensity,
        continuous=None if cells.continuous is None else cells.continuous[rows],
        batch=None if cells.batch is None else cells.batch[rows],
        library_size=cells.totals(rows) if cells.is_count else None,
    )
    if table.attrs["verdict"]:
        warnings.warn(table.attrs["verdict"], UserWarning, stacklevel=2)
    return table
