"""Cells of an AnnData as the arrays that effects are estimated from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvci.data import as_labels, missing_key_message
from scvci.effects import (
    cross_validated_propensity,
    estimate_effects,
    leakage_test,
    propensity_strata,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scvci.data import CellReader

#: Counts per cell after normalisation.
TARGET_SUM = 1e4
#: Cells that are read at a time.
_CHUNK = 4096


@dataclass(frozen=True)
class Study:
    """Labels and names of cells, and their outcomes, which are read when they are needed.

    Attributes
    ----------
    reader
        The cells.
    stratum
        Code of each cell.
    treatments, strata, genes
        Names.
    is_count
        Whether outcomes come from counts.
    scale
        Scale of effects, see :func:`scvci.effects.estimate_effects`.
    groups, group_names
        Code of each cell's reported group and names of the groups; ``None`` for one group.
    clusters
        Code of each cell's cluster, or ``None``.
    """

    reader: CellReader
    stratum: np.ndarray
    treatments: Sequence[str]
    strata: Sequence[str]
    genes: Sequence[str]
    is_count: bool
    scale: str
    groups: np.ndarray | None
    group_names: list[str] | None
    clusters: np.ndarray | None

    @cached_property
    def outcomes(self) -> Any:
        """Normalised counts (or log-normalised data), ``(n_cells, n_genes)``, sparse as counts."""
        reader = self.reader
        blocks = []
        for start in range(0, reader.adata.n_obs, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, reader.adata.n_obs))
            block = reader.matrix[rows]
            block = block if reader.columns is None else block[:, reader.columns]
            blocks.append(self.normalise(block, rows) if self.is_count else block)
        if not sparse.issparse(blocks[0]):
            return np.concatenate(blocks)
        return sparse.vstack(blocks, format="csr")

    @cached_property
    def propensity(self) -> np.ndarray | None:
        """Probability of each treatment given stratum and continuous covariates.

        Shape ``(n_cells, n_treatments)``; ``None`` without such covariates.
        """
        if self.reader.continuous is None:
            return None
        shape = (len(self.strata), len(self.treatments))
        return cross_validated_propensity(
            self.reader.continuous, self.reader.treatment, self.stratum, shape
        )

    def normalise(self, counts: Any, rows: np.ndarray | slice = slice(None)) -> Any:
        """Scale counts to 10,000 per cell, or by the size factor.

        Parameters
        ----------
        counts
            Counts of the cells in ``rows``, sparse or dense.
        rows
            Rows; by default all.
        """
        if self.reader.size_factor is not None:
            factor = 1 / self.reader.size_factor[rows]
        else:
            total = np.asarray(counts.sum(axis=1), dtype=float).ravel()
            factor = TARGET_SUM / np.where(total > 0, total, 1)
        if sparse.issparse(counts):
            return sparse.csr_matrix(sparse.diags(factor) @ counts)
        return np.asarray(counts) * factor[:, None]

    def estimate(
        self,
        targets: list[str],
        reference: str,
        estimator: str | None = None,
        predict: Callable[[str], np.ndarray] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Estimate effects, see :func:`scvci.effects.estimate_effects`.

        Parameters
        ----------
        targets, reference, estimator, **options
            Passed on.
        predict
            Predictions of all cells under a treatment, by its name.
        """
        calls: list[tuple[list[str], tuple[np.ndarray, Sequence[str]]]]
        propensity = self.propensity
        if propensity is not None:
            # Cells are compared with cells of like propensity, which depends on the target.
            calls = [([t], self._bins(propensity, t, reference)) for t in targets]
        else:
            calls = [(targets, (self.stratum, self.strata))]
        tables = [
            estimate_effects(
                self.outcomes,
                targets=names,
                reference=reference,
                estimator=estimator,  # type: ignore[arg-type]  # checked there, with a message
                predictions=None if predict is None else self._by_code(predict),
                # Log-normalised data are taken as they are.
                scale=self.scale if self.is_count else "counts",  # type: ignore[arg-type]
                groups=self.groups,
                group_names=self.group_names,
                **self._design(*strata),
                **options,
            )
            for names, strata in calls
        ]
        return pd.concat(tables, ignore_index=True)

    def _bins(
        self, propensity: np.ndarray, target: str, reference: str
    ) -> tuple[np.ndarray, list[str]]:
        """Strata cut into bins of cells with like probability of the target, not the reference."""
        known = list(self.treatments)
        of_target, of_reference = (propensity[:, known.index(t)] for t in (target, reference))
        with np.errstate(invalid="ignore"):
            share = of_target / (of_target + of_reference)
        return propensity_strata(share, self.stratum, self.strata)

    def test_leakage(
        self, targets: list[str], predict: Callable[[str], np.ndarray]
    ) -> pd.DataFrame:
        """Test leakage, see :func:`scvci.effects.leakage_test`.

        Parameters
        ----------
        targets, predict
            See :meth:`estimate`.
        """
        # Predictions are whole matrices, made once for each treatment.
        return leakage_test(
            self._by_code(predict),
            targets=targets,
            chunk_size=len(self.genes),
            **self._design(self.stratum, self.strata),
        )

    def _design(self, stratum: np.ndarray, strata: Sequence[str]) -> dict[str, Any]:
        return {
            "treatment": self.reader.treatment,
            "stratum": stratum,
            "treatments": self.treatments,
            "strata": strata,
            "genes": self.genes,
            "clusters": self.clusters,
        }

    def _by_code(self, predict: Callable[[str], np.ndarray]) -> Callable[[int, slice], np.ndarray]:
        return lambda code, genes: predict(self.treatments[code])[:, genes]


def column_codes(adata: AnnData, key: str | None, argument: str) -> tuple[Any, Any]:
    """Codes and names of the levels of a column of ``obs``; ``None`` twice without a column.

    Parameters
    ----------
    adata
        The cells.
    key
        Name of the column.
    argument
        Argument that named it, for the message.
    """
    if key is None:
        return None, None
    if key not in adata.obs:
        raise KeyError(missing_key_message(adata, key, argument))
    codes, names = pd.factorize(as_labels(adata.obs[key], key), sort=True)
    return codes.astype(np.int64), names.tolist()
