"""Overlap of treatments and control: counts, propensities, and which pairs are poor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._propensity import cross_validated_propensity

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Share of a stratum's cells with a low estimated propensity above which a pair is flagged.
_MAX_SHARE = 0.05
_MAX_LISTED = 8
#: Ratio of depths from which on arms differ in depth.
_UNEQUAL_DEPTH = 1.5
_MEANING = {
    "no control": "their stratum has no control cell to compare with",
    "no cells": "nothing was measured: counterfactuals are extrapolated from other strata",
    "no common batch": "no batch has cells of both: batch and effect cannot be told apart",
    "few cells": "means of predictions and of real cells are uncertain",
    "low propensity": "few measured cells stand for many, so their weights are large",
    "unequal depth": "means of log1p differ by depth alone; compare on scale='lfc'",
}


def overlap_table(
    treatment: np.ndarray,
    stratum: np.ndarray,
    treatments: Sequence[str],
    strata: Sequence[str],
    *,
    control: int = 0,
    min_cells: int = 30,
    min_propensity: float = 0.01,
    continuous: np.ndarray | None = None,
    batch: np.ndarray | None = None,
    library_size: np.ndarray | None = None,
) -> pd.DataFrame:
    r"""Tabulate the overlap of every (stratum, treatment) pair: how many cells inform it.

    A counterfactual under t is supported by data in stratum x only if cells of x received t
    (positivity, :math:`P(t \mid x) > 0`).

    Parameters
    ----------
    treatment, stratum
        Codes of each cell, shape ``(n_cells,)``.
    treatments, strata
        Their names; pairs without cells have rows as well.
    control
        Code of the control.
    min_cells
        Fewest cells a pair should have.
    min_propensity
        Lowest propensity a pair should have.
    continuous
        Continuous covariates, shape ``(n_cells, n_continuous)``; adds the column ``share_low``.
    batch, library_size
        Batch of each cell, and its counts, shape ``(n_cells,)``; the latter adds the column
        ``depth_ratio``.

    Returns
    -------
    One row per pair, in order. Columns:

    - ``stratum``, ``treatment``, ``n_cells``;
    - ``propensity``: share of the stratum's cells that received the treatment,
      :math:`n_{x,t} / n_x`; NaN in a stratum without cells;
    - ``weight``: cells of the stratum for which each measured one stands, 1 / propensity;
    - ``effective_size``: :math:`n_{x,t} n_{x,c} / (n_{x,t} + n_{x,c})`, which sets the
      variance :math:`\sigma^2 / \text{effective size}` of a difference to the control's mean (of
      the control itself: its cells);
    - ``share_low``: share of the stratum's cells whose propensity given stratum *and* continuous
      covariates is below ``min_propensity`` (:func:`cross_validated_propensity`); NaN where it
      cannot be estimated;
    - ``depth_ratio``: mean library size of these cells over that of the stratum's control cells;
    - ``flag``: ``"no control"``, ``"no cells"``, ``"no common batch"`` (with the control),
      ``"few cells"``, ``"low propensity"`` (also where ``share_low`` is above 5 %),
      ``"unequal depth"`` (by half or more) or ``""``, the first that applies.

    ``attrs["verdict"]`` names the poor pairs and says what that means; empty if there are none.

    Raises
    ------
    ValueError
        If arrays differ in length, or a number is out of range.
    """
    _check(treatment, stratum, min_cells, min_propensity)
    shape = (len(strata), len(treatments))
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, (stratum, treatment), 1)
    size = counts.sum(axis=1, keepdims=True)
    controls = counts[:, [control]]
    with np.errstate(divide="ignore", invalid="ignore"):
        propensity = counts / size
        weight = size / counts
        effective = counts * controls / (counts + controls)
    effective[:, control] = counts[:, control]
    columns = {
        "n_cells": counts,
        "propensity": propensity,
        "weight": weight,
        "effective_size": np.nan_to_num(effective),
    }
    low = propensity < min_propensity
    if continuous is not None:
        scores = cross_validated_propensity(continuous, treatment, stratum, shape)
        columns["share_low"] = _share_low(scores, stratum, len(strata), min_propensity)
        low = low | (columns["share_low"] > _MAX_SHARE)
    unequal = apart = np.zeros(shape, dtype=bool)
    if library_size is not None:
        total = np.zeros(shape)
        np.add.at(total, (stratum, treatment), library_size)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = total / counts
            columns["depth_ratio"] = depth / depth[:, [control]]
        unequal = unequal_depth(columns["depth_ratio"])
    if batch is not None:
        cells = np.zeros((*shape, int(np.max(batch, initial=0)) + 1), dtype=bool)
        cells[stratum, treatment, batch] = True
        apart = ~(cells & cells[:, [control]]).any(axis=2) & (counts > 0) & (controls > 0)
    columns["flag"] = _flags(counts, control, min_cells, low, apart, unequal)
    index = pd.MultiIndex.from_product([strata, treatments], names=["stratum", "treatment"])
    table = pd.DataFrame({k: v.ravel() for k, v in columns.items()}, index=index).reset_index()
    table.attrs["verdict"] = _verdict(table, min_cells, min_propensity)
    return table


def _check(
    treatment: np.ndarray, stratum: np.ndarray, min_cells: int, min_propensity: float
) -> None:
    if len(treatment) != len(stratum):
        raise ValueError(
            f"{len(treatment)} treatments and {len(stratum)} strata; give one of each per cell."
        )
    if min_cells < 1:
        raise ValueError(f"min_cells={min_cells} must be at least 1.")
    if not 0 <= min_propensity < 1:
        raise ValueError(f"min_propensity={min_propensity} must be in [0, 1).")


def _share_low(
    scores: np.ndarray, stratum: np.ndarray, n_strata: int, min_propensity: float
) -> np.ndarray:
    """Share of each stratum's cells with a low propensity, ``(n_strata, n_treatments)``."""
    share = np.full((n_strata, scores.shape[1]), np.nan)
    for x in range(n_strata):
        own = scores[stratum == x]
        estimated = np.isfinite(own)
        some = estimated.any(axis=0)
        low = (own < min_propensity) & estimated
        share[x, some] = low.sum(axis=0)[some] / estimated.sum(axis=0)[some]
    return share


