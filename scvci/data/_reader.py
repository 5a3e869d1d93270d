"""Read any AnnData by names: cells in chunks, genes in the model's order, registered codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from . import _constants as keys
from ._fields import (
    TreatmentField,
    encode_covariates,
    encode_treatments,
    stratum_codes,
)
from ._names import missing_key_message
from ._validation import get_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


@dataclass(frozen=True)
class CellReader:
    """Cells of an AnnData as the module's tensors.

    Nothing is written to the AnnData; views, backed files and reordered genes are read as they
    are.

    Attributes
    ----------
    adata
        Source of the cells.
    matrix
        Its registered expression.
    columns
        Position of each of the model's genes, or ``None`` where the order is the model's.
    treatment, covariates, stratum
        Codes of all rows.
    continuous, size_factor
        Values of all rows, or ``None``.
    batch
        Codes of the technical batches of all rows, or ``None``.
    """

    adata: AnnData
    matrix: Any
    columns: np.ndarray | None
    treatment: np.ndarray
    covariates: np.ndarray
    stratum: np.ndarray
    continuous: np.ndarray | None
    size_factor: np.ndarray | None
    batch: np.ndarray | None = None

    @classmethod
    def from_registry(cls, adata: AnnData, registry: dict, genes: np.ndarray) -> CellReader:
        """Look up everything that a trained model needs in ``adata``.

        Parameters
        ----------
        adata
            Cells to read.
        registry
            The model's registry.
        genes
            The model's genes in order.

        Raises
        ------
        KeyError, ValueError
            With the column, gene, treatment or level that is missing or unknown.
        """
        states = {k: v["state_registry"] for k, v in registry["field_registries"].items()}
        setup = registry["setup_args"]
        codes = encode_covariates(adata, states[keys.COVARIATES_KEY])
        continuous = setup["continuous_covariate_keys"]
        size_factor = setup["size_factor_key"]
        return cls(
            adata=adata,
            matrix=get_matrix(adata, setup["layer"]),
            columns=gene_columns(adata.var_names, genes),
            treatment=encode_treatments(adata, states[keys.TREATMENT_KEY]),
            covariates=codes,
            stratum=stratum_codes(codes, states[keys.COVARIATES_KEY]),
            continuous=_numeric(adata, continuous) if continuous else None,
            size_factor=_numeric(adata, [size_factor])[:, 0] if size_factor else None,
            batch=(
                encode_covariates(adata, states[keys.BATCH_KEY])[:, 0]
                if keys.BATCH_KEY in states
                else None
            ),
        )

    def expression(self, rows: np.ndarray) -> np.ndarray:
        """Dense expression of ascending rows in the model's gene order, float32."""
        block = self.matrix[rows]
        dense = block.toarray() if sparse.issparse(block) else np.asarray(block)
        dense = dense.astype(np.float32, copy=False)
        return dense if self.columns is None else dense[:, self.columns]

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of ascending rows, under the names that the module reads."""
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
        self, indices: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Yield rows and tensors; rows come in ascending order whatever the order asked for."""
        indices = np.sort(indices)
        for start in range(0, len(indices), batch_size):
            rows = indices[start : start + batch_size]
            yield rows, self.tensors(rows)


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
    """Turn a choice of cells into unique ascending rows.

    Parameters
    ----------
    adata
        The cells.
    indices
        Boolean mask, cell names, integers (negative ones count from the end), or ``None`` for all.

    Raises
    ------
    IndexError, KeyError
        If an index lies outside ``adata`` or a cell name is unknown.
    """
    if indices is None:
        return np.arange(adata.n_obs)
    indices = np.asarray(indices)
    if indices.dtype == bool:
        if len(indices) != adata.n_obs:
            raise IndexError(f"Mask of {len(indices)} values for {adata.n_obs} cells.")
        return np.flatnonzero(indices)
    if indices.size and indices.dtype.kind in "OUT":
        rows = adata.obs_names.get_indexer(pd.Index(indices))
        if (rows < 0).any():
            raise KeyError(
                f"Cell {indices[int(np.argmax(rows < 0))]!r} is not in adata.obs_names."
            )
        return np.unique(rows)
    rows = indices.astype(np.int64)
    outside = (rows < -adata.n_obs) | (rows >= adata.n_obs)
    if outside.any():
        raise IndexError(f"Index {rows[outside][0]} lies outside {adata.n_obs} cells.")
    return np.unique(np.where(rows < 0, rows + adata.n_obs, rows))


def _numeric(adata: AnnData, columns: list[str]) -> np.ndarray:
    for key in columns:
        if key not in adata.obs:
            raise KeyError(missing_key_message(adata, key, "setup"))
    values = adata.obs[columns].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"obs columns {columns} hold missing or infinite values.")
    return values


def control_index(state: dict) -> int:
    """Index of the control among the treatments.

    Parameters
    ----------
    state
        State registry of the treatment field.
    """
    return state[TreatmentField.STATE_NAMES].index(state[TreatmentField.STATE_CONTROL])
