"""Checks of a user's AnnData before anything is written to it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ._conditions import TreatmentKeys, read_arms
from ._constants import BATCH_KEY
from ._fields import CovariateField
from ._names import missing_key_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

_CHUNK = 4096


def iterate_rows(matrix: Any, chunk: int = _CHUNK) -> Iterator[Any]:
    """Yield blocks of rows of a dense, sparse or backed matrix."""
    for start in range(0, matrix.shape[0], chunk):
        yield matrix[start : start + chunk]


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
    """
    if layer is None:
        return adata.X
    if layer not in adata.layers:
        found = ", ".join(repr(name) for name in adata.layers if name) or "none"
        raise KeyError(
            f"adata.layers has no {layer!r} (argument layer). Layers found: {found}. Pass one of "
            "them, or layer=None for adata.X."
        )
    return adata.layers[layer]


def validate_setup(
    adata: AnnData,
    layer: str | None,
    treatment_keys: TreatmentKeys,
    categorical_covariate_keys: Sequence[str] | None,
    continuous_covariate_keys: Sequence[str] | None,
    size_factor_key: str | None,
    batch_key: str | None = None,
    continuous_strata: int = 1,
) -> None:
    """Check everything that ``setup_anndata`` is about to register.

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
        With the column, level, gene or count that is at fault.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"adata has {adata.n_obs} cells and {adata.n_vars} genes: nothing to learn from."
        )
    _check_unique(adata.var_names, "gene", "var_names_make_unique")
    _check_unique(adata.obs_names, "cell", "obs_names_make_unique")
    _check_lists(categorical_covariate_keys, continuous_covariate_keys)
    read_arms(adata, treatment_keys)
    CovariateField(categorical_covariate_keys).validate_field(adata)
    batch = [] if batch_key is None else [batch_key]
    CovariateField(batch, registry_key=BATCH_KEY).validate_field(adata)
    _check_repeated(
        treatment_keys.key,
        [*(categorical_covariate_keys or []), *batch],
        continuous_covariate_keys,
    )
    if int(continuous_strata) != continuous_strata or continuous_strata < 1:
        raise ValueError(f"continuous_strata={continuous_strata} must be a whole number from 1.")
    for key in continuous_covariate_keys or []:
        _check_numeric(adata, key, "continuous_covariate_keys", positive=False)
    if size_factor_key is not None:
        _check_numeric(adata, size_factor_key, "size_factor_key", positive=True)
    _check_finite(get_matrix(adata, layer), adata, layer)


def _check_unique(names: pd.Index, kind: str, cure: str) -> None:
    if not names.is_unique:
        first = names[names.duplicated()][0]
        raise ValueError(
            f"{kind} names are not unique: {first!r} occurs more than once. Results are aligned "
            f"by name, so they would land on the wrong {kind}; call adata.{cure}()."
        )


def _check_lists(*groups: Sequence[str] | None) -> None:
    for group in groups:
        if isinstance(group, str):
            raise TypeError(f"Covariate keys must be a list of columns; got the string {group!r}.")


def _check_repeated(
    treatment_key: str, categorical: Sequence[str] | None, continuous: Sequence[str] | None
) -> None:
    given = [treatment_key, *(categorical or []), *(continuous or [])]
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
    bad = ~np.isfinite(values) | (positive & ~(values > 0))
    if bad.any():
        need = "positive numbers" if positive else "finite numbers"
        raise ValueError(
            f"obs[{key!r}] (argument {argument}) must hold {need}; {int(bad.sum())} cells do not "
            f"(first: {adata.obs_names[int(np.argmax(bad))]!r})."
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


def validate_expression(adata: AnnData, layer: str | None, is_count: bool) -> None:
    """Check expression against the likelihood's support.

    Parameters
    ----------
    adata, layer
        Where expression lies.
    is_count
        Whether the likelihood is one of counts.

    Raises
    ------
    ValueError
        If a count likelihood meets negative or fractional values, naming cell and gene.
    """
    row, integral = 0, True
    cell_totals, gene_totals = [], np.zeros(adata.n_vars)
    matrix = get_matrix(adata, layer)
    for block in iterate_rows(matrix):
        values = np.asarray(block.data if sparse.issparse(block) else block)
        fractional = (values < 0) | (values != np.rint(values))
        integral = integral and not fractional.any()
        if is_count and fractional.any():
            dense = block.toarray() if sparse.issparse(block) else np.asarray(block)
            bad = (dense < 0) | (dense != np.rint(dense))
            cell, gene = (int(i[0]) for i in np.nonzero(bad))
            raise ValueError(
                f"{_where(layer)} is not counts: cell {adata.obs_names[row + cell]!r}, gene "
                f"{adata.var_names[gene]!r} is {dense[cell, gene]:g}. A count likelihood is "
                "meaningless there; pass the layer of raw counts to setup_anndata, or use "
                "likelihood='normal' for log-normalised data."
            )
        cell_totals.append(np.asarray(np.abs(block).sum(axis=1)).ravel())
        gene_totals += np.asarray(np.abs(block).sum(axis=0)).ravel()
        row += block.shape[0]
    if not is_count and integral:
        warnings.warn(
            f"{_where(layer)} holds whole numbers, but likelihood='normal' is meant for "
            "log-normalised data. Use likelihood='nb' for counts.",
            UserWarning,
            stacklevel=3,
        )
    if is_count:
        _warn_empty(np.concatenate(cell_totals), gene_totals, adata)


def _warn_empty(cell_totals: np.ndarray, gene_totals: np.ndarray, adata: AnnData) -> None:
    for totals, names, kind in (
        (cell_totals, adata.obs_names, "cells"),
        (gene_totals, adata.var_names, "genes"),
    ):
        if (totals == 0).any():
            first = names[int(np.argmax(totals == 0))]
            warnings.warn(
                f"{int((totals == 0).sum())} {kind} have no counts at all (first: {first!r}). "
                "They carry no information and are predicted as zero; consider filtering them.",
                UserWarning,
                stacklevel=4,
            )


def _where(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def pair_counts(treatment: np.ndarray, stratum: np.ndarray, n_t: int, n_s: int) -> np.ndarray:
    """Count the cells of each (stratum, treatment).

    Parameters
    ----------
    treatment, stratum
        Codes, shape ``(n_cells,)``; cells of unknown strata (−1) are not counted.
    n_t, n_s
        Numbers of treatments and of strata.

    Returns
    -------
    Shape ``(n_strata, n_treatments)``.
    """
    known = stratum >= 0
    flat = stratum[known] * n_t + treatment[known]
    return np.bincount(flat, minlength=n_s * n_t).reshape(n_s, n_t)


def check_pairs(counts: np.ndarray, treatments: Sequence[str], strata: Sequence[str]) -> None:
    """Refuse strata without control; list pairs that were never measured in a warning.

    Parameters
    ----------
    counts
        Cells of each (stratum, treatment), the control first.
    treatments, strata
        Their names.

    Raises
    ------
    ValueError
        If a stratum has no control cell. The control has index 0.
    """
    without = [strata[int(i)] for i in np.flatnonzero(counts[:, 0] == 0)]
    if without:
        raise ValueError(
            f"Strata without a single {treatments[0]!r} cell: {without}. An effect there has no "
            "baseline to be measured from, so predictions would rest on other strata alone. Drop "
            "these cells, or use coarser covariates that put them beside controls."
        )
    missing = np.argwhere(counts == 0)
    missing = missing[missing[:, 1] != 0]
    if len(missing):
        listed = [f"({treatments[t]}, {strata[x]})" for x, t in missing[:20]]
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        warnings.warn(
            f"{len(missing)} (treatment, stratum) pairs have no cells: {', '.join(listed)}{more}. "
            "Their counterfactuals are extrapolated from the other strata.",
            UserWarning,
            stacklevel=3,
        )
