"""Test whether predictions depend on the treatment received, which ``"robust"`` rules out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._contrasts import Contrast
from ._design import Design, make_design
from ._intervals import adjust, zero_p_value
from ._means import correction_of
from ._moments import PredictionSums, gene_chunks, sum_predictions
from ._table import make_table
from ._validation import check_codes, check_numbers, find_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


def leakage_test(
    predictions: Callable[[int, slice], np.ndarray],
    treatment: np.ndarray,
    stratum: np.ndarray,
    *,
    treatments: Sequence[str],
    strata: Sequence[str],
    genes: Sequence[str],
    targets: Sequence[str] | None = None,
    clusters: np.ndarray | None = None,
    min_cells: int = 30,
    chunk_size: int | None = None,
) -> pd.DataFrame:
    r"""Test whether predictions under t differ between cells that received t and the others.

    The statistic is, in stratum x,

    .. math:: \hat b_{t,x} = \bar m(t)_{\text{all}} - \bar m(t)_{T=t},

    exactly what the one-step estimator adds to the mean of the cells that received t. If
    predictions use pre-treatment information only, its expectation is 0 and it corrects an
    imbalance of the arms. Predictions that depend on the treatment received *leak*, and the
    expectation of the statistic is the bias of the estimator.

    Parameters
    ----------
    predictions
        Returns the prediction of every cell for a treatment's code and a slice of genes, shape
        ``(n_cells, n_slice)``, cross-fitted.
    treatment, stratum
        Codes of each cell, shape ``(n_cells,)``.
    treatments, strata, genes
        Names, by code or column.
    targets
        Names of treatments to test predictions under; ``None`` for all.
    clusters
        Code of each cell's donor, well or guide, shape ``(n_cells,)``, if cells of one are not
        independent.
    min_cells
        Fewest cells with and without the treatment for a test.
    chunk_size
        Genes that are processed at a time; ``None`` for at most 2²⁴ numbers in any array.

    Returns
    -------
    One row per treatment, stratum with cells and gene: ``treatment``, ``stratum``, ``gene``,
    ``statistic`` (on the scale of the predictions), ``std_error``, ``p_value``, ``q_value``
    (Benjamini and Hochberg over all rows), ``n_cells`` (that received the treatment). NaN where
    there are too few cells or clusters, or predictions are constant.

    Raises
    ------
    ValueError
        If names are unknown, lengths differ, or predictions are not finite or of another shape.
    """
    check_numbers(min_cells=min_cells, chunk_size=chunk_size)
    check_codes(
        len(treatment),
        treatment=(treatment, len(treatments)),
        stratum=(stratum, len(strata)),
        clusters=(clusters, None),
    )
    codes = find_codes(treatments if targets is None else targets, treatments)
    found = []
    for code in codes:
        # Arm 0 received the treatment, arm 1 are all other cells.
        design = make_design(treatment, stratum, None, clusters, [code])
        contrasts = [_contrast(design, unit, min_cells) for unit in range(len(design.stratum))]
        sums = (
            sum_predictions(predictions, code, chunk, design)
            for chunk in gene_chunks(design, len(genes), chunk_size)
        )
        tested = np.concatenate([_test(contrasts, design, s) for s in sums], axis=2)
        found.append((tested, [strata[x] for x in design.stratum], design.counts[:, 0]))
    values, names, n_cells = zip(*found, strict=True)
    statistic, std_error, p_value = np.concatenate(values, axis=1)
    return make_table(
        {
            "treatment": np.repeat([treatments[code] for code in codes], len(names[0])),
            "stratum": np.concatenate(names),
            "gene": [list(genes)],
            "statistic": statistic,
            "std_error": std_error,
            "p_value": p_value,
            "q_value": adjust(p_value),
            "n_cells": np.concatenate(n_cells),
        }
    )


def _contrast(design: Design, unit: int, min_cells: int) -> Contrast | None:
    """Compare the arms in a unit; ``None`` where there are too few cells or clusters."""
    n_clusters = design.n_clusters
    if design.counts[unit].min() < min_cells:
        return None
    if n_clusters is not None and n_clusters[unit].min() < 2:
        return None
    return Contrast.difference(design, 0, 1, np.array([unit]), np.ones(1), with_everyone=True)


def _test(
    contrasts: list[Contrast | None], design: Design, predictions: PredictionSums
) -> np.ndarray:
    """Statistic, standard error and p-value, ``(3, n_units, n_genes)``; NaN without a contrast."""
    n_genes = predictions.total.shape[2]
    rows = []
    for unit, contrast in enumerate(contrasts):
        if contrast is None:
            rows.append(np.full((3, n_genes), np.nan))
            continue
        found = correction_of(contrast, design, predictions)
        variance, df = found.variance(np.ones((1, 1)))
        mean = predictions.total[unit].sum(axis=0) / design.counts[unit].sum()
        p_value = zero_p_value(found.value[0], variance, df, np.abs(mean))
        std_error = np.where(np.isfinite(p_value), np.sqrt(variance), np.nan)
        rows.append(np.stack([found.value[0], std_error, p_value]))
    return np.stack(rows, axis=1)
