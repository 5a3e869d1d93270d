"""Plot of expression against dose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import sparse

from scvci._names import unknown_name_message
from scvci.model._seeded import Seeded

from ._panels import CYCLE, MAX_COLUMNS, check_known, finish, make_panels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvci.data import Cells
    from scvci.model import VCI

#: Draws of each cell: their noise stays below that of as many measured cells.
_N_DRAWS = 10
_TOTAL = 1e4
_UNKNOWN = "unknown"
_STYLES = ["-", "--", ":", "-."]
_MAX_TICKS = 6
_BAR = {"fmt": "o", "markersize": 4.5, "capsize": 2, "elinewidth": 1, "zorder": 3}


@dataclass(frozen=True)
class _Line:
    """One curve: who gets what, how it is drawn."""

    treatment: str
    group: str
    color: str
    style: str


def dose_response(
    model: VCI,
    treatment: str | Sequence[str],
    *,
    genes: str | Sequence[str] | Mapping[str, Sequence[str]],
    doses: Sequence[float] | None = None,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    adata: AnnData | None = None,
    n_points: int = 15,
    max_cells: int = 500,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
    seed: int = 0,
) -> np.ndarray | Figure | None:
    """Plot predicted and measured mean expression against the dose of a treatment.

    Lines are the mean that the model predicts if all cells of the group got the dose; between
    measured doses it is interpolated. Points are means of the cells that did get it alone, with
    bars of 1.96 standard errors, and those of the control at dose 0. The axis is linear from 0 to
    the smallest measured dose and logarithmic from there.

    Counts are drawn from the model (ten times for each cell) and treated like measured ones: the
    logarithm of one plus counts per 10,000, so that both carry the noise of counting, on which
    the mean of a logarithm depends. For ``likelihood="normal"``, means are on the scale of the
    data.

    Parameters
    ----------
    model
        A trained model of data with doses.
    treatment
        A member, or several: a line for each.
    genes
        Genes, a panel for each; or signatures by name, each the mean over its genes.
    doses
        Doses to predict, by default a grid from 0 to the largest measured dose, and the measured
        doses.
    groupby
        Column of ``obs``: a line for each of its groups. Lines differ in colour, and in style
        where there are several treatments and groups.
    groups
        Which groups to draw, by default all.
    adata
        Cells to average over and to measure, by default the model's. They are not changed.
    n_points
        Points of the default grid, the measured doses not counted.
    max_cells
        Most cells of each group that predictions are averaged over.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in, if there is one panel.
    seed
        Seed of the choice of cells and of the draws.

    Returns
    -------
    Array of axes, one per panel; the figure if ``return_fig``; ``None`` if it was shown.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the data have no doses, a gene, group or treatment is unknown, a treatment was not
        measured alone, or a dose is negative or not finite.
    KeyError
        If ``groupby`` is not a column of ``obs``.
    """
    model.require_trained("plot dose responses")
    cells = model.cells(adata)
    members = [treatment] if isinstance(treatment, str) else list(treatment)
    if not members:
        raise ValueError("treatment= is empty; name at least one.")
    measured = {member: _measured_doses(model, member) for member in members}
    panels = _panels(model, genes)
    rows_of = _group_rows(cells.adata, groupby, groups)
    smallest = min(d[0] for d in measured.values())
    grids = {m: _grid(own, doses, n_points, smallest) for m, own in measured.items()}
    axes = make_panels(len(panels), (3.3, 2.9), ax, "panel")
    rng = np.random.default_rng(seed)
    chosen = {
        group: np.sort(rng.choice(rows, min(len(rows), max_cells), replace=False))
        for group, rows in rows_of.items()
    }
    lines = _lines(members, list(rows_of))
    for line in lines:
        part = cells.take(chosen[line.group])
        grid = grids[line.treatment]
        curve = _predict_means(model, part, line.treatment, grid, panels, seed)
        points = _measure(model, cells, rows_of[line.group], line.treatment, panels)
        _draw(axes, line, grid, curve, points, shared=len(members) > 1)
    _label(axes, list(panels), model.is_count)
    _set_dose_axis(axes, measured, smallest)
    _add_legend(axes, lines, members, list(rows_of), given=ax is not None)
    return finish(axes, show, save, ax is not None, return_fig)


# -- arguments ----------------------------------------------------------------------------------


def _measured_doses(model: VCI, member: str) -> np.ndarray:
    """Doses of a member in the arms that hold nothing else, in increasing order."""
    arms = model.arms
    if not arms.dosed:
        raise ValueError(
            f"There is no dose of {member!r} to plot: the data were set up without doses. Pass "
            "dose_key= to setup_anndata."
        )
    check_known("treatment", [member], arms.members, "no single member, named without its dose")
    _, own = arms.doses_alone(member)
    if not len(own):
        raise ValueError(
            f"Treatment {member!r} was not measured alone, only in combinations; there is no "
            "dose response to compare with. Use predict_counterfactual for its predictions."
        )
    return np.unique(own)


def _panels(
    model: VCI, genes: str | Sequence[str] | Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Positions of the genes of each panel among the model's genes."""
    if isinstance(genes, Mapping):
        named = {str(name): [own] if isinstance(own, str) else own for name, own in genes.items()}
    else:
        named = {str(g): [str(g)] for g in ([genes] if isinstance(genes, str) else genes)}
    if not named or not all(len(own) for own in named.values()):
        raise ValueError(f"genes={genes!r} has a panel without a gene; name at least one.")
    known = [str(g) for g in model.genes]
    check_known("gene", (g for own in named.values() for g in own), known, _UNKNOWN)
    return {name: pd.Index(known).get_indexer(list(own)) for name, own in named.items()}


