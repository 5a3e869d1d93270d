"""Sci-Plex 3: 188 drugs at four doses on three cancer cell lines, from the public raw files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

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
    subsample,
)
from ._raw_cells import RawCells

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from ._preparation import Protocol
    from ._raw_cells import Raw

_CONTROL = "Vehicle"
_COLUMNS = ("product_name", "dose", "cell_type", "replicate")
_FILES = tuple(f"sciplex_raw_chunk_{i}.h5ad" for i in range(5))


def download_sciplex(folder: str | Path) -> list[Path]:
    """Download the five raw chunks of sci-Plex 3 from the Open Science Framework (project q6tpk).

    Each file is checked against the SHA-256 that the project lists; a file that is there and
    passes is not fetched again.

    Parameters
    ----------
    folder
        Where to put them; made if it is not there.

    Returns
    -------
    Paths of the files, for :func:`prepare_sciplex`.

    Raises
    ------
    OSError, ValueError
        If the project cannot be reached or lists no such file, or a file fails its check.
    """
    return download(_FILES, folder)


def prepare_sciplex(
    raw: Raw,
    *,
    protocol: Protocol = "published",
    n_genes: int = 2000,
    fraction: float = 0.5,
    cell_filter: CellFilter | None = None,
    n_ood: int = 20,
    ood_treatments: Sequence[str] | None = None,
    ood_cell_type: str = "MCF7",
    split_by: str | None = None,
) -> AnnData:
    """Prepare sci-Plex 3 for the prediction of held-out drugs.

    With ``protocol="published"``, as the preparation behind the paper, step by step: cells by
    counts, detected genes and mitochondrial share; a random half of them (seed 0), in drawn order;
    scaling to the median library size and log1p; 2,000 highly variable genes (Seurat's flavour);
    the 20 drugs with the largest L2 norm of their mean minus that of all other cells are held out
    of MCF7; the other cells are split 80/20 (seed 42). Of the real files this keeps 122,278 of
    581,777 cells. Genes, held-out drugs and scale then depend on test and held-out cells, and
    drugs of few cells rank high by their noise alone.

    With ``protocol="corrected"``, cells are split first, by groups if there is a ``split_by``;
    scale and genes come from training cells that no choice of drugs can hold out; drugs are ranked
    on training cells of the other cell types, by the squared norm of their effect within strata
    less what noise adds to it, if they have at least 30 such cells; mitochondrial genes begin with
    ``MT-`` instead of holding it.

    Chunks are read block by block, three times; all genes of all cells are never in memory.

    Parameters
    ----------
    raw
        Raw counts in ``X``: an AnnData, the path of an ``.h5ad``, or a sequence of either (the
        five chunks of :func:`download_sciplex`). In ``obs``: ``product_name``, ``dose`` (nM),
        ``cell_type``, ``replicate``.
    protocol
        ``"published"`` or ``"corrected"``.
    n_genes
        Number of highly variable genes.
    fraction
        Share of the cells that is drawn.
    cell_filter
        Which cells are kept; by default those of the published preparation.
    n_ood
        Number of drugs that are held out.
    ood_treatments
        Drugs to hold out, by the first word of their name, instead of by rank.
    ood_cell_type
        Cell type that they are held out of.
    split_by
        Column of ``obs`` with groups of cells that are not split between training and test; for
        the corrected protocol.

    Returns
    -------
    Log-normalised expression in ``X`` and counts in ``layers["counts"]``, both CSR. In ``obs``:
    ``treatment`` (the first word of the product's name, such as ``"(+)-JQ1"``; the control is
    called ``"Vehicle"`` as in the source), ``dose`` (share of the largest, 0 for the control),
    ``product_name``, ``dose_nM``, ``cell_type``, ``replicate``, ``split`` (``"train"``, ``"test"``
    or ``"ood"``), and ``n_counts``, ``n_genes`` and ``mt_frac`` over all genes. In
    ``uns["preparation"]``: numbers of cells after each step and in each split, the scale
    (``target_sum``), the held-out drugs and the effects by which drugs were ranked.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        If columns, cells or the control are missing, values are no counts, a cell occurs twice,
        chunks have different genes, or a drug cannot be held out; with what was found.

    Warns
    -----
    UserWarning
        If products share their first word, and so become one treatment.

    References
    ----------
    Srivatsan et al. (2020), Massively multiplex chemical transcriptomics at single-cell
    resolution, Science 367.

    Examples
    --------
    >>> files = scvci.datasets.download_sciplex("data")
    >>> adata = scvci.datasets.prepare_sciplex(files)
    >>> scvci.model.VCI.setup_anndata(
    ...     adata,
    ...     layer="counts",
    ...     control="Vehicle",
    ...     dose_key="dose",
    ...     categorical_covariate_keys=["cell_type", "replicate"],
    ... )
    """
    recipe = Recipe(
        screen="sciplex",
        control=_CONTROL,
        strata=("cell_type", "replicate"),
        context={"cell_type": ood_cell_type},
        flavor="seurat",
        n_genes=n_genes,
        n_ood=n_ood,
        ood_treatments=names_of(ood_treatments),
        protocol=protocol,
        split_by=split_by,
    )
    columns = [*_COLUMNS, *([] if split_by is None else [split_by])]
    with RawCells(raw, columns) as cells_on_disk:
        genes = Genes.named(cells_on_disk.var.index)
        steps = Steps({"raw": len(cells_on_disk.obs)})
        cells = measure(cells_on_disk, mitochondrial(cells_on_disk.var.index, protocol))
        cells = filter_cells(cells, cell_filter or CellFilter(), steps)
        cells = _name_treatments(subsample(cells, fraction, steps))
        return prepare(cells_on_disk, cells, genes, recipe, steps)


def _name_treatments(cells: pd.DataFrame) -> pd.DataFrame:
    """Read products and doses.

    Raises
    ------
    ValueError
        If a product or a dose is missing or a treated cell has no dose.
    """
    for column in ("product_name", "cell_type", "replicate"):
        missing = cells[column].isna() | (cells[column].astype(str) == "")
        if missing.any():
            at = cells.index[missing][0]
            raise ValueError(f"Cell {at!r} has no {column}; fill it in or leave the cell out.")
    product = cells["product_name"].astype(str)
    treatment = product.str.split(" ").str[0]
    _tell_merged(product, treatment)
    dose = pd.to_numeric(cells["dose"].astype(str), errors="coerce").to_numpy()
    treated = (treatment != _CONTROL).to_numpy()
    bad = treated & ~((dose > 0) & np.isfinite(dose))
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"Cell {cells.index[at]!r} of {product.iloc[at]!r} has the dose "
            f"{cells['dose'].iloc[at]}; a treated cell needs one above 0 (nM)."
        )
    dose = np.where(treated, dose, 0.0)
    return cells.drop(columns="dose").assign(
        treatment=treatment,
        dose=dose / max(dose.max(), np.finfo(float).tiny),
        dose_nM=dose,
        assigned=True,
    )


def _tell_merged(product: pd.Series, treatment: pd.Series) -> None:
    pairs = pd.DataFrame({"product": product, "treatment": treatment}).drop_duplicates()
    merged = pairs[pairs["treatment"].duplicated(keep=False)].groupby("treatment")["product"]
    if merged.ngroups:
        listed = "; ".join(f"{name!r}: {', '.join(sorted(found))}" for name, found in merged)
        warnings.warn(
            f"Products share their first word, by which treatments are named, and become one "
            f"treatment: {listed}. Rename them in raw if they are different drugs.",
            UserWarning,
            stacklevel=4,
        )
