"""Features of treatments, by which those that were never measured can be predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from scvci._names import nearest

from ._validation import get_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

#: Asks :func:`read_embeddings` to compute :func:`gene_loadings`.
GENE_LOADINGS = "gene_loadings"
#: Correlations of genes need no more cells than this.
_MAX_CELLS = 20_000
_LISTED = 10


def morgan_fingerprints(
    smiles: Mapping[str, str] | pd.Series, radius: int = 2, n_bits: int = 2048
) -> pd.DataFrame:
    """Morgan (ECFP-like) fingerprints of compounds, as features of chemical treatments.

    Parameters
    ----------
    smiles
        SMILES of each treatment; the names are the keys, or the index of the series.
    radius
        Bonds around each atom that a substructure may span.
    n_bits
        Length of the fingerprint.

    Returns
    -------
    Shape ``(n_treatments, n_bits)``, treatments by bits, 0 or 1 as ``float32``.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    ValueError
        If a name is empty or occurs twice, or a SMILES cannot be parsed.
    """
    try:
        from rdkit import rdBase
        from rdkit.Chem import MolFromSmiles
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError as error:
        raise ImportError(
            "morgan_fingerprints needs RDKit. Install it with pip install 'scvci[chem]'."
        ) from error
    series = pd.Series(smiles, dtype=object)
    names = _row_names(series.index, "smiles")
    with rdBase.BlockLogs():
        # An empty text is a valid molecule without atoms to RDKit, and a missing SMILES to us.
        molecules = [
            MolFromSmiles(s) if isinstance(s, str) and s.strip() else None for s in series
        ]
    failed = [
        f"{name!r} ({text!r})"
        for name, text, molecule in zip(names, series, molecules, strict=True)
        if molecule is None
    ]
    if failed:
        raise ValueError(
            f"The SMILES of {len(failed)} treatments cannot be parsed: {_shorten(failed)}. Mend "
            "them, or leave these treatments out."
        )
    generator = GetMorganGenerator(radius=radius, fpSize=n_bits)
    bits = [generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]
    values = np.array(bits, dtype=np.float32).reshape(len(names), n_bits)
    return pd.DataFrame(values, index=names, columns=[f"bit{i}" for i in range(n_bits)])


def gene_loadings(
    adata: AnnData,
    layer: str | None = None,
    n_components: int = 20,
    seed: int = 0,
    cells: np.ndarray | None = None,
) -> pd.DataFrame:
    """Correlations of genes with the principal components of expression.

    Genes that vary together have similar rows, so that the row of its target gene says something
    about a genetic perturbation. Counts become ``log1p`` of 10,000 times the cell's proportions;
    values that are negative or not whole are taken as log-normalised already. Genes are
    standardised, and a gene that does not vary has zeros.

    Parameters
    ----------
    adata
        The cells.
    layer
        Layer with the expression, or ``None`` for ``X``.
    n_components
        Number of components; fewer where there are too few cells or genes.
    seed
        Seed of the solver, and of the draw of cells where there are more than 20,000.
    cells
        Mask of the cells to use, shape ``(n_cells,)``; all by default.

    Returns
    -------
    Shape ``(n_genes, n_components)``, genes by ``PC1``, ``PC2``, …. The largest entry of each
    column in absolute value is positive.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If ``n_components`` is less than one, there are fewer than three cells or two genes, the
        mask does not fit, or a value is not finite.
    """
    if n_components < 1:
        raise ValueError(f"n_components must be at least 1; got {n_components}.")
    rows = _choose_cells(adata, cells, seed)
    values = _log_normalised(get_matrix(adata, layer)[rows], adata)
    n_components = min(n_components, min(values.shape) - 1)
    if len(rows) < 3 or n_components < 1:
        raise ValueError(
            f"Gene loadings from {len(rows)} cells and {adata.n_vars} genes say nothing; give at "
            "least three cells and two genes, or a table of features."
        )
    # Without the mean the matrix stays sparse; the decomposition centres it on the fly.
    values = StandardScaler(with_mean=False, copy=False).fit_transform(values)
    pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(values)
    # scikit-learn's variances divide by n − 1, and those that standardise genes by n.
    loadings = pca.components_.T * np.sqrt(pca.explained_variance_ * (1 - 1 / len(rows)))
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0)
    columns = [f"PC{i + 1}" for i in range(n_components)]
    return pd.DataFrame(
        loadings * np.where(largest < 0, -1, 1), index=adata.var_names.astype(str), columns=columns
    )


def _choose_cells(adata: AnnData, cells: np.ndarray | None, seed: int) -> np.ndarray:
    mask = np.ones(adata.n_obs, dtype=bool) if cells is None else np.asarray(cells)
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        raise ValueError(
            f"cells must be a mask of shape ({adata.n_obs},), True for the cells to use; got "
            f"{mask.dtype} of shape {mask.shape}."
        )
    rows = np.flatnonzero(mask)
    if len(rows) > _MAX_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MAX_CELLS, replace=False))
    return rows


def _log_normalised(matrix: Any, adata: AnnData) -> Any:
    """Log-normalise counts, dense or sparse; other values stay as they are."""
    matrix = (sparse.csr_matrix if sparse.issparse(matrix) else np.array)(matrix, dtype=float)
    values = matrix.data if sparse.issparse(matrix) else matrix
    if not np.isfinite(values).all():
        totals = np.asarray(matrix.sum(axis=0)).ravel()
        gene = adata.var_names[int(np.argmax(~np.isfinite(totals)))]
        raise ValueError(
            f"Expression has a NaN or infinite value (gene {gene!r}); mend it or drop the gene."
        )
    if (values < 0).any() or (values != np.rint(values)).any():
        return matrix
    return np.log1p(normalize(matrix, norm="l1", copy=False) * 1e4)


def read_embeddings(
    table: pd.DataFrame | str,
    adata: AnnData,
    members: Sequence[str],
    control: str,
    separator: str | None,
    layer: str | None = None,
    cells: np.ndarray | None = None,
) -> tuple[list[str], np.ndarray]:
    """Read the features of treatments, measured or not.

    Parameters
    ----------
    table
        Treatments by features; or the name of a data frame in ``uns``, of an entry of ``varm``,
        whose rows are genes, or ``"gene_loadings"`` for :func:`gene_loadings`, unless there is an
        entry of this name.
    adata
        The cells.
    members
        Treatments that were measured, each of which needs a row.
    control
        Label of the control, whose row is not used.
    separator
        Between the members of a combination. A row has features of one treatment, so no name may
        hold it; genes that do are left out.
    layer
        Layer for :func:`gene_loadings`.
    cells
        Mask of the cells for :func:`gene_loadings`, shape ``(n_cells,)``.

    Returns
    -------
    Names of the treatments, the members first and then those that were not measured, and their
    features, shape ``(n_names, n_features)``.

    Raises
    ------
    KeyError
        If there is no entry of the name.
    TypeError
        If an entry is no data frame or matrix, or a column is not numeric.
    ValueError
        With the row or column at fault: no rows, no columns, a name that is empty, occurs twice or
        holds the separator, a member without a row, or a value that is not finite.
    """
    where = f"treatment_embeddings={table!r}" if isinstance(table, str) else "treatment_embeddings"
    frame, genes = _find_table(table, adata, where, layer, cells)
    if frame.empty:
        raise ValueError(
            f"{where} has {frame.shape[0]} rows and {frame.shape[1]} columns; it needs a row for "
            "each treatment and a column for each feature."
        )
    names = _row_names(frame.index, where)
    joint = [name for name in names if separator is not None and separator in name]
    if joint and not genes:
        raise ValueError(
            f"{where} has rows whose names hold the separator {separator!r}: "
            f"{_shorten(map(repr, joint))}. Give one row for each single treatment; combinations "
            "are made of their members."
        )
    known = pd.Index(names).difference([control, *joint], sort=False)
    _check_members(members, list(known), where)
    order = [*members, *known.difference(list(members), sort=False)]
    frame = frame.set_axis(names, axis=0).loc[order]
    return order, _as_numbers(frame, where)


def _find_table(
    table: pd.DataFrame | str,
    adata: AnnData,
    where: str,
    layer: str | None,
    cells: np.ndarray | None,
) -> tuple[pd.DataFrame, bool]:
    """Return the table, and whether its rows are the genes."""
    if isinstance(table, pd.DataFrame):
        return table, False
    if not isinstance(table, str):
        raise TypeError(
            "treatment_embeddings must be a data frame with a row for each treatment, or the name "
            f"of an entry; got {type(table).__name__}."
        )
    if table in adata.uns and table in adata.varm:
        raise ValueError(f"{where} is an entry of both uns and varm; rename one of them.")
    if table in adata.uns:
        entry = adata.uns[table]
        if not isinstance(entry, pd.DataFrame):
            raise TypeError(
                f"uns[{table!r}] must be a data frame with a row for each treatment; it is "
                f"{type(entry).__name__}."
            )
        return entry, False
    if table in adata.varm:
        entry = adata.varm[table]
        if not isinstance(entry, pd.DataFrame):
            dense = entry.toarray() if sparse.issparse(entry) else np.asarray(entry)
            entry = pd.DataFrame(dense.reshape(adata.n_vars, -1), index=adata.var_names)
        return entry, True
    if table == GENE_LOADINGS:
        return gene_loadings(adata, layer, cells=cells), True
    tables = [k for k, v in adata.uns.items() if isinstance(v, pd.DataFrame)]
    found = [f"uns[{k!r}]" for k in tables] + [f"varm[{k!r}]" for k in adata.varm]
    raise KeyError(
        f"{where} is in neither uns nor varm. Tables found: {', '.join(found) or 'none'}. Pass "
        f"one of them, a data frame, or {GENE_LOADINGS!r} where treatments are genes."
    )


def _row_names(index: pd.Index, where: str) -> list[str]:
    names = ["" if name is None or name is pd.NA else str(name) for name in index]
    empty = index.isna() | np.array([not name.strip() for name in names], dtype=bool)
    if empty.any():
        row = int(np.argmax(empty))
        raise ValueError(f"{where} has a row without a name (row {row}); name its treatment.")
    repeated = pd.Index(names, dtype=object)
    repeated = repeated[repeated.duplicated()].unique()
    if len(repeated):
        raise ValueError(
            f"{where} names treatments more than once: {_shorten(map(repr, repeated))}. Keep one "
            "row for each."
        )
    return names


def _check_members(members: Sequence[str], known: Sequence[str], where: str) -> None:
    missing = [member for member in members if member not in set(known)]
    if missing:
        hints = []
        for member in missing[:_LISTED]:
            close = ", ".join(map(repr, nearest(member, known)))
            hints.append(f"{member!r} (nearest: {close})" if close else repr(member))
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise ValueError(
            f"{where} has no row for {len(missing)} treatments of the data: "
            f"{', '.join(hints)}{more}. Give every measured treatment a row, or drop its cells."
        )


def _as_numbers(frame: pd.DataFrame, where: str) -> np.ndarray:
    for column, dtype in zip(frame.columns, frame.dtypes, strict=True):
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise TypeError(
                f"Column {column!r} of {where} is not numeric ({dtype}). Encode it in numbers, as "
                "pd.get_dummies does, or drop it."
            )
    values = frame.to_numpy(dtype=float, na_value=np.nan)
    if not np.isfinite(values).all():
        row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(values)))
        raise ValueError(
            f"{where} has a NaN or infinite value in row {frame.index[row]!r}, column "
            f"{frame.columns[column]!r}. Fill it in, or drop the row or the column."
        )
    return values


def _shorten(items: Any) -> str:
    """List at most ten."""
    items = list(items)
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
