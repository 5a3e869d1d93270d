"""Plots of whether the uncertainty of effects can be believed: leakage, coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter
from scipy import stats

from ._panels import COLORS, CYCLE, choose, describe, finish, label_points, make_panels, set_title

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def leakage(
    table: pd.DataFrame,
    treatment: str | None = None,
    *,
    stratum: str | None = None,
    q_threshold: float = 0.2,
    n_labels: int = 5,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure | None:
    """Plot how far predictions depend on the treatment received, against what chance would give.

    The leakage statistic over its standard error, in order, against the normal quantiles that it
    follows where predictions are free of the treatment. Points outside the grey band, in which
    95 % of the points of independent genes lie, tell of leakage: there the one-step estimator
    is biased by as much as the statistic says.

    Parameters
    ----------
    table
        Result of :func:`~scvci.tl.leakage_test`: ``treatment``, ``stratum``, ``gene``,
        ``statistic``, ``std_error`` and ``q_value``.
    treatment, stratum
        The only treatment or stratum to draw. By default there is a panel for each stratum, with
        all treatments.
    q_threshold
        q-value below which a point is coloured.
    n_labels
        Most coloured points that are named, the largest first.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in; only for one stratum.

    Returns
    -------
    Array of axes, one per stratum; the figure if ``return_fig``; ``None`` if it was shown. Rows
    without a standard error are counted under the title.

    Raises
    ------
    ValueError
        If a treatment or stratum is not in the table.
    """
    rows = table if treatment is None else choose(table, "treatment", treatment)
    rows = rows if stratum is None else choose(rows, "stratum", stratum)
    names = rows["gene"].astype(str)
    if rows["treatment"].nunique() > 1:
        names = names + " (" + rows["treatment"].astype(str) + ")"
    rows = rows.assign(name=names)
    strata = list(pd.unique(rows["stratum"]))
    axes = make_panels(len(strata), (3.4, 3.4), ax)
    points = [
        _leakage_panel(panel, rows[rows["stratum"] == name], q_threshold, n_labels)
        for panel, name in zip(axes, strata, strict=True)
    ]
    x, y = "expected z score without leakage", "z score of the leakage statistic"
    describe(axes, rows, x, y, given=ax is not None)
    label_points(axes, points, given=ax is not None)
    return finish(axes, show, save, ax is not None, return_fig)


def interval_calibration(
    table: pd.DataFrame,
    *,
    nominal: str = "nominal",
    observed: str = "observed",
    n: str = "n",
    label: str = "label",
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Plot the coverage that intervals have against the coverage that they promise.

    Parameters
    ----------
    table
        One row per method or regime and nominal coverage, counted where the truth is known: of
        intervals of :func:`~scvci.tl.estimate_effects` over effects, of
        :func:`~scvci.tl.predict_interval` over held-out cells.
    nominal, observed
        Columns of the promised and the found coverage, between 0 and 1.
    n
        Column of the number of independent cases that the found coverage counts. Where the table
        has it, shading is the 95 % interval of the true coverage (Wilson). Genes of one cell are
        not independent cases.
    label
        Column of the methods or regimes, if there are several.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in.

    Returns
    -------
    The axes; the figure if ``return_fig``; ``None`` if the figure was shown.

    Raises
    ------
    ValueError
        If a column is missing, or a coverage is not between 0 and 1.

    Notes
    -----
    Points below the diagonal are of intervals that are too short. If there is only one nominal
    coverage, methods are rows instead, and points to the left of the line are of intervals that
    are too short.
    """
    for column in (nominal, observed):
        if column not in table:
            raise ValueError(f"The table has no column {column!r}; it has {list(table)}.")
        if not table[column].dropna().between(0, 1).all():
            raise ValueError(f"Column {column!r} has values outside 0 to 1; give shares, not %.")
    table = table.dropna(subset=[nominal, observed]).sort_values(nominal, kind="stable")
    names = table[label].astype(str) if label in table else pd.Series("", table.index)
    groups = {name: table[names == name] for name in pd.unique(names)}
    bounds = {g: _wilson(rows[observed], rows[n]) for g, rows in groups.items() if n in rows}
    single = table[nominal].nunique() == 1
    given = ax is not None
    if ax is None:
        size = (5.0, 1.2 + 0.3 * len(groups)) if single else (5.0, 4.0)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    if single:
        _draw_single(ax, {g: rows[observed] for g, rows in groups.items()}, bounds)
        ax.axvline(table[nominal].iloc[0], color="black", linewidth=0.8, zorder=0)
        ax.set_title(f"nominal coverage {table[nominal].iloc[0]:.3g}", fontsize="medium")
    else:
        curves = {g: (rows[nominal], rows[observed]) for g, rows in groups.items()}
        _draw_curves(ax, curves, bounds)
        ax.axline((1, 1), slope=1, color="black", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show, save, given, return_fig)


