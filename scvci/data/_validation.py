"""Checks of a user's AnnData before anything is written to it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvci._numbers import LARGEST

from ._labels import as_names, missing_key_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData

    from scvci.pooling import Pairs

    from ._cells import Cells
    from ._conditions import TreatmentKeys

_CHUNK = 4096
#: No logarithm of normalised counts is larger: log1p of 10⁶ is 13.8.
_MAX_LOG = 20.0


def iterate_rows(matrix: Any) -> Iterator[Any]:
    """Yield blocks of rows of a dense, sparse or backed matrix."""
    for start in range(0, matrix.shape[0], _CHUNK):
        yield matrix[start : start + _CHUNK]


def get_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer.

    Parameters
    ----------
    adata
        The cells.
    layer
        Name of the layer, or ``None`` for ``X``.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If ``X`` is empty.
    """
    found = ", ".join(repr(name) for name in adata.layers if name) or "none"
    if layer is None:
        if adata.X is None:
            raise ValueError(f"adata.X is empty (None). Layers found: {found}. Pass layer=.")
        return adata.X
    if layer not in adata.layers:
        raise KeyError(
            f"adata.layers has no {layer!r} (argument layer of setup_anndata). Layers found: "
            f"{found}. The model reads expression from this layer; new cells need it, too."
        )
    return adata.layers[layer]


