"""Tables of scores for each (treatment, stratum)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._baselines import BASELINES
from ._individual import ite_corr, per_cell_mse
from ._population import pearson_delta, pseudobulk, r2_delta

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def counterfactual_report(
    true: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    strata: np.ndarray,
    control: str,
    held_out: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Score predictions where every cell's counterfactuals are known.

    Means are compared as pseudobulks (:func:`pseudobulk`), single cells as ``log1p(1e4 *
    proportion)``, both for the truth and for the prediction.

    Parameters
    ----------
    true, predicted
        Expected counts under each treatment, the control included, ``(n_cells, n_genes)``.
    strata
        Stratum of each cell, shape ``(n_cells,)``.
    control
        Name of the control.
    held_out
        (treatment, stratum) pairs of which no cell was measured.

    Returns
    -------
    One row per treatment and stratum: ``treatment``, ``stratum``, ``pair`` (``"seen"`` or
    ``"held out"``), ``ite_corr``, ``r2_delta``, ``pearson_delta``, ``mse``.
    """
    rows = []
    for stratum in pd.unique(strata):
        cells = strata == stratum
        base_true, base_pred = (
            _both_scales(true[control][cells]),
            _both_scales(predicted[control][cells]),
        )
        for treatment in true:
            if treatment == control:
                continue
            truth = _both_scales(true[treatment][cells])
            guess = _both_scales(predicted[treatment][cells])
            # A change is added to the control that is being held to: levels are not compared.
            shifted = base_true[1] + guess[1] - base_pred[1]
            rows.append(
                {
                    "treatment": treatment,
                    "stratum": stratum,
                    "pair": "held out" if (treatment, stratum) in held_out else "seen",
                    "ite_corr": ite_corr(truth[0] - base_true[0], guess[0] - base_pred[0]),
                    "r2_delta": r2_delta(truth[1], shifted, base_true[1]),
                    "pearson_delta": pearson_delta(truth[1], shifted, base_true[1]),
                    "mse": per_cell_mse(truth[0], guess[0]),
                }
            )
    return pd.DataFrame(rows)


def population_report(
    real: np.ndarray, predicted: Mapping[str, np.ndarray], control: int, names: list[str]
) -> pd.DataFrame:
    """Score tables of means where counterfactuals are not known.

    Parameters
    ----------
    real
        Pseudobulks of real cells, ``(n_strata, n_treatments, n_genes)``; NaN where there are none.
    predicted
        Tables of predictions of the same shape, by method.
    control
        Index of the control.
    names
        Names of the treatments.

    Returns
    -------
    One row per method, treatment and stratum that was measured: ``method``, ``treatment``,
    ``stratum`` (its index), ``r2_delta``, ``pearson_delta``.
    """
    rows = []
    for method, table in predicted.items():
        for x, t in np.ndindex(*real.shape[:2]):
            arrays = (real[x, t], table[x, t], real[x, control])
            if t == control or not all(np.isfinite(a).all() for a in arrays):
                continue
            rows.append(
                {
                    "method": method,
                    "treatment": names[t],
                    "stratum": x,
                    "r2_delta": r2_delta(*arrays),
                    "pearson_delta": pearson_delta(*arrays),
                }
            )
    return pd.DataFrame(rows)


def pair_pseudobulks(
    counts: np.ndarray, treatment: np.ndarray, stratum: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Pseudobulk of each (stratum, treatment), ``(n_strata, n_treatments, n_genes)``.

    Parameters
    ----------
    counts
        Counts, dense or sparse, shape ``(n_cells, n_genes)``.
    treatment, stratum
        Codes, shape ``(n_cells,)``.
    shape
        Numbers of strata and of treatments.

    Returns
    -------
    NaN for pairs without counts.
    """
    table = np.full((*shape, counts.shape[1]), np.nan)
    for x, t in np.ndindex(*shape):
        cells = (stratum == x) & (treatment == t)
        if cells.any() and counts[cells].sum() > 0:
            table[x, t] = pseudobulk(counts[cells])
    return table


def baseline_tables(means: np.ndarray, control: int = 0) -> dict[str, np.ndarray]:
    """Predictions of all baselines from a table of means, by name.

    Parameters
    ----------
    means, control
        See :func:`no_change`.
    """
    return {name: baseline(means, control) for name, baseline in BASELINES.items()}


def _both_scales(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-normalised cells and the pseudobulk."""
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(1e4 * counts / np.where(total > 0, total, 1)), pseudobulk(counts)