def _leakage_panel(
    ax: Axes, rows: pd.DataFrame, q_threshold: float, n_labels: int
) -> pd.DataFrame:
    """Draw the z scores of one stratum; returns points and names by size."""
    z = rows["statistic"] / rows["std_error"]
    tested = rows.assign(z=z)[np.isfinite(z)].sort_values("z")
    rank, size = np.arange(1, len(tested) + 1), len(tested)
    # The i-th of n ordered uniform numbers follows Beta(i, n - i + 1).
    low, middle, high = (
        stats.norm.ppf(stats.beta.ppf(share, rank, size - rank + 1))
        for share in (0.025, 0.5, 0.975)
    )
    tested = tested.assign(expected=middle)
    ax.fill_between(middle, low, high, color="0.85", linewidth=0, zorder=0)
    ax.axline((0, 0), slope=1, color="0.5", linewidth=0.8, zorder=1)
    found = (tested["q_value"] < q_threshold).to_numpy()
    for chosen, color in ((~found, COLORS["blue"]), (found, COLORS["orange"])):
        ax.scatter(
            middle[chosen], tested["z"][chosen], s=8, color=color, linewidths=0, rasterized=True
        )
    ax.margins(x=0.2, y=0.15)
    without = len(rows) - size
    note = f"{found.sum()} of {size} leak, q < {q_threshold:g}"
    note += f"\n{without} not tested" if without else ""
    set_title(ax, rows["stratum"].iloc[0], note)
    tested["name"] = tested["name"].where(found)
    tested = tested.sort_values("z", key=np.abs, ascending=False)
    tested.loc[tested["name"].notna().cumsum() > n_labels, "name"] = np.nan
    return tested[["expected", "z", "name"]]


def _wilson(share: pd.Series, n: pd.Series) -> np.ndarray:
    """Bounds, shape (2, n), of the probability of which a share of n cases was found."""
    tests = [stats.binomtest(round(s * k), int(k)) for s, k in zip(share, n, strict=True)]
    return np.array([test.proportion_ci(0.95, method="wilson") for test in tests]).T


def _draw_single(ax: Axes, observed: dict[str, pd.Series], bounds: dict[str, np.ndarray]) -> None:
    """Draw the coverage at one nominal coverage, a row for each method."""
    for i, (name, share) in enumerate(observed.items()):
        y = np.full(len(share), i)
        if name in bounds:
            ax.hlines(y, *bounds[name], color=COLORS["blue"], linewidth=1.6)
        ax.plot(share, y, "o", color=COLORS["blue"], markersize=5)
    ax.set_yticks(np.arange(len(observed)), list(observed))
    ax.set_ylim(len(observed) - 0.4, -0.6)
    ax.set_xlabel("observed coverage")
    ax.xaxis.set_major_formatter(PercentFormatter(xmax=1))


def _draw_curves(
    ax: Axes, curves: dict[str, tuple[pd.Series, pd.Series]], bounds: dict[str, np.ndarray]
) -> None:
    """Draw observed against nominal coverage, a line for each method."""
    for i, (name, (nominal, observed)) in enumerate(curves.items()):
        color = CYCLE[i % len(CYCLE)]
        ax.plot(nominal, observed, "o-", color=color, markersize=4, label=name)
        if name in bounds:
            ax.fill_between(nominal, *bounds[name], color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="nominal coverage", ylabel="observed coverage")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize="small", loc="best")
