"""Sums over the cells of each unit and arm, which effects and their errors are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._design import Design

#: Numbers of a dense (n_cells, chunk) block, and of a (n_units, n_arms, chunk) array of sums.
_BLOCK = 2**24


@dataclass(frozen=True)
class OutcomeSums:
    """Sums of outcomes of a chunk of genes.

    Attributes
    ----------
    total, square, expressing
        Sums of outcomes and of their squares, and cells with an outcome other than 0, shape
        ``(n_units, n_arms, n_genes)``.
    by_set
        Means of the sets of clusters, shape ``(n_sets, n_genes)``; none without clusters.
    block
        The outcomes themselves, shape ``(n_cells, n_genes)``, sparse or dense.
    """

    total: np.ndarray
    square: np.ndarray
    expressing: np.ndarray
    by_set: np.ndarray
    block: Any


@dataclass(frozen=True)
class PredictionSums:
    """Sums of predictions under one treatment of a chunk of genes; see :class:`OutcomeSums`.

    Attributes
    ----------
    total, square
        Sums of predictions and of their squares, shape ``(n_units, n_arms, n_genes)``.
    product
        Sums of products with predictions under another treatment, same shape; without one, the
        squares.
    by_set
        Means of the sets of clusters, shape ``(n_sets, n_genes)``; none without clusters.
    block
        The predictions themselves, shape ``(n_cells, n_genes)``.
    """

    total: np.ndarray
    square: np.ndarray
    product: np.ndarray
    by_set: np.ndarray
    block: np.ndarray


@dataclass(frozen=True)
class BothPredictions:
    """Predictions under both treatments of a difference, and products with outcomes.

    Attributes
    ----------
    treated, reference
        Predictions under the treatment, with products of the two, and under the reference.
    outcome_treated, outcome_reference
        Sums of products of outcomes and these predictions in the two arms, shape
        ``(n_units, n_arms, n_genes)``.
    """

    treated: PredictionSums
    reference: PredictionSums
    outcome_treated: np.ndarray
    outcome_reference: np.ndarray


def gene_chunks(design: Design, n_genes: int, size: int | None = None) -> list[slice]:
    """Cut genes into chunks.

    Parameters
    ----------
    design
        Cells by unit and arm.
    n_genes
        Number of genes.
    size
        Genes per chunk; ``None`` for so many that no dense array holds more than 2²⁴ numbers.
    """
    n_sets = 0 if design.clusters is None else len(design.clusters.size)
    size = size or max(1, _BLOCK // max(len(design.arm), design.counts.size, n_sets, 1))
    return [slice(start, min(start + size, n_genes)) for start in range(0, n_genes, size)]


def sum_outcomes(block: Any, design: Design, log: bool) -> OutcomeSums:
    """Sum the outcomes of a chunk of genes.

    Parameters
    ----------
    block
        Normalised counts, shape ``(n_cells, n_genes)``, sparse or dense.
    design
        Cells by unit and arm.
    log
        Whether the outcome is log1p of these.
    """
    if sparse.issparse(block):
        block = sparse.csr_matrix(block, dtype=np.float64)
        block.sum_duplicates()
        data = np.log1p(block.data) if log else block.data
        square, positive = block.copy(), block.copy()
        block.data, square.data, positive.data = data, data**2, (data != 0).astype(float)
    else:
        block = np.asarray(block, dtype=np.float64)
        block = np.log1p(block) if log else block
        square, positive = block**2, (block != 0).astype(float)
    shape = (*design.counts.shape, block.shape[1])
    total, squares, expressing = (
        dense(design.cells @ part).reshape(shape) for part in (block, square, positive)
    )
    return OutcomeSums(total, squares, expressing, by_set=_set_means(design, block), block=block)


def sum_predictions(
    predict: Callable[[int, slice], np.ndarray],
    code: int,
    genes: slice,
    design: Design,
    other: PredictionSums | None = None,
) -> PredictionSums:
    """Sum the predictions under one treatment of a chunk of genes.

    Parameters
    ----------
    predict
        Returns the predictions for a treatment's code and a slice of genes.
    code
        Code of the treatment.
    genes
        The chunk.
    design
        Cells by unit and arm.
    other
        Predictions under another treatment, to sum the products with.

    Raises
    ------
    ValueError
        If predictions have another shape or are not finite.
    """
    block = np.asarray(predict(code, genes))
    wanted = (len(design.arm), genes.stop - genes.start)
    if block.shape != wanted:
        raise ValueError(
            f"predictions({code}, {genes}) has shape {block.shape}, not {wanted}; return one row "
            "per cell and one column per gene of the slice."
        )
    shape = (*design.counts.shape, block.shape[1])
    sums = np.zeros((2 if other is None else 3, design.counts.size, block.shape[1]))
    # Some thousand cells at a time stay in the processor's cache through all the sums.
    for rows, pairs, cells in design.batches:
        part = block[rows].astype(np.float64)
        sums[0, pairs] = cells @ part
        sums[1, pairs] = cells @ (part * part)
        if other is not None:
            sums[2, pairs] = cells @ (part * other.block[rows])
    if not np.isfinite(sums).all():
        raise ValueError(
            f"predictions({code}, {genes}) has values that are NaN or infinite; every cell needs "
            "a prediction, also those with other treatments."
        )
    return PredictionSums(
        total=sums[0].reshape(shape),
        square=sums[1].reshape(shape),
        product=sums[-1].reshape(shape),
        by_set=_set_means(design, block),
        block=block,
    )


def sum_products(a: Any, b: np.ndarray, design: Design, arms: Sequence[int]) -> np.ndarray:
    """Sum products over the cells of some arms.

    Parameters
    ----------
    a, b
        Values of each cell, shape ``(n_cells, n_genes)``; the first may be sparse.
    design
        Cells by unit and arm.
    arms
        The arms.

    Returns
    -------
    Shape ``(n_units, n_arms, n_genes)``; 0 in other arms.
    """
    rows = np.flatnonzero(np.isin(design.arm, arms))
    product = a[rows].multiply(b[rows]) if sparse.issparse(a) else a[rows] * b[rows]
    sums = dense(design.cells[:, rows] @ product)
    return sums.reshape(*design.counts.shape, b.shape[1])


def _set_means(design: Design, block: Any) -> np.ndarray:
    if design.clusters is None:
        return np.zeros((0, block.shape[1]))
    return dense(design.clusters.cells @ block) / design.clusters.size[:, None]


def dense(values: Any) -> np.ndarray:
    """Array of a sparse or dense matrix.

    Parameters
    ----------
    values
        The matrix.
    """
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