def validate_setup(
    adata: AnnData,
    layer: str | None,
    treatment_keys: TreatmentKeys,
    categorical_covariate_keys: Sequence[str],
    continuous_covariate_keys: Sequence[str],
    size_factor_key: str | None,
    batch_key: str | None = None,
    continuous_strata: int = 1,
) -> None:
    """Check what ``setup_anndata`` is about to register, but for the labels themselves.

    Nothing is written, so that a refused AnnData is left as it was.

    Parameters
    ----------
    adata, layer, categorical_covariate_keys, continuous_covariate_keys, size_factor_key, \
batch_key, continuous_strata
        See :meth:`scvci.model.VCI.setup_anndata`.
    treatment_keys
        Where and how treatments are written.

    Raises
    ------
    KeyError, ValueError
        With the column, gene or count that is at fault.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"adata has {adata.n_obs} cells and {adata.n_vars} genes: nothing to learn from."
        )
    _check_unique(adata.var_names, "gene", "var_names_make_unique")
    _check_unique(adata.obs_names, "cell", "obs_names_make_unique")
    batch = [] if batch_key is None else [batch_key]
    _check_repeated(
        [treatment_keys.key, *categorical_covariate_keys, *batch, *continuous_covariate_keys]
    )
    if int(continuous_strata) != continuous_strata or continuous_strata < 1:
        raise ValueError(f"continuous_strata={continuous_strata} must be a whole number from 1.")
    for key in continuous_covariate_keys:
        _check_numeric(adata, key, "continuous_covariate_keys", positive=False)
    if size_factor_key is not None:
        _check_numeric(adata, size_factor_key, "size_factor_key", positive=True)
    _check_finite(get_matrix(adata, layer), adata, layer)


def check_names(adata: AnnData, columns: Sequence[str]) -> None:
    """Check that cells have names of their own, and that no column is used twice.

    Parameters
    ----------
    adata
        The cells.
    columns
        Columns of treatments and covariates.

    Raises
    ------
    ValueError
        With the name or column at fault, or if there are no cells.
    """
    if not adata.n_obs:
        raise ValueError("adata has no cells: nothing to learn from.")
    _check_unique(adata.obs_names, "cell", "obs_names_make_unique")
    _check_repeated(columns)


def _check_unique(names: pd.Index, kind: str, cure: str) -> None:
    if not names.is_unique:
        first = names[names.duplicated()][0]
        raise ValueError(
            f"{kind} names are not unique: {first!r} occurs more than once. Results are aligned "
            f"by name, so they would land on the wrong {kind}; call adata.{cure}()."
        )


def covariate_list(keys: Any, argument: str) -> list[str]:
    """Columns as a list of text, from any sequence.

    Parameters
    ----------
    keys
        Names of columns, or ``None``.
    argument
        Argument that they were given for.

    Raises
    ------
    TypeError
        If they are a single string.
    """
    if keys is None:
        return []
    if isinstance(keys, str):
        raise TypeError(f"{argument} must be a list of columns; got the string {keys!r}.")
    return as_names(keys)


def _check_repeated(given: Sequence[str]) -> None:
    repeated = sorted({key for key in given if given.count(key) > 1})
    if repeated:
        raise ValueError(
            f"obs columns {repeated} are used twice among treatment and covariates. A treatment "
            "that is its own covariate has no overlap with the control."
        )


def _check_numeric(adata: AnnData, key: str, argument: str, positive: bool) -> None:
    if key not in adata.obs:
        raise KeyError(missing_key_message(adata, key, argument))
    values = pd.to_numeric(adata.obs[key], errors="coerce").to_numpy(dtype=float)
    bad = ~(np.abs(values) <= LARGEST) | (positive & ~(values >= 1 / LARGEST))
    if bad.any():
        need, first = "positive numbers" if positive else "finite numbers", int(np.argmax(bad))
        limits = f"from {1 / LARGEST:g} to {LARGEST:g}" if positive else f"of at most {LARGEST:g}"
        raise ValueError(
            f"obs[{key!r}] (argument {argument}) must hold {need} {limits}; {int(bad.sum())} "
            f"cells do not (first: {adata.obs_names[first]!r}, {adata.obs[key].iloc[first]})."
        )


def _check_finite(matrix: Any, adata: AnnData, layer: str | None) -> None:
    row = 0
    for block in iterate_rows(matrix):
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if not np.isfinite(values).all():
            dense = block.toarray() if sparse.issparse(block) else np.asarray(block)
            cell, gene = (int(i[0]) for i in np.nonzero(~np.isfinite(dense)))
            raise ValueError(
                f"{_where(layer)} has a NaN or infinite value (cell "
                f"{adata.obs_names[row + cell]!r}, gene {adata.var_names[gene]!r}). It would turn "
                "every weight of the model into NaN; mend or drop the cell or the gene."
            )
        row += block.shape[0]


def is_integral(matrix: Any) -> bool:
    """Whether all values are whole and none is negative.

    Parameters
    ----------
    matrix
        Dense, sparse or backed.
    """
    for block in iterate_rows(matrix):
        values = np.asarray(block.data if sparse.issparse(block) else block)
        if (values < 0).any() or (values != np.rint(values)).any():
            return False
    return True


def check_expression(
    blocks: Iterable[tuple[np.ndarray, Any]],
    cell_names: pd.Index,
    genes: np.ndarray,
    adata: AnnData,
    layer: str | None,
    is_count: bool,
) -> None:
    """Check expression against the likelihood's support.

    Parameters
    ----------
    blocks
        Rows and their expression, dense or sparse.
    cell_names, genes
        Names of all rows, and of the columns.
    adata, layer
        Where expression lies, for the message.
    is_count
        Whether the likelihood is one of counts, or else of log-normalised data.

    Raises
    ------
    ValueError
        If a count likelihood meets negative or fractional values, or a normal one values that are
        scaled or not logarithms; with the cell and gene.

    Warns
    -----
    UserWarning
        If a normal likelihood meets whole numbers.
    """
    integral = True
    for rows, block in blocks:
        values = np.asarray(block.data if sparse.issparse(block) else block)
        wrong = ~np.isfinite(values) | (values < 0)
        fractional = values != np.rint(values)
        integral = integral and not fractional.any()
        wrong |= fractional if is_count else values > _MAX_LOG
        if wrong.any():
            dense = block.toarray() if sparse.issparse(block) else np.asarray(block)
            bad = ~np.isfinite(dense) | (dense < 0)
            bad |= dense != np.rint(dense) if is_count else dense > _MAX_LOG
            cell, gene = (int(i[0]) for i in np.nonzero(bad))
            where = f"cell {str(cell_names[rows[cell]])!r}, gene {str(genes[gene])!r}"
            explain = _explain_no_count if is_count else _explain_no_log
            raise ValueError(explain(float(dense[cell, gene]), dense, where, adata, layer))
    if not is_count and integral:
        warnings.warn(
            f"{_where(layer)} holds whole numbers, but likelihood='normal' is meant for "
            "log-normalised data. Use likelihood='nb' for counts.",
            UserWarning,
            stacklevel=4,
        )


def _explain_no_count(
    value: float, dense: np.ndarray, where: str, adata: AnnData, layer: str | None
) -> str:
    start = f"{_where(layer)} is not counts: {where} is {_digits(value)}."
    if not np.isfinite(value):
        return f"{start} Replace it, or drop the cell or the gene."
    whole = np.rint(dense)
    if (dense > -0.5).all() and np.allclose(dense, whole, rtol=1e-3, atol=1e-3):
        return (
            f"{start} All values are near whole numbers: round them (np.rint) if they are counts "
            "with rounding errors."
        )
    raw = adata.raw
    if raw is not None and layer is None and is_integral(raw.X):
        return (
            f"{start} adata.raw holds counts: copy them to a layer, adata.layers['counts'] = "
            "adata.raw[:, adata.var_names].X, and pass layer='counts' to setup_anndata."
        )
    return (
        f"{start} A count likelihood is meaningless there; pass the layer of raw counts to "
        "setup_anndata, or use likelihood='normal' for log-normalised data."
    )


def _explain_no_log(
    value: float, dense: np.ndarray, where: str, adata: AnnData, layer: str | None
) -> str:
    if not np.isfinite(value):
        return f"{_where(layer)} has a NaN or infinite value: {where} is {_digits(value)}."
    what = "scaled or centred" if value < 0 else "not logarithms"
    return (
        f"{_where(layer)} is {what}: {where} is {_digits(value)}. likelihood='normal' is for "
        "log-normalised data (scanpy.pp.normalize_total, then scanpy.pp.log1p, without "
        "scanpy.pp.scale), on which fold changes can be read off; pass such a layer, or raw "
        "counts with likelihood='nb'."
    )


def _digits(value: float) -> str:
    """Text with as many digits as single precision tells apart."""
    return f"{value:.8g}"


def warn_about_empty(cells: Cells) -> None:
    """Warn of cells and genes without a single count.

    Parameters
    ----------
    cells
        A table of cells.
    """
    cell_totals, gene_totals = [], np.zeros(len(cells.genes))
    for start in range(0, cells.n_obs, _CHUNK):
        block = cells.block(np.arange(start, min(start + _CHUNK, cells.n_obs)))
        cell_totals.append(np.asarray(block.sum(axis=1), dtype=float).ravel())
        gene_totals += np.asarray(block.sum(axis=0), dtype=float).ravel()
    for totals, names, kind in (
        (np.concatenate(cell_totals), cells.names, "cells"),
        (gene_totals, cells.genes, "genes"),
    ):
        if (totals == 0).any():
            first = str(names[int(np.argmax(totals == 0))])
            warnings.warn(
                f"{int((totals == 0).sum())} {kind} have no counts at all (first: {first!r}). "
                "They carry no information and are predicted as zero; consider filtering them.",
                UserWarning,
                stacklevel=3,
            )


def _where(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_pairs(pairs: Pairs, treatments: Sequence[str], strata: Sequence[str]) -> None:
    """Refuse strata without control; list pairs that were never measured in a warning.

    Parameters
    ----------
    pairs
        Measured pairs; the control has index 0.
    treatments, strata
        Their names.

    Raises
    ------
    ValueError
        If a stratum has no control cell.
    """
    measured = np.zeros((len(strata), len(treatments)), dtype=bool)
    measured[pairs.stratum, pairs.treatment] = True
    without = [strata[int(i)] for i in np.flatnonzero(~measured[:, 0])]
    if without:
        raise ValueError(
            f"Strata without a single {treatments[0]!r} cell: {without}. An effect there has no "
            "baseline to be measured from, so predictions would rest on other strata alone. Drop "
            "these cells, or use coarser covariates that put them beside controls."
        )
    missing = np.argwhere(~measured)
    if len(missing):
        listed = [f"({treatments[t]}, {strata[x]})" for x, t in missing[:20]]
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        warnings.warn(
            f"{len(missing)} (treatment, stratum) pairs have no cells: {', '.join(listed)}{more}. "
            "Their counterfactuals are extrapolated from the other strata.",
            UserWarning,
            stacklevel=4,
        )


def check_batches(
    stratum: np.ndarray,
    treatment: np.ndarray,
    batch: np.ndarray,
    treatments: Sequence[str],
    strata: Sequence[str],
) -> None:
    """Warn of pairs that share no batch with their control: batch and effect are the same.

    Parameters
    ----------
    stratum, treatment, batch
        Codes of each cell, shape ``(n_cells,)``; the control's is 0.
    treatments, strata
        Their names.

    Warns
    -----
    UserWarning
        With the pairs.
    """
    cells = np.zeros((len(strata), len(treatments), int(batch.max(initial=0)) + 1), dtype=bool)
    cells[stratum, treatment, batch] = True
    shared = (cells & cells[:, [0]]).any(axis=2)
    apart = np.argwhere(~shared & cells.any(axis=2) & cells[:, [0]].any(axis=2))
    if len(apart):
        listed = ", ".join(f"({treatments[t]}, {strata[x]})" for x, t in apart[:20])
        more = f" and {len(apart) - 20} more" if len(apart) > 20 else ""
        warnings.warn(
            f"{len(apart)} (treatment, stratum) pairs share no batch with cells of "
            f"{treatments[0]!r}: {listed}{more}. What the treatment did cannot be told from what "
            "the batch did; their effects are skipped, and predictions hold on to the model's "
            "assumption that batches act alike on all treatments.",
            UserWarning,
            stacklevel=4,
        )
