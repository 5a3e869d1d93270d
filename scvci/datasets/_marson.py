"""Marson: CRISPR activation of 69 genes in primary human T cells, from the public raw file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._osf import download
from ._preparation import (
    CellFilter,
    Genes,
    Recipe,
    Steps,
    filter_cells,
    measure,
    mitochondrial,
    names_of,
    prepare,
)
from ._raw_cells import RawCells

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from ._preparation import Protocol
    from ._raw_cells import Raw

_CONTROL = "NTC"
#: Names here of columns of the raw file.
_COLUMNS = {
    "target": "treatment",
    "celltype": "cell_type",
    "donor": "donor",
    "stim": "stimulation",
    "sgRNA": "guide",
}
_RECORDED_COUNTS = "nCount_RNA"
_GENE_NAME = "name"
_UNASSIGNED = ("", "Unassigned")
_FILE = "marson_formatted_raw.h5ad"


def download_marson(folder: str | Path) -> Path:
    """Download the raw file of the Marson screen from the Open Science Framework (project q6tpk).

    The file is checked against the SHA-256 that the project lists; if it is there and passes, it
    is not fetched again.

    Parameters
    ----------
    folder
        Where to put it; made if it is not there.

    Returns
    -------
    Path of the file, for :func:`prepare_marson`.

    Raises
    ------
    OSError, ValueError
        If the project cannot be reached or lists no such file, or the file fails its check.
    """
    return download([_FILE], folder)[0]


def prepare_marson(
    raw: Raw,
    *,
    protocol: Protocol = "published",
    n_genes: int = 2000,
    cell_filter: CellFilter | None = None,
    n_ood: int = 20,
    ood_treatments: Sequence[str] | None = None,
    split_by: str | None = None,
) -> AnnData:
    """Prepare the Marson screen for the prediction of held-out targets.

    The screen (Schmidt et al. 2022, GSE190604) *activates* genes (CRISPRa), resting and
    re-stimulated CD4 and CD8 T cells of two donors; targets are not knocked out.

    With ``protocol="published"``, as the preparation behind the paper, step by step: cells without
    recorded counts or donor are dropped; cells by counts, detected genes and mitochondrial share;
    scaling to the median library size and log1p; 2,000 highly variable genes (Cell Ranger's
    flavour) and all targeted genes; cells of unassigned type are dropped; the 20 targets with the
    largest L2 norm of their mean minus that of all other cells are held out of re-stimulated CD8
    cells; the other cells are split 80/20 (seed 42). Of the real file this keeps 39,616 of 56,081
    cells and 2,013 genes. Genes, held-out targets and scale then depend on test and held-out
    cells, and targets of few cells rank high by their noise alone.

    With ``protocol="corrected"``, cells of unassigned type are dropped and cells are split first,
    by groups if there is a ``split_by``; scale and genes come from training cells that no choice
    of targets can hold out; targets are ranked on training cells outside re-stimulated CD8, by the
    squared norm of their effect within strata less what noise adds to it, if they have at least 30
    such cells; mitochondrial genes begin with ``MT-`` instead of holding it.

    Parameters
    ----------
    raw
        Raw counts in ``X``: an AnnData, the path of an ``.h5ad`` (as of :func:`download_marson`),
        or a sequence of either. In ``obs``: ``target``, ``celltype``, ``donor``, ``stim``,
        ``sgRNA``, ``nCount_RNA``; in ``var``: ``name``, the symbols of the genes.
    protocol
        ``"published"`` or ``"corrected"``.
    n_genes
        Number of highly variable genes; targeted genes come on top.
    cell_filter
        Which cells are kept; by default those of the published preparation.
    n_ood
        Number of targets that are held out.
    ood_treatments
        Targets to hold out instead of by rank.
    split_by
        Column of ``obs`` with groups of cells that are not split between training and test, such
        as ``"sgRNA"``; for the corrected protocol.

    Returns
    -------
    Log-normalised expression in ``X`` and counts in ``layers["counts"]``, both CSR. In ``obs``:
    ``treatment`` (the target; the control is called ``"NTC"`` as in the source, for non-targeting
    guides), ``dose`` (1 for every cell, also of the control, as in the source), ``cell_type``,
    ``donor``, ``stimulation``, ``guide``, ``split`` (``"train"``, ``"test"`` or ``"ood"``), and
    ``n_counts``, ``n_genes`` and ``mt_frac`` over all genes. In ``uns["preparation"]``: numbers of
    cells after each step and in each split, the scale (``target_sum``), the held-out targets, the
    effects by which targets were ranked, and ``unmeasured_targets``, which are no gene of the
    file.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        If columns, cells or the control are missing, values are no counts, a cell occurs twice, or
        a target cannot be held out; with what was found.

    References
    ----------
    Schmidt et al. (2022), CRISPR activation and interference screens decode stimulation responses
    in primary human T cells, Science 375.

    Examples
    --------
    >>> adata = scvci.datasets.prepare_marson(scvci.datasets.download_marson("data"))
    >>> scvci.model.VCI.setup_anndata(
    ...     adata,
    ...     layer="counts",
    ...     control="NTC",
    ...     categorical_covariate_keys=["cell_type", "donor", "stimulation"],
    ... )
    """
    recipe = Recipe(
        screen="marson",
        control=_CONTROL,
        strata=("cell_type", "donor", "stimulation"),
        context={"cell_type": "CD8", "stimulation": "Re-stimulated"},
        flavor="cell_ranger",
        n_genes=n_genes,
        n_ood=n_ood,
        ood_treatments=names_of(ood_treatments),
        protocol=protocol,
        split_by=_COLUMNS.get(split_by, split_by) if split_by is not None else None,
    )
    columns = [*_COLUMNS, _RECORDED_COUNTS, *([] if split_by is None else [split_by])]
    with RawCells(raw, columns) as cells_on_disk:
        symbols = _symbols(cells_on_disk.var)
        steps = Steps({"raw": len(cells_on_disk.obs)})
        cells = measure(cells_on_disk, mitochondrial(symbols, protocol)).rename(columns=_COLUMNS)
        cells = steps.keep(cells, cells[_RECORDED_COUNTS] > 0, "recorded counts")
        cells = cells.drop(columns=_RECORDED_COUNTS)
        cells = steps.keep(cells, _is_known(cells["donor"]), "donor")
        if not (known := _is_known(cells["stimulation"])).all():
            cells = steps.keep(cells, known, "stimulation")
        cells = filter_cells(cells, cell_filter or CellFilter(), steps)
        targets = sorted(set(_named(cells["treatment"])) - {_CONTROL})
        genes = Genes.named(symbols, kept=targets)
        adata = prepare(
            cells_on_disk,
            cells.assign(dose=1.0, assigned=_is_known(cells["cell_type"])),
            genes,
            recipe,
            steps,
        )
    adata.uns["preparation"]["unmeasured_targets"] = sorted(set(targets) - set(genes.names))
    return adata


def _symbols(var: pd.DataFrame) -> pd.Index:
    if _GENE_NAME not in var:
        raise KeyError(
            f"var has no {_GENE_NAME!r}, the symbols of the genes. Found: "
            f"{', '.join(map(repr, var.columns)) or 'no column'}. Is it the raw file?"
        )
    return var.set_index(_GENE_NAME).index.astype(str)


def _is_known(labels: pd.Series) -> np.ndarray:
    return (labels.notna() & ~labels.isin(_UNASSIGNED)).to_numpy()


def _named(treatment: pd.Series) -> pd.Series:
    """Targets, all of which have a name.

    Raises
    ------
    ValueError
        If a cell has none; with the cell.
    """
    missing = treatment.isna() | (treatment == "")
    if missing.any():
        raise ValueError(f"Cell {treatment.index[missing][0]!r} has no target; leave it out.")
    return treatment
