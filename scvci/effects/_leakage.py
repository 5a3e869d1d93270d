"""Do predictions know which treatment a cell received? The test that `robust` rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._clusters import cluster_correction, weigh_clusters
from ._design import Contrast, Design, make_design
from ._intervals import Components, adjust, zero_p_value
from ._moments import Predictions, choose_chunk, sum_predictions
from ._validation import check_codes, check_numbers, find_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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

    exactly what the one-step estimator adds to the mean of the cells that received t, and in
    expectation its bias. It is 0 if predictions rest on pre-treatment information only; then it
    corrects an imbalance of the arms. Predictions that carry the treatment received *leak*.

    Parameters
    ----------
    predictions
        Gives the prediction of every cell for a treatment's code and a slice of genes, shape
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
        Genes that are worked on at a time; ``None`` for at most 2²⁴ numbers in any array.

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
    design = make_design(treatment, stratum, None, clusters, codes)
    size = chunk_size or choose_chunk(design, len(genes))
    shape = (2, len(codes), len(design.stratum), len(genes))
    values, p_value = np.full(shape, np.nan), np.full(shape[1:], np.nan)
    for start in range(0, len(genes), size):
        chunk = slice(start, min(start + size, len(genes)))
        for arm, code in enumerate(codes):
            sums = sum_predictions(predictions, code, chunk, design)
            for unit in range(len(design.stratum)):
                part = correction(design, unit, arm, sums, min_cells)
                if part is not None:
                    mean = sums.total[unit].sum(axis=0) / design.counts[unit].sum()
                    tested = _test(part, np.abs(mean))
                    values[:, arm, unit, chunk], p_value[arm, unit, chunk] = tested
    return pd.DataFrame(
        {
            "treatment": np.repeat(np.array([treatments[c] for c in codes]), shape[2] * shape[3]),
            "stratum": np.tile(
                np.repeat(np.array([strata[x] for x in design.stratum]), shape[3]), shape[1]
            ),
            "gene": np.tile(np.array(genes), shape[1] * shape[2]),
            "statistic": values[0].ravel(),
            "std_error": values[1].ravel(),
            "p_value": p_value.ravel(),
            "q_value": adjust(p_value).ravel(),
            "n_cells": np.repeat(design.counts[:, : len(codes)].T.ravel(), shape[3]),
        }
    )


def correction(
    design: Design, unit: int, arm: int, sums: Predictions, min_cells: int
) -> Components | None:
    """Statistic of one unit and arm, and its variance; ``None`` where there are too few cells.

    Parameters
    ----------
    design
        Cells by unit and arm.
    unit, arm
        Where.
    sums
        Predictions under the arm's treatment.
    min_cells
        Fewest cells with and without the treatment.
    """
    everyone = design.counts[unit].sum()
    n = np.array([design.counts[unit, arm], everyone - design.counts[unit, arm]])
    if n.min() < min_cells:
        return None
    if design.clusters is not None:
        return _clustered_correction(design, unit, arm, sums)
    total = np.stack([sums.total[unit, arm], sums.total[unit].sum(axis=0)])
    square = np.stack([sums.square[unit, arm], sums.square[unit].sum(axis=0)])
    total[1] -= total[0]
    square[1] -= square[0]
    mean = total / n[:, None]
    scatter = square - n[:, None] * mean**2
    scatter[scatter < 1e-12 * square] = 0
    # All cells are a mixture of both arms: the statistic is a share of the arms' difference.
    share = n[::-1] / everyone
    value = n[1] / everyone * (mean[1] - mean[0])
    weight = np.array([n[1] / everyone / n[0], 1 / everyone])
    within = (weight**2 * n / (n - 1))[:, None] * scatter
    between = (n / everyone**2)[:, None] * (share[:, None] * (mean[1] - mean[0])) ** 2
    return Components(value[None], (within + between)[:, None, None], n - 1.0)


def _clustered_correction(
    design: Design, unit: int, arm: int, sums: Predictions
) -> Components | None:
    if design.clusters is None or design.n_clusters is None:
        return None
    clusters = design.clusters
    others = clusters.cluster[(clusters.unit == unit) & (clusters.arm != arm)]
    if min(design.n_clusters[unit, arm], len(np.unique(others))) < 2:
        return None
    contrast = Contrast(arm, group=0, units=np.array([unit]), weights=np.ones(1))
    weights = weigh_clusters(contrast, clusters, reference=None, with_everyone=True)
    return cluster_correction(weights, sums)


def _test(part: Components, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and standard error, ``(2, n_genes)``, and the p-values."""
    variance, df = part.variance(np.ones((1, 1)))
    p_value = zero_p_value(part.value[0], variance, df, scale)
    std_error = np.where(np.isfinite(p_value), np.sqrt(variance), np.nan)
    return np.stack([part.value[0], std_error]), p_value
