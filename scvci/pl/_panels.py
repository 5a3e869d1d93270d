"""What plots share: colours, choice of rows, panels, names beside points, saving and showing."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.text import Text

from scvci._files import write_whole
from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

MAX_COLUMNS = 4
#: Colours that colour-blind readers can tell apart (Okabe and Ito).
COLORS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73"}
CYCLE = [*COLORS.values(), "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_LINE = {"arrowstyle": "-", "color": "0.5", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
#: Look of a name beside a point.
_NAME: dict[str, Any] = {"fontsize": 7, "arrowprops": _LINE, "in_layout": False}
#: Distance in points up to which a name needs no line.
_NEAR = 5
#: Room around names and how hard they are pushed, chosen on volcanoes and ordered z scores.
_FORCES: dict[str, Any] = {
    "expand": (1.1, 1.4),
    "force_static": (0.2, 0.4),
    "force_text": (0.2, 0.4),
}


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


def make_panels(
    n: int, size: tuple[float, float], ax: Axes | None, what: str = "stratum", **kwargs: Any
) -> np.ndarray:
    """Make axes for each stratum (or ``what``), ``size`` inches each; given axes hold one."""
    if ax is not None:
        if n > 1:
            raise ValueError(f"ax= holds one {what}, not {n}; choose one, or pass no ax.")
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


def finish[T: (Axes, np.ndarray)](
    drawn: T, show: bool | None, save: str | Path | None, given: bool, return_fig: bool
) -> T | Figure | None:
    """Save and show what was drawn; returns it, its figure, or nothing if it was shown.

    ``given`` says whether the axes are the user's.
    """
    first = drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn
    figure = first.figure.canvas.figure
    if save is not None:
        path = Path(save)
        if not path.suffix:
            path = path.with_name(f"{path.name}.{figure.canvas.get_default_filetype()}")
        write_whole(path, partial(figure.savefig, dpi=150, bbox_inches="tight"))
    if show is None:
        show = plt.isinteractive() and save is None and not given and not return_fig
    if show:
        plt.show()
    if return_fig:
        return figure
    return None if show else drawn


def legend_above(ax: Axes) -> None:
    """Legend in one line over the axes, where it covers nothing."""
    ax.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        fontsize="small",
        handletextpad=0.4,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def set_title(ax: Axes, stratum: str, note: str = "") -> None:
    """Name the stratum of a panel (none if it is all cells), and a smaller note below."""
    name = "" if stratum == "all" else textwrap.fill(str(stratum), 32)
    pad = 6 + 11 * (note.count("\n") + 1) if note else None
    ax.set_title(name, fontsize="medium", pad=pad)
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
    """Write names beside points; a name that would cover a more important one is left out.

    Parameters
    ----------
    axes
        Axes of one figure, with their final limits.
    points
        For each of the axes, all its points: position in data units (two columns) and name, the
        most important one first. Points without a name (NaN) are only kept clear.
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
        names = [
            ax.annotate(name, (x, y), (x, y), ha="center", va="center", **_NAME)
            for x, y, name in rows[rows.iloc[:, 2].notna()].itertuples(index=False)
        ]
        if names:
            obstacles = _obstacles(ax, rows)
            # Limits in steps, not seconds, give the same picture on every machine.
            adjust_text(names, *obstacles.T, ax=ax, iter_lim=150, **_FORCES)
            # Lines that crossed made names exchange their places, in which longer ones do not fit.
            x, y = np.transpose([name.xy for name in names])
            adjust_text(
                names, *obstacles.T, ax=ax, target_x=x, target_y=y, avoid_self=False,
                force_explode=0.0, prevent_crossings=False, iter_lim=50, **_FORCES,
            )  # fmt: skip
            _tidy(ax, names)


def _obstacles(ax: Axes, rows: pd.DataFrame) -> np.ndarray:
    """Points to keep clear, shape (n_points, 2): one of those that lie upon one another.

    adjustText takes memory by the square of the number of points that a name covers.
    """
    where = rows.iloc[:, :2].to_numpy(float)
    size = _NAME["fontsize"] / 2 * ax.figure.dpi / 72
    cells = np.round(ax.transData.transform(where) / size)
    return where[np.unique(cells, axis=0, return_index=True)[1]]


def _tidy(ax: Axes, names: list[Annotation]) -> None:
    """Remove names that cover one before them, and the lines of those next to their points."""
    kept: list[Bbox] = []
    for name in names:
        # Of the name alone, without the line to its point.
        box = Text.get_window_extent(name)
        if box.count_overlaps(kept):
            name.remove()
            continue
        kept.append(box)
        near = box.padded(_NEAR * ax.figure.dpi / 72)
        if name.arrow_patch is not None:
            name.arrow_patch.set_visible(not near.contains(*ax.transData.transform(name.xy)))
