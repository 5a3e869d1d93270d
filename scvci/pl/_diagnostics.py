"""Plots of the checks of what counterfactuals rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from ._panels import COLORS, finish, legend_above

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATISTICS = {
    "auc": "AUC of telling the treatment\nfrom the latent state",
    "energy": "share of latent dispersion\nbetween treatments",
    "spread": "AUC of telling the treatment\nfrom the width of posteriors",
}
#: Mark of each flag of a pair.
_MARKS = {"no control": "s", "no cells": "x", "few cells": "v", "low propensity": "D"}
#: Largest table of which every number is written.
_MAX_NUMBERS = 400


def disentanglement(
    table: pd.DataFrame,
    test: Literal["auc", "energy", "spread"] = "auc",
    *,
    q_threshold: float = 0.05,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Plot how well treatments are told from the latent state, against relabelled cells.

    A latent state that is free of the treatment lies within the grey bars: from the 5 % to the
    95 % quantile of the statistic when treatments are shuffled within strata.

    Parameters
    ----------
    table
        Result of :func:`~scvci.tl.disentanglement_test` or
        :func:`~scvci.effects.conditional_independence_test`.
    test
        ``"auc"``: how well a classifier tells the treatment from the latent state; ``"energy"``:
        share of the dispersion of latent states that lies between treatments; ``"spread"``: how
        well the classifier tells it from the width of posteriors.
    q_threshold
        q-value below which a stratum is coloured (of the joint test, p-value).
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
        If the table has no rows of that test.
    """
    rows = table[table["test"] == test]
    if rows.empty:
        raise ValueError(f"No rows of test {test!r}; found: {sorted(set(table['test']))}.")
    given = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 1.3 + 0.32 * len(rows)))
    # The joint test stands apart from the strata.
    y = np.arange(len(rows)) + 0.4 * (np.arange(len(rows)) > 0)
    low, high = rows["null_q05"].to_numpy(), rows["null_q95"].to_numpy()
    ax.barh(y, high - low, left=low, height=0.5, color="0.85", label="relabelled cells, 5–95 %")
    ax.use_sticky_edges = False
    if test != "energy":
        ax.axvline(0.5, color="0.5", linewidth=0.8, zorder=0)
    significant = rows["q_value"].to_numpy() < q_threshold
    sign = f"q < {q_threshold:g}"
    for chosen, color, label in (
        (significant, "orange", f"observed, {sign}"),
        (~significant, "blue", "observed"),
    ):
        values = rows["statistic"].to_numpy()[chosen]
        if np.isfinite(values).any():
            ax.plot(values, y[chosen], "o", color=COLORS[color], markersize=5, label=label)
    for position, p_value in zip(y, rows["p_value"], strict=True):
        text = "not tested" if np.isnan(p_value) else f"p = {p_value:.2g}"
        ax.annotate(
            text,
            (1.02, position),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
        )
    names = [f"{s} ({n})" for s, n in zip(rows["stratum"], rows["n_cells"], strict=True)]
    names[0] = f"all strata ({rows['n_cells'].iloc[0]})"
    ax.set(yticks=y, yticklabels=names, xlabel=_STATISTICS.get(test, test))
    ax.set_ylim(y[-1] + 0.6, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    legend_above(ax)
    return finish(ax, show, save, given, return_fig)


def overlap(
    table: pd.DataFrame,
    *,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Heat map of the cells of each (stratum, treatment), with poor pairs marked.

    Parameters
    ----------
    table
        Result of :func:`~scvci.tl.check_overlap` or :func:`~scvci.effects.overlap_table`.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in.

    Returns
    -------
    The axes; the figure if ``return_fig``; ``None`` if the figure was shown.
    """
    strata, treatments = pd.unique(table["stratum"]), pd.unique(table["treatment"])
    row, column = pd.Index(strata), pd.Index(treatments)
    place = row.get_indexer(table["stratum"]), column.get_indexer(table["treatment"])
    counts = np.zeros((len(strata), len(treatments)), dtype=int)
    flags = np.full(counts.shape, "", dtype=object)
    counts[place], flags[place] = table["n_cells"], table["flag"]
    given = ax is not None
    if ax is None:
        size = (2.2 + 0.6 * len(treatments), 1.4 + 0.42 * len(strata))
        _, ax = plt.subplots(figsize=np.minimum(size, 20))
    most = max(int(counts.max()), 2)
    least = int(counts[counts > 0].min(initial=most // 2))
    most = max(most, 2 * least)
    norm = LogNorm(vmin=least, vmax=most)
    image = ax.imshow(np.ma.masked_equal(counts, 0), cmap="Blues", norm=norm, aspect="auto")
    ticks = np.unique(np.geomspace(least, most, 5).round())
    bar = ax.figure.colorbar(image, ax=ax, label="cells", pad=0.02, format="%g", ticks=ticks)
    bar.minorticks_off()
    write = counts.size <= _MAX_NUMBERS
    if write:
        for (x, t), n in np.ndenumerate(counts):
            if n:
                dark = norm(n) > 0.6
                ax.text(
                    t,
                    x,
                    n,
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white" if dark else "black",
                )
    shift = 0.32 if write else 0.0
    for flag, mark in _MARKS.items():
        x, t = np.nonzero(flags == flag)
        if len(x):
            aside = np.where(counts[x, t] > 0, shift, 0)
            ax.scatter(t + aside, x - aside, marker=mark, s=28, color=COLORS["orange"], label=flag)
    ax.set_xticks(np.arange(len(treatments)), treatments, rotation=90)
    ax.set_yticks(np.arange(len(strata)), strata)
    ax.set_xticks(np.arange(len(treatments) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(strata) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="minor", length=0)
    ax.tick_params(which="major", length=2)
    if (flags != "").any():
        legend_above(ax)
    return finish(ax, show, save, given, return_fig)