def _group_rows(
    cells: AnnData, groupby: str | None, groups: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Rows of each group, in the order of the categories; all under ``""`` without groups."""
    if groupby is None:
        if groups is not None:
            raise ValueError(f"groups={groups!r} needs groupby=, the column that has them.")
        return {"": np.arange(cells.n_obs)}
    columns = [str(c) for c in cells.obs.columns]
    if groupby not in columns:
        raise KeyError(unknown_name_message("groupby", groupby, columns, "not a column of obs"))
    column = cells.obs[groupby].astype("category")
    present = column.cat.remove_unused_categories().cat.categories
    codes = pd.Categorical(column.astype(str), [str(c) for c in present]).codes
    known = [str(c) for c in present]
    asked = [groups] if isinstance(groups, str) else known if groups is None else groups
    check_known(f"group of obs[{groupby!r}]", asked, known, _UNKNOWN)
    return {str(g): np.flatnonzero(codes == known.index(str(g))) for g in asked}


def _grid(
    measured: np.ndarray, doses: Sequence[float] | None, n_points: int, smallest: float
) -> np.ndarray:
    """Doses to predict, spread evenly over the axis."""
    if doses is not None:
        given = np.unique(np.asarray(doses, dtype=float))
        wrong = given[~(np.isfinite(given) & (given >= 0))]
        if len(wrong) or not len(given):
            raise ValueError(f"doses={list(doses)} must be numbers of at least 0, one or more.")
        return given
    scale = SymmetricalLogTransform(10, smallest, 1)
    end = scale.transform(measured[-1:])[0]
    grid = scale.inverted().transform(np.linspace(0, end, max(n_points, 2))[:-1])
    return np.unique(np.concatenate([grid, measured]))


def _lines(members: list[str], groups: list[str]) -> list[_Line]:
    by_member = len(members) > 1
    lines = []
    for (i, member), (j, group) in product(enumerate(members), enumerate(groups)):
        color = CYCLE[(i if by_member else j) % len(CYCLE)]
        style = _STYLES[j % len(_STYLES)] if by_member else "-"
        lines.append(_Line(member, group, color, style))
    return lines


# -- values -------------------------------------------------------------------------------------


def _values(matrix: Any, panels: dict[str, np.ndarray], is_count: bool) -> np.ndarray:
    """Expression of cells in each panel, log-normalised if counts, shape (n_cells, n_panels)."""
    matrix = sparse.csc_matrix(matrix) if sparse.issparse(matrix) else np.asarray(matrix)
    totals = np.maximum(np.asarray(matrix.sum(axis=1), dtype=float).reshape(-1, 1), 1)
    columns = []
    for own in panels.values():
        part = matrix[:, own]
        values = np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=float)
        values = np.log1p(values / totals * _TOTAL) if is_count else values
        columns.append(values.mean(axis=1))
    return np.stack(columns, axis=1)


def _predict_means(
    model: VCI,
    cells: Cells,
    member: str,
    grid: np.ndarray,
    panels: dict[str, np.ndarray],
    seed: int,
) -> np.ndarray:
    """Mean over cells and draws at each dose, shape (n_doses, n_panels); writes nothing."""
    n_samples = _N_DRAWS if model.is_count else None
    means = []
    for dose in grid:
        # The same draws at each dose, so that a curve is as smooth as can be.
        with Seeded(seed):
            blocks = model.predict_counterfactual(
                member,
                cells.adata,
                indices=cells.rows,
                dose=float(dose),
                n_samples=n_samples,
                keep="state",
                output="blocks",
            )
            drawn = [block.values.reshape(-1, block.values.shape[-1]) for block in blocks]
        means.append(_values(np.concatenate(drawn), panels, model.is_count).mean(axis=0))
    return np.stack(means)


def _measure(
    model: VCI, cells: Cells, rows: np.ndarray, member: str, panels: dict[str, np.ndarray]
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Dose, mean and standard error (one per panel) of the control and each arm with cells."""
    codes, doses = model.arms.doses_alone(member)
    found = []
    for code, dose in zip([0, *codes], [0.0, *doses], strict=True):
        picked = rows[cells.treatment[rows] == code]
        if not len(picked):
            continue
        values = _values(cells.block(picked), panels, model.is_count)
        spread = values.std(axis=0, ddof=1) if len(picked) > 1 else np.full(len(panels), np.nan)
        found.append((float(dose), values.mean(axis=0), spread / len(picked) ** 0.5))
    return found


# -- drawing ------------------------------------------------------------------------------------


def _draw(
    axes: np.ndarray,
    line: _Line,
    grid: np.ndarray,
    curve: np.ndarray,
    points: list[tuple[float, np.ndarray, np.ndarray]],
    shared: bool,
) -> None:
    """Draw a curve and its points; a control that treatments share has none of their colours."""
    for k, ax in enumerate(axes):
        ax.plot(grid, curve[:, k], line.style, color=line.color, lw=1.6)
        for dose, mean, error in points:
            bar = np.nan_to_num(1.96 * error[k])
            color = "0.35" if shared and dose == 0 else line.color
            ax.errorbar([dose], [mean[k]], yerr=[bar], color=color, **_BAR)


def _label(axes: np.ndarray, names: list[str], is_count: bool) -> None:
    scale = "log1p, per 10,000" if is_count else "scale of the data"
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        ax.set_title(name, fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
        if i + MAX_COLUMNS >= len(axes):
            ax.set_xlabel("dose")
        if i % MAX_COLUMNS == 0:
            ax.set_ylabel(f"mean expression\n({scale})")


def _set_dose_axis(axes: np.ndarray, measured: dict[str, np.ndarray], smallest: float) -> None:
    """Linear up to the smallest dose, which gives zero a place, and logarithmic beyond."""
    doses = np.unique(np.concatenate(list(measured.values())))
    if len(doses) > _MAX_TICKS:
        doses = doses[np.linspace(0, len(doses) - 1, _MAX_TICKS).round().astype(int)]
    for ax in axes:
        ax.set_xscale("symlog", linthresh=smallest, linscale=1)
        ax.xaxis.set_major_locator(FixedLocator([0, *doses]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{d:g}" if d else "control"))


def _add_legend(
    axes: np.ndarray, lines: list[_Line], members: list[str], groups: list[str], given: bool
) -> None:
    """Say what lines and points are, and in a title of the figure what does not vary."""
    handles: dict[str, Any] = {}
    for line in lines:
        parts = [line.treatment] * (len(members) > 1) + [line.group] * (len(groups) > 1)
        name = ", ".join(parts) or "predicted"
        handles[name] = plt.Line2D([], [], color=line.color, ls=line.style, lw=1.6)
    handles["measured, 95% interval"] = plt.Line2D([], [], color="0.35", ls="", marker="o", ms=4.5)
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "handletextpad": 0.5}
    title = ", ".join([*members[: len(members) == 1], *groups[: len(groups) == 1]]).strip(", ")
    if given:
        axes[0].set_title(", ".join(filter(None, [title, axes[0].get_title()])), fontsize="medium")
        axes[0].legend(handles.values(), handles.keys(), loc="best", **style)
        return
    fig = axes[0].figure
    fig.suptitle(title or None, fontsize="large")
    columns = min(len(axes), MAX_COLUMNS) + 1
    fig.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, **style
    )
