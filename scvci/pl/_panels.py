"""What plots of effects share: choice of rows, panels of strata, names beside points."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import Bbox

from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MAX_COLUMNS = 4
_ANGLES = [
    *((angle, "left") for angle in (0, 35, -35, 65, -65)),
    *((angle, "right") for angle in (180, 145, -145, 115, -115)),
    *((angle, "center") for angle in (90, -90)),
]
#: Where a name may stand beside its point, in points and the best first, and its alignment there.
_PLACES = [
    ((distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))), side)
    for distance in (6, 12, 20, 30, 42, 56)
    for angle, side in _ANGLES
]
#: How much of a name is left of where it is aligned.
_SIDES = {"left": 0.0, "center": 0.5, "right": 1.0}
#: Size of names, and the line to the point of a name that is not next to it.
_SIZE = 7
_LEADER = {"arrowstyle": "-", "color": "0.5", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}


def check_known(
    kind: str, names: Iterable[str], known: Iterable[str], what: str = "not in the table"
) -> None:
    """Raise an error that says the first unknown name and the nearest known ones."""
    listed = [str(k) for k in known]
    present = set(listed)
    for name in map(str, names):
        if name not in present:
            raise ValueError(unknown_name_message(kind[:1].upper() + kind[1:], name, listed, what))


def choose(table: pd.DataFrame, column: str, name: str | None) -> pd.DataFrame:
    """Rows of one treatment or stratum, which has to be named if there are several."""
    known = [str(k) for k in pd.unique(table[column])]
    if name is not None:
        check_known(column, [name], known)
        return table[table[column] == name]
    if len(known) != 1:
        raise ValueError(f"The table has {len(known)} of {column}, {known}; name one: {column}=.")
    return table


def make_panels(n: int, size: tuple[float, float], ax: Axes | None, **kwargs: Any) -> np.ndarray:
    """Axes for each stratum, ``size`` inches each; given axes hold one."""
    if ax is not None:
        if n > 1:
            raise ValueError(f"ax= holds one stratum and the table has {n}; choose one, or no ax.")
        return np.array([ax])
    n_columns = min(n, MAX_COLUMNS)
    n_rows = -(-n // n_columns)
    figsize = (size[0] * n_columns, size[1] * n_rows + 0.7)
    _, axes = plt.subplots(
        n_rows, n_columns, figsize=figsize, squeeze=False, layout="constrained", **kwargs
    )
    for spare in axes.ravel()[n:]:
        spare.set_axis_off()
    return axes.ravel()[:n]


def set_title(ax: Axes, stratum: str, note: str = "") -> None:
    """Name the stratum of a panel (none if it is all cells), and a smaller note below."""
    name = "" if stratum == "all" else textwrap.fill(str(stratum), 32)
    ax.set_title(name, fontsize="medium", pad=16 if note else None)
    ax.text(0.5, 1.02, note, transform=ax.transAxes, ha="center", fontsize="small", color="0.35")


def say_why_empty(ax: Axes, rows: pd.DataFrame) -> None:
    """Write the notes of rows of which none can be drawn into their panel."""
    notes = pd.unique(rows["note"].dropna().astype(str)) if "note" in rows else []
    text = "\n\n".join(textwrap.fill(note, 28) for note in notes[:3] if note)
    ax.text(
        0.5, 0.5, text or "nothing to draw", transform=ax.transAxes, ha="center", va="center",
        fontsize="small", color="0.35", bbox={"facecolor": "white", "edgecolor": "none"},
    )  # fmt: skip


def describe(
    axes: np.ndarray,
    rows: pd.DataFrame,
    x: str,
    y: str = "",
    legend: dict[str, Artist] | None = None,
    given: bool = False,
) -> None:
    """Label what all panels share: the contrast, the units, the legend."""
    contrast = ", ".join(map(str, pd.unique(rows["treatment"])[:3]))
    contrast += ", …" if rows["treatment"].nunique() > 3 else ""
    if "reference" in rows:
        contrast += f" vs. {rows['reference'].iloc[0]}"
    for i, ax in enumerate(axes):
        ax.spines[["top", "right"]].set_visible(False)
        # Where the last row is not full, panels above its gaps are the lowest of their columns.
        if i + MAX_COLUMNS >= len(axes):
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(x, fontsize="small")
        if i % MAX_COLUMNS == 0:
            ax.set_ylabel(y)
    style = {"frameon": False, "fontsize": "small", "handletextpad": 0.3}
    if given:
        title = axes[0].get_title()
        axes[0].title.set_text(f"{contrast}, {title}" if title else contrast)
        if legend:
            axes[0].legend(legend.values(), legend.keys(), loc="best", **style)
        return
    fig = axes[0].figure
    fig.suptitle(contrast, fontsize="large")
    if legend:
        fig.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, **style)


def label_points(axes: np.ndarray, points: Sequence[pd.DataFrame], given: bool = False) -> None:
    """Write names beside points, where they cover no other name and the fewest points.

    Parameters
    ----------
    axes
        Axes of one figure, with their final limits.
    points
        For each of the axes, all its points: position in data units (two columns) and name, the
        most important one first. Points without a name (NaN) are only kept clear; a name that
        has no room is left out.
    given
        Whether the figure is the user's, whose layout stays free.
    """
    # Whether names overlap is a matter of pixels, for which the layout has to be computed.
    figure = axes[0].figure.canvas.figure
    figure.draw_without_rendering()
    if not given:
        # Each drawing would move the axes a little further.
        figure.set_layout_engine("none")
    for ax, rows in zip(axes, points, strict=True):
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
        where, names = rows.iloc[:, :2].to_numpy(float), rows.iloc[:, 2]
        pixels, named = ax.transData.transform(where), np.flatnonzero(names.notna())
        taken: list[Bbox] = []
        for i in named:
            place = _find_place(ax, names.iloc[i], pixels[i], pixels, taken)
            if place is not None:
                offset, side = place
                style = _LEADER if np.hypot(*offset) > 12 else None
                ax.annotate(
                    names.iloc[i], where[i], offset, textcoords="offset points", fontsize=_SIZE,
                    va="center", ha=side, arrowprops=style, in_layout=False,
                )  # fmt: skip


def _find_place(
    ax: Axes, name: str, pixel: np.ndarray, points: np.ndarray, taken: list[Bbox]
) -> tuple[tuple[float, float], str] | None:
    """Find offset and alignment of a name, and add its box to those that are ``taken``."""
    text = ax.text(0, 0, name, fontsize=_SIZE)
    size = text.get_window_extent()
    text.remove()
    found, least = None, np.inf
    start, end = ax.bbox.get_points()
    for offset, side in _PLACES:
        left, middle = pixel + np.asarray(offset) * (ax.figure.dpi / 72)
        left -= _SIDES[side] * size.width
        box = Bbox.from_bounds(left, middle - size.height / 2, size.width, size.height).padded(2)
        low, high = box.get_points()
        if (low < start).any() or (high > end).any() or box.count_overlaps(taken):
            continue
        covered = ((points >= low) & (points <= high)).all(axis=1).sum()
        # To stay near its point, a name may cover a few others.
        cost = covered + np.hypot(*offset) / 20
        if cost < least:
            found, least = (box, offset, side), cost
    if found is None:
        return None
    taken.append(found[0])
    return found[1:]
