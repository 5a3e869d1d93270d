"""What effects are estimated from: cells, their outcomes on a scale, groups and clusters."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scvci.data import Cells
from scvci.data._labels import missing_key_message, read_labels
from scvci.effects import (
    cross_validated_propensity,
    estimate_effects,
    leakage_test,
    propensity_strata,
)
from scvci.model import VCI

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    Predict = Callable[[str], np.ndarray]
    Scale = Literal["lfc", "log1p", "counts"]
    Normalisation = Literal["ratios", "given"]

#: Counts per cell after normalisation.
TARGET_SUM = 1e4
#: Cells that are read at a time.
_CHUNK = 4096
#: Words in names of columns whose labels are usually not independent cells.
_CLUSTER_WORDS = frozenset(
    "animal donor embryo guide individual mouse patient replicate sample subject well".split()
)


def read_cells(adata: AnnData, model: VCI | None = None, indices: Any = None) -> Cells:
    """Read a registered AnnData, or any that a model can read, and check its expression.

    Strata that training did not see are appended to the others.

    Parameters
    ----------
    adata
        The cells.
    model
        Whose registry to read by; by default the one that ``adata`` was set up with.
    indices
        Rows, mask or names of the cells in question.

    Raises
    ------
    KeyError, ValueError
        If ``adata`` was not set up, or with the column, gene, label or value at fault.
    """
    if model is not None:
        return model.cells(adata, indices).with_new_strata()
    cells = Cells.from_registry(adata, VCI.registry_of(adata), indices)
    # Whole numbers are counts; anything else has to be log-normalised.
    cells.check_expression(cells.is_count)
    return cells.with_new_strata()


@dataclass(frozen=True, eq=False)
class Comparison:
    """Cells, the scale of their outcomes, and how they are grouped.

    Attributes
    ----------
    cells
        The cells, all of them in question.
    is_count
        Whether outcomes come from counts.
    scale
        Scale of effects, see :func:`scvci.effects.estimate_effects`.
    groups, group_names
        Code of each cell's reported group and names of the groups; ``None`` for one group.
    clusters
        Code of each cell's cluster, or ``None``.
    """

    cells: Cells
    is_count: bool
    scale: Scale
    groups: np.ndarray | None = None
    group_names: list[str] | None = None
    clusters: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        adata: AnnData,
        setup_args: Mapping[str, Any],
        *,
        model: VCI | None = None,
        scale: Scale | None = None,
        groupby: str | None = None,
        cluster_key: str | None = None,
    ) -> Comparison:
        """Read cells and the columns that group them.

        Parameters
        ----------
        adata
            The cells.
        setup_args
            Arguments of ``setup_anndata``.
        model
            See :func:`read_cells`.
        scale
            Scale of effects; ``None`` for ``"lfc"`` of counts and ``"log1p"`` of log-normalised
            expression.
        groupby, cluster_key
            Columns of ``obs``.

        Raises
        ------
        KeyError, ValueError
            If a column is missing, or the scale makes no sense for the data.

        Warns
        -----
        UserWarning
            If ``obs`` has a column that looks like clusters and none is given.
        """
        cells = read_cells(adata, model)
        is_count = cells.is_count if model is None else model.is_count
        scale = scale or ("lfc" if is_count else "log1p")
        if not is_count and scale != "log1p":
            raise ValueError(
                f"scale={scale!r} needs counts, but the registered expression is log-normalised; "
                "use scale='log1p'."
            )
        if cluster_key is None:
            warn_about_clusters(
                adata, setup_args, "each cell counts as a replicate, and errors are too small"
            )
        groups, group_names = column_codes(adata, groupby, "groupby")
        clusters, _ = column_codes(adata, cluster_key, "cluster_key")
        return cls(cells, is_count, scale, groups, group_names, clusters)

    @property
    def treatments(self) -> Sequence[str]:
        """Names of the arms."""
        return self.cells.treatments.names

    @cached_property
    def outcomes(self) -> Any:
        """Normalised counts (or log-normalised data), ``(n_cells, n_genes)``, sparse as counts."""
        n = self.cells.n_obs
        blocks = []
        for start in range(0, n, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, n))
            block = self.cells.block(rows)
            blocks.append(self.normalise(block, rows) if self.is_count else block)
        if not sparse.issparse(blocks[0]):
            return np.concatenate(blocks)
        return sparse.vstack(blocks, format="csr")

    @cached_property
    def depth(self) -> np.ndarray | None:
        """Counts of each cell; ``None`` for log-normalised data."""
        return self.cells.totals() if self.is_count else None

    @cached_property
    def propensity(self) -> np.ndarray | None:
        """Probability of each treatment given stratum and continuous covariates.

        Shape ``(n_cells, n_treatments)``; ``None`` without such covariates.
        """
        cells = self.cells
        if cells.continuous is None:
            return None
        shape = (cells.n_strata, cells.n_treatments)
        return cross_validated_propensity(cells.continuous, cells.treatment, cells.stratum, shape)

    def normalise(self, counts: Any, rows: np.ndarray | slice = slice(None)) -> Any:
        """Scale counts to 10,000 per cell, or by the size factor.

        Parameters
        ----------
        counts
            Counts of the cells in ``rows``, sparse or dense.
        rows
            Rows; by default all.
        """
        if self.cells.size_factor is not None:
            factor = 1 / self.cells.size_factor[rows]
        else:
            total = np.asarray(counts.sum(axis=1), dtype=float).ravel()
            factor = TARGET_SUM / np.where(total > 0, total, 1)
        if sparse.issparse(counts):
            return sparse.csr_matrix(sparse.diags(factor) @ counts)
        return np.asarray(counts) * factor[:, None]

    @property
    def target_size(self) -> float:
        """Library size or size factor that cells are normalised to."""
        return TARGET_SUM if self.cells.size_factor is None else 1.0

    def estimate(
        self,
        targets: list[str],
        reference: str,
        estimator: Literal["observed", "robust", "plugin"] | None = None,
        predict: Predict | None = None,
        normalisation: Normalisation = "ratios",
        **options: Any,
    ) -> pd.DataFrame:
        """Estimate effects, see :func:`scvci.effects.estimate_effects`.

        Parameters
        ----------
        targets, reference, estimator, normalisation, **options
            Passed on; log-normalised data are taken as they are.
        predict
            Predictions of all cells under a treatment, by its name.
        """
        calls: list[tuple[list[str], tuple[np.ndarray, Sequence[str]]]]
        if self.propensity is not None:
            # Cells are compared with cells of like propensity, which depends on the target.
            calls = [([t], self._bins(t, reference)) for t in targets]
        else:
            calls = [(targets, (self.cells.stratum, self.cells.strata))]
        tables = [
            estimate_effects(
                self.outcomes,
                targets=names,
                reference=reference,
                estimator=estimator,
                predictions=None if predict is None else self._by_code(predict),
                scale=self.scale if self.is_count else "counts",
                normalisation=normalisation if self.is_count else "given",
                library_size=self.depth,
                batch=self.cells.batch,
                groups=self.groups,
                group_names=self.group_names,
                **self.design(*strata),
                **options,
            )
            for names, strata in calls
        ]
        return pd.concat(tables, ignore_index=True)

    def _bins(self, target: str, reference: str) -> tuple[np.ndarray, list[str]]:
        """Strata cut into bins of cells with like probability of the target, not the reference."""
        assert self.propensity is not None
        known = self.cells.treatments.name_index
        of_target, of_reference = (self.propensity[:, known[t]] for t in (target, reference))
        with np.errstate(invalid="ignore"):
            share = of_target / (of_target + of_reference)
        return propensity_strata(share, self.cells.stratum, self.cells.strata)

    def leakage(self, targets: list[str], predict: Predict) -> pd.DataFrame:
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
            chunk_size=len(self.cells.genes),
            **self.design(self.cells.stratum, self.cells.strata),
        )

    def design(self, stratum: np.ndarray, strata: Sequence[str]) -> dict[str, Any]:
        """Codes and names as the functions of :mod:`scvci.effects` take them.

        Parameters
        ----------
        stratum, strata
            Codes and names of what cells are compared within.
        """
        return {
            "treatment": self.cells.treatment,
            "stratum": stratum,
            "treatments": self.treatments,
            "strata": strata,
            "genes": self.cells.genes.tolist(),
            "clusters": self.clusters,
        }

    def _by_code(self, predict: Predict) -> Callable[[int, slice], np.ndarray]:
        return lambda code, genes: predict(self.treatments[code])[:, genes]


def column_codes(adata: AnnData, key: str | None, argument: str) -> tuple[Any, Any]:
    """Codes and sorted labels of a column of ``obs``; ``None`` twice without a column.

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
    codes, labels = read_labels(adata.obs[key], key)
    present = np.unique(codes)
    names, order = np.unique(np.array(labels, dtype=object)[present], return_inverse=True)
    lookup = np.full(len(labels), -1, dtype=np.int64)
    lookup[present] = order.ravel()
    return lookup[codes], names.tolist()


def warn_about_clusters(adata: AnnData, setup_args: Mapping[str, Any], meaning: str) -> None:
    """Warn of a column that looks like clusters of cells that are not independent.

    Parameters
    ----------
    adata
        The cells.
    setup_args
        Arguments of ``setup_anndata``; the treatment is no cluster, a covariate may be.
    meaning
        What it means to go on without ``cluster_key=``.
    """
    used = {setup_args["treatment_key"], setup_args["dose_key"]}
    for name in adata.obs.columns.difference([key for key in used if key], sort=False):
        words = set(re.split(r"[^a-z]+", str(name).lower()))
        if words & _CLUSTER_WORDS and 1 < adata.obs[name].nunique() < adata.n_obs / 2:
            warnings.warn(
                f"obs[{name!r}] looks like groups of cells that are not independent. Without "
                f"cluster_key={name!r} {meaning} if such groups differ.",
                UserWarning,
                stacklevel=4,
            )
            return
