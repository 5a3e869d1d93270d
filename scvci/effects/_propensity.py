"""Propensities given continuous covariates, and strata of cells with similar ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ._validation import check_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

_N_FOLDS = 5
_FEWEST_BINS = 5


def cross_validated_propensity(
    continuous: np.ndarray,
    treatment: np.ndarray,
    stratum: np.ndarray,
    shape: tuple[int, int],
    *,
    seed: int = 0,
) -> np.ndarray:
    r"""Propensities :math:`P(t \mid x, c)` given stratum x and continuous covariates c.

    They come from a multinomial logistic regression in each stratum and are predicted for
    held-out cells (5 folds).

    Parameters
    ----------
    continuous
        Continuous covariates, shape ``(n_cells, n_continuous)``.
    treatment, stratum
        Codes of each cell, shape ``(n_cells,)``.
    shape
        Numbers of strata and of treatments.
    seed
        Seed of the folds.

    Returns
    -------
    Shape ``(n_cells, n_treatments)``; NaN for treatments with fewer cells in the stratum than
    there are folds, and in strata where fewer than two treatments are left. Rows sum to one over
    the treatments that are left.
    """
    n_strata, n_treatments = shape
    scores = np.full((len(treatment), n_treatments), np.nan)
    folds = StratifiedKFold(_N_FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    for x in range(n_strata):
        rows = np.flatnonzero(stratum == x)
        counts = np.bincount(treatment[rows], minlength=n_treatments)
        kept = np.flatnonzero(counts >= _N_FOLDS)
        if len(kept) < 2:
            continue
        rows = rows[np.isin(treatment[rows], kept)]
        scores[np.ix_(rows, kept)] = cross_val_predict(
            model, continuous[rows], treatment[rows], cv=folds, method="predict_proba"
        )
    return scores


def propensity_strata(
    propensity: np.ndarray, stratum: np.ndarray, strata: Sequence[str], n_bins: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """Cut strata into bins of cells with similar propensities.

    Within strata, treatment may depend on continuous covariates that confound effects. Cells with
    the same propensity can be compared whatever their covariates; five bins remove about nine
    tenths of the bias (Rosenbaum and Rubin, 1984). The rest would be mistaken for an effect in
    large samples, so that these have more bins. :func:`estimate_effects` leaves out bins in which
    an arm is missing and reports their share.

    Parameters
    ----------
    propensity
        Fitted probability that each cell received the treatment rather than the reference given
        its stratum and covariates, shape ``(n_cells,)``; NaN where it cannot be estimated. See
        :func:`cross_validated_propensity`: its column of the treatment, over the
        sum of those of the treatment and the reference.
    stratum
        Code of each cell's stratum, shape ``(n_cells,)``.
    strata
        Names of the strata, by code.
    n_bins
        Bins per stratum, at quantiles of its cells' propensities; ``None`` for the cube root of
        its cells, at least 5.

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
    if n_bins is not None and n_bins < 1:
        raise ValueError(f"n_bins={n_bins} must be at least 1.")
    check_codes(len(propensity), stratum=(stratum, len(strata)))
    known = np.isfinite(propensity)
    if ((propensity[known] < 0) | (propensity[known] > 1)).any():
        raise ValueError("propensity has values outside [0, 1]; it must be a probability.")
    codes = np.empty(len(propensity), dtype=np.int64)
    names: list[str] = []
    for x, name in enumerate(strata):
        inside = (stratum == x) & known
        n = n_bins or max(_FEWEST_BINS, round(inside.sum() ** (1 / 3)))
        codes[(stratum == x) & ~known] = len(names) + n
        if inside.any():
            edges = np.quantile(propensity[inside], np.arange(1, n) / n)
            codes[inside] = len(names) + np.searchsorted(edges, propensity[inside], side="left")
        names += [f"{name}, bin {i + 1}" for i in range(n)] + [f"{name}, no propensity"]
    return codes, names
