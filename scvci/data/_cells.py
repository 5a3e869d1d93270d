"""The table of cells: codes, names and lazy expression, read by the names of a registry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from scvci._numbers import LARGEST, whole_number

from . import _constants as keys
from ._fields import (
    check_treatments,
    encode_covariates,
    encode_treatments,
    stratum_codes,
    stratum_names,
)
from ._labels import missing_key_message
from ._treatments import Treatments
from ._validation import check_expression, get_matrix, is_integral

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of an AnnData as a model reads them: training, prediction and analyses alike.

    Nothing is written to the AnnData; views, backed files and reordered genes are read as they
    are. Codes are those of all cells of the AnnData; ``rows`` are the cells in question, in the
    order asked for, and only these have to be readable.

    Attributes
    ----------
    adata
        Source of the cells.
    rows
        The cells in question, shape ``(n_rows,)``.
    treatments
        The arms.
    genes
        Names of the genes, in the model's order.
    matrix
        Registered expression.
    columns
        Position of each of the model's genes, or ``None`` where the order is the model's.
    treatment, stratum
        Codes, shape ``(n_obs,)``; negative where unknown.
    covariates
        Codes, shape ``(n_obs, n_covariates)``.
    strata
        Names of the strata, by code.
    continuous, size_factor
        Values, or ``None``.
    batch
        Codes of the technical batches, or ``None``.
    layer
        Where expression lies; ``None`` for ``X``.
    """

    adata: AnnData
    rows: np.ndarray
    treatments: Treatments
    genes: np.ndarray
    matrix: Any
    columns: np.ndarray | None
    treatment: np.ndarray
    stratum: np.ndarray
    covariates: np.ndarray
    strata: list[str]
    continuous: np.ndarray | None = None
    size_factor: np.ndarray | None = None
    batch: np.ndarray | None = None
    layer: str | None = None
    covariate_state: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_registry(
        cls,
        adata: AnnData,
        registry: dict[str, Any],
        indices: Any = None,
        treatments: Treatments | None = None,
    ) -> Cells:
        """Look up everything that a model needs.

        Parameters
        ----------
        adata
            Cells to read.
        registry
            Registry of a model or of a registered AnnData.
        indices
            Rows, mask or names of the cells in question; ``None`` for all.
        treatments
            The registry's arms, if they have been read already.

        Raises
        ------
        KeyError, ValueError
            With the column, gene, treatment or level that is missing or unknown among the cells
            in question.
        """
        states = {k: v["state_registry"] for k, v in registry["field_registries"].items()}
        setup = registry["setup_args"]
        if treatments is None:
            treatments = Treatments.from_state(states[keys.TREATMENT_KEY])
        genes = np.asarray(states[REGISTRY_KEYS.X_KEY]["column_names"], dtype=object)
        matrix = get_matrix(adata, setup["layer"])
        columns = gene_columns(adata.var_names, genes)
        rows = resolve_indices(adata, indices)
        judged = None if indices is None else rows
        treatment, unknown = encode_treatments(adata, treatments, judged)
        check_treatments(treatment[rows], unknown, treatments)
        state = states[keys.COVARIATES_KEY]
        covariates = encode_covariates(adata, state, judged)
        batch = None
        if keys.BATCH_KEY in states:
            of_batch = states[keys.BATCH_KEY]
            batch = encode_covariates(adata, of_batch, judged, keys.BATCH_KEY)[:, 0]
        continuous, size_factor = setup["continuous_covariate_keys"], setup["size_factor_key"]
        return cls(
            adata=adata,
            rows=rows,
            treatments=treatments,
            genes=genes,
            matrix=matrix,
            columns=columns,
            treatment=np.maximum(treatment, -1),
            stratum=stratum_codes(covariates, state),
            covariates=covariates,
            strata=stratum_names(state),
            continuous=_numeric(adata, list(continuous), judged) if continuous else None,
            size_factor=_positive(adata, size_factor, judged) if size_factor else None,
            batch=batch,
            layer=setup["layer"],
            covariate_state=state,
        )

    # -- sizes and names ------------------------------------------------------------------------

    @property
    def n_obs(self) -> int:
        """Cells of the AnnData."""
        return self.adata.n_obs

    @property
    def n_treatments(self) -> int:
        """Arms, the control included."""
        return len(self.treatments)

    @property
    def n_strata(self) -> int:
        """Strata."""
        return len(self.strata)

    @property
    def names(self) -> pd.Index:
        """Names of all cells of the AnnData."""
        return self.adata.obs_names

    @property
    def group(self) -> np.ndarray:
        """Code of each cell's (stratum, treatment), within which splits are drawn."""
        return self.stratum * self.n_treatments + self.treatment

    @cached_property
    def is_count(self) -> bool:
        """Whether expression is whole numbers."""
        return is_integral(self.matrix)

    def with_new_strata(self) -> Cells:
        """Append the combinations of levels that training did not see to the strata."""
        state = self.covariate_state
        missing = self.rows[self.stratum[self.rows] < 0]
        new = np.unique(self.covariates[missing], axis=0)
        if not len(new):
            return self
        state = {**state, "strata": [*state["strata"], *new.tolist()]}
        return replace(
            self,
            stratum=stratum_codes(self.covariates, state),
            strata=stratum_names(state),
            covariate_state=state,
        )

    def take(self, rows: np.ndarray) -> Cells:
        """Put other cells in question.

        Parameters
        ----------
        rows
            Rows of the AnnData.
        """
        return replace(self, rows=np.asarray(rows, dtype=np.int64))

    # -- expression -----------------------------------------------------------------------------

    def block(self, rows: np.ndarray) -> Any:
        """Expression of rows in any order, with the model's genes; sparse if it is stored so."""
        order = None
        if not _increasing(rows):
            # Files on disk return rows in ascending order, each once.
            rows, order = np.unique(rows, return_inverse=True)
        block = self.matrix[rows]
        block = block if sparse.issparse(block) else np.asarray(block)
        if block.dtype == np.float16:
            block = block.astype(np.float32)
        block = block if self.columns is None else block[:, self.columns]
        return block if order is None else block[order.ravel()]

    def expression(self, rows: np.ndarray) -> np.ndarray:
        """Dense expression of rows in the model's gene order, float32."""
        block = self.block(rows)
        dense = block.toarray() if sparse.issparse(block) else block
        return dense.astype(np.float32, copy=False)

    def counts(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Expression of rows as sparse matrix in double precision, to add up."""
        return sparse.csr_matrix(self.block(rows), dtype=np.float64)

    def size(self, rows: np.ndarray, block: Any) -> np.ndarray:
        """Library size or registered size factor of rows whose expression is ``block``."""
        if self.size_factor is not None:
            return self.size_factor[rows]
        return np.asarray(block.sum(axis=1), dtype=float).ravel()

    def totals(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Sum of the registered genes of each cell, its library size if they are counts.

        Parameters
        ----------
        rows
            Rows of the AnnData, by default all.
        """
        rows = np.arange(self.n_obs) if rows is None else np.asarray(rows)
        parts = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
        sums = [np.asarray(self.block(part).sum(axis=1), dtype=float).ravel() for part in parts]
        return np.concatenate([*sums, np.zeros(0)])

    def check_expression(self, is_count: bool) -> None:
        """Check the expression of the cells in question.

        Parameters
        ----------
        is_count
            Whether it has to be counts, or else log-normalised.

        Raises
        ------
        ValueError
            With the cell and gene at fault.
        """
        ordered = np.unique(self.rows)
        blocks = (
            (rows, self.block(rows))
            for rows in (ordered[i : i + _CHUNK] for i in range(0, len(ordered), _CHUNK))
        )
        check_expression(blocks, self.names, self.genes, self.adata, self.layer, is_count)

    # -- tensors --------------------------------------------------------------------------------

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of rows, under the names that the module reads."""
        arrays = {
            REGISTRY_KEYS.X_KEY: self.expression(rows),
            keys.TREATMENT_KEY: self.treatment[rows, None],
            keys.COVARIATES_KEY: self.covariates[rows],
            keys.STRATUM_KEY: self.stratum[rows, None],
        }
        if self.continuous is not None:
            arrays[keys.CONTINUOUS_KEY] = self.continuous[rows].astype(np.float32)
        if self.batch is not None:
            arrays[keys.BATCH_KEY] = self.batch[rows, None]
        if self.size_factor is not None:
            arrays[keys.SIZE_FACTOR_KEY] = self.size_factor[rows, None].astype(np.float32)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    def batches(
        self, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Yield rows and tensors, in the order of ``rows`` (by default those in question)."""
        for part in in_batches(self.rows if rows is None else rows, batch_size):
            yield part, self.tensors(part)


def in_batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield consecutive parts of rows.

    Parameters
    ----------
    rows
        The rows.
    batch_size
        Largest size of a part.

    Raises
    ------
    ValueError
        If the size is not positive.
    """
    whole_number("batch_size", batch_size)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _increasing(rows: np.ndarray) -> bool:
    return len(rows) < 2 or bool((np.diff(rows) > 0).all())


def gene_columns(found: pd.Index, genes: np.ndarray) -> np.ndarray | None:
    """Position of the model's genes in ``found``; ``None`` where the order is the same.

    Raises
    ------
    ValueError
        If genes are missing or their names are not unique.
    """
    if len(found) == len(genes) and (found.to_numpy() == genes).all():
        return None
    if not found.is_unique:
        first = found[found.duplicated()][0]
        raise ValueError(
            f"Gene {first!r} occurs more than once; call adata.var_names_make_unique()."
        )
    columns = found.get_indexer(pd.Index(genes))
    if (columns < 0).any():
        missing = [str(gene) for gene in np.asarray(genes)[columns < 0]]
        listed = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise ValueError(
            f"adata lacks {len(missing)} of the model's {len(genes)} genes: {listed}. A missing "
            "gene is not a zero count; add the measured values or train on the shared genes."
        )
    return columns


def resolve_indices(adata: AnnData, indices: Any) -> np.ndarray:
    """Turn a choice of cells into rows; order and repetitions are kept.

    Parameters
    ----------
    adata
        The cells.
    indices
        Boolean mask, cell names, integers (negative ones count from the end), or ``None`` for all.

    Raises
    ------
    IndexError, KeyError, TypeError, ValueError
        If an index lies outside ``adata``, a cell name is unknown or not unique, or ``indices``
        have no order or more than one dimension.
    """
    if indices is None:
        return np.arange(adata.n_obs)
    if isinstance(indices, slice):
        return np.arange(adata.n_obs)[indices]
    if isinstance(indices, set | frozenset):
        raise TypeError("indices= is a set, which has no order; pass a list.")
    indices = np.atleast_1d(np.asarray(indices))
    if indices.ndim > 1:
        raise IndexError(f"indices of shape {indices.shape} must have one dimension.")
    if indices.dtype == object and pd.api.types.infer_dtype(indices) in ("boolean", "integer"):
        indices = indices.astype(type(indices[0]))
    if indices.dtype == bool:
        if len(indices) != adata.n_obs:
            raise IndexError(f"Mask of {len(indices)} values for {adata.n_obs} cells.")
        return np.flatnonzero(indices)
    if indices.size and indices.dtype.kind in "OUT":
        if not adata.obs_names.is_unique:
            raise ValueError(
                "Cell names are not unique, so indices= cannot name cells; call "
                "adata.obs_names_make_unique(), or pass rows."
            )
        rows = adata.obs_names.get_indexer(pd.Index(indices))
        if (rows < 0).any():
            raise KeyError(
                f"Cell {str(indices[int(np.argmax(rows < 0))])!r} is not in adata.obs_names."
            )
        return rows.astype(np.int64)
    rows = indices.astype(np.int64)
    if (rows != indices).any():
        raise IndexError(f"Index {indices[rows != indices][0]} is not a whole number.")
    outside = (rows < -adata.n_obs) | (rows >= adata.n_obs)
    if outside.any():
        raise IndexError(f"Index {rows[outside][0]} lies outside {adata.n_obs} cells.")
    return np.where(rows < 0, rows + adata.n_obs, rows)


def _numeric(adata: AnnData, columns: list[str], rows: np.ndarray | None) -> np.ndarray:
    for key in columns:
        if key not in adata.obs:
            cure = "The model reads it from the cells; add the column."
            raise KeyError(missing_key_message(adata, key, "setup_anndata", cure))
    values = adata.obs[columns].to_numpy(dtype=float, na_value=np.nan)
    judged = np.arange(len(values)) if rows is None else rows
    wrong = np.argwhere(~(np.abs(values[judged]) <= LARGEST))
    if len(wrong):
        cell, column = judged[wrong[0, 0]], wrong[0, 1]
        raise ValueError(
            f"obs[{columns[column]!r}] must hold finite numbers of at most {LARGEST:g}; that of "
            f"cell {str(adata.obs_names[cell])!r} is {values[cell, column]:g}."
        )
    return values


def _positive(adata: AnnData, column: str, rows: np.ndarray | None) -> np.ndarray:
    """Read size factors, which divide counts."""
    values = _numeric(adata, [column], rows)[:, 0]
    judged = np.arange(len(values)) if rows is None else rows
    wrong = judged[values[judged] < 1 / LARGEST]
    if len(wrong):
        raise ValueError(
            f"Size factors in obs[{column!r}] must be positive, from {1 / LARGEST:g}; that of "
            f"cell {str(adata.obs_names[wrong[0]])!r} is {values[wrong[0]]:g}."
        )
    return values
