"""Cells of an AnnData as the arrays that effects are estimated from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvci.data import as_labels, missing_key_message
from scvci.effects import estimate_effects, leakage_test

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvci.data import CellReader

#: Counts per cell after normalisation.
TARGET_SUM = 1e4
#: Cells that are read at a time.
_CHUNK = 4096


@dataclass(frozen=True)
class Study:
    """Outcomes, labels and names.

    Attributes
    ----------
    reader
        The cells.
    outcomes
        Normalised counts (or log-normalised data), shape ``(n_cells, n_genes)``, sparse if the
        counts are.
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
    outcomes: Any
    stratum: np.ndarray
    treatments: Sequence[str]
    strata: Sequence[str]
    genes: Sequence[str]
    is_count: bool
    scale: str
    groups: np.ndarray | None = None
    group_names: list[str] | None = None
    clusters: np.ndarray | None = None

    @classmethod
    def from_reader(
        cls,
        reader: CellReader,
        stratum: np.ndarray,
        treatments: Sequence[str],
        strata: Sequence[str],
        genes: Sequence[str],
        is_count: bool,
        scale: str,
    ) -> Study:
        """Read and normalise all cells.

        Parameters
        ----------
        reader
            The cells.
        stratum, treatments, strata, genes, is_count, scale
            See the attributes.
        """
        study = cls(reader, None, stratum, treatments, strata, genes, is_count, scale)
        blocks = []
        for start in range(0, reader.adata.n_obs, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, reader.adata.n_obs))
            block = reader.matrix[rows]
            block = block if reader.columns is None else block[:, reader.columns]
            blocks.append(study.normalise(block, rows) if is_count else block)
        if not sparse.issparse(blocks[0]):
            return replace(study, outcomes=np.concatenate(blocks))
        return replace(study, outcomes=sparse.vstack(blocks, format="csr"))

    def labelled(self, groupby: str | None, cluster_key: str | None) -> Study:
        """Add groups and clusters from columns of ``obs``.

        Parameters
        ----------
        groupby, cluster_key
            Names of the columns, or ``None``.
        """
        groups, names = self._column(groupby, "groupby")
        clusters, _ = self._column(cluster_key, "cluster_key")
        return replace(self, groups=groups, group_names=names, clusters=clusters)

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
        return estimate_effects(
            self.outcomes,
            targets=targets,
            reference=reference,
            estimator=estimator,  # type: ignore[arg-type]  # checked there, with a message
            predictions=None if predict is None else self._by_code(predict),
            # Log-normalised data are taken as they are.
            scale=self.scale if self.is_count else "counts",  # type: ignore[arg-type]
            **self._design(),
            **options,
        )

    def test_leakage(
        self, targets: list[str], predict: Callable[[str], np.ndarray]
    ) -> pd.DataFrame:
        """Test leakage, see :func:`scvci.effects.leakage_test`.

        Parameters
        ----------
        targets, predict
            See :meth:`estimate`.
        """
        design = self._design()
        del design["groups"], design["group_names"]
        # Predictions are whole matrices, made once for each treatment.
        return leakage_test(
            self._by_code(predict),
            targets=targets,
            chunk_size=len(self.genes),
            **design,
        )

    def _design(self) -> dict[str, Any]:
        return {
            "treatment": self.reader.treatment,
            "stratum": self.stratum,
            "treatments": self.treatments,
            "strata": self.strata,
            "genes": self.genes,
            "groups": self.groups,
            "group_names": self.group_names,
            "clusters": self.clusters,
        }

    def _by_code(self, predict: Callable[[str], np.ndarray]) -> Callable[[int, slice], np.ndarray]:
        return lambda code, genes: predict(self.treatments[code])[:, genes]

    def _column(self, key: str | None, argument: str) -> tuple[Any, Any]:
        """Codes and names of the levels of a column of ``obs``."""
        if key is None:
            return None, None
        obs = self.reader.adata.obs
        if key not in obs:
            raise KeyError(missing_key_message(self.reader.adata, key, argument))
        codes, names = pd.factorize(as_labels(obs[key], key), sort=True)
        return codes.astype(np.int64), names.tolist()
