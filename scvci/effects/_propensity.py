"""Strata of cells with like propensities: confounding by continuous covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._validation import check_codes

if TYPE_CHECKING:
    from collections.abc import Sequence


def propensity_strata(
    propensity: np.ndarray, stratum: np.ndarray, strata: Sequence[str], n_bins: int = 5
) -> tuple[np.ndarray, list[str]]:
    """Cut strata into bins of cells with like propensities.

    Within strata a treatment may depend on continuous covariates, which effects would then be
    confounded by. Cells with the same propensity can be compared whatever covariates it rests on;
    five bins remove about nine tenths of the bias (Rosenbaum and Rubin, 1984). Bins in which an
    arm is missing are left out by :func:`estimate_effects`, which reports their share.

    Parameters
    ----------
    propensity
        Fitted probability of each cell to receive the treatment rather than the reference given
        stratum and covariates, shape ``(n_cells,)``; NaN where it cannot be estimated. See
        :func:`scvci.metrics.cross_validated_propensity`: its column of the treatment, over the
        sum of those of the treatment and the reference.
    stratum
        Code of each cell's stratum, shape ``(n_cells,)``.
    strata
        Names of the strata, by code.
    n_bins
        Bins per stratum, at quantiles of its cells' propensities.

    Returns
    -------
    Code of each cell's bin, shape ``(n_cells,)``, and the names of the bins; to be used as
    ``stratum`` and ``strata`` of :func:`estimate_effects`, with the strata as ``groups``. Cells
    without a propensity form a bin of their own.

    Raises
    ------
    ValueError
        If lengths differ, a propensity is outside [0, 1], or there are no bins.
    """
    propensity, stratum = np.asarray(propensity, dtype=float), np.asarray(stratum)
    if n_bins < 1:
        raise ValueError(f"n_bins={n_bins} must be at least 1.")
    check_codes(len(propensity), stratum=(stratum, len(strata)))
    known = np.isfinite(propensity)
    if ((propensity[known] < 0) | (propensity[known] > 1)).any():
        raise ValueError("propensity has values outside [0, 1]; it must be a probability.")
    codes = np.empty(len(propensity), dtype=np.int64)
    names: list[str] = []
    for x, name in enumerate(strata):
        inside = (stratum == x) & known
        codes[(stratum == x) & ~known] = len(names) + n_bins
        if inside.any():
            edges = np.quantile(propensity[inside], np.arange(1, n_bins) / n_bins)
            codes[inside] = len(names) + np.searchsorted(edges, propensity[inside], side="left")
        names += [f"{name}, bin {i + 1}" for i in range(n_bins)] + [f"{name}, no propensity"]
    return codes, names