def unequal_depth(ratio: np.ndarray | float) -> np.ndarray:
    """Whether the depths of two arms differ so much that scales which follow depth mislead.

    Parameters
    ----------
    ratio
        Of the arms' mean library sizes; NaN where it is not known.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(np.log(ratio)) >= np.log(_UNEQUAL_DEPTH)


def _flags(
    counts: np.ndarray,
    control: int,
    min_cells: int,
    low: np.ndarray,
    apart: np.ndarray,
    unequal: np.ndarray,
) -> np.ndarray:
    """Say what is poor about each pair, the most serious first."""
    without_control = np.broadcast_to(counts[:, [control]] == 0, counts.shape).copy()
    # In such a stratum, a pair without cells is flagged for that, which is more serious.
    without_control &= counts > 0
    without_control[:, control] = counts[:, control] == 0
    conditions = [without_control, counts == 0, apart, counts < min_cells, low, unequal]
    return np.select(conditions, list(_MEANING), default="")


def _verdict(table: pd.DataFrame, min_cells: int, min_propensity: float) -> str:
    """Name the poor pairs and say what that means."""
    poor = table[table["flag"] != ""]
    if poor.empty:
        return ""
    threshold = {"few cells": f" (< {min_cells})", "low propensity": f" (< {min_propensity:g})"}
    lines = [f"Overlap is poor in {len(poor)} of {len(table)} (treatment, stratum) pairs."]
    for flag, meaning in _MEANING.items():
        rows = poor[poor["flag"] == flag].sort_values("n_cells", kind="stable")
        if rows.empty:
            continue
        pairs = zip(rows["treatment"], rows["stratum"], rows["n_cells"], strict=True)
        named = [f"({t}, {x})" + (f": {n}" if n else "") for t, x, n in pairs]
        more = f" and {len(named) - _MAX_LISTED} more" if len(named) > _MAX_LISTED else ""
        listed = ", ".join(named[:_MAX_LISTED])
        lines.append(f"{flag.capitalize()}{threshold.get(flag, '')} - {meaning}: {listed}{more}.")
    return "\n".join(lines)
