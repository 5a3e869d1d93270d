"""Plots of effects: which genes, how much, how sure, and in which cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

from ._panels import (
    COLORS,
    MAX_COLUMNS,
    check_known,
    choose,
    describe,
    finish,
    label_points,
    make_panels,
    say_why_empty,
    set_title,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What an effect is measured in, by the scale of the table.
_UNITS = {
    "log1p": "effect on mean expression (log1p)",
    "counts": "effect on mean expression (counts)",
    "lfc": "log2 fold change of mean expression",
}
#: Colours of genes that are raised, lowered, and neither.
_UP, _DOWN, _NEITHER = COLORS["orange"], COLORS["blue"], "0.55"


def forest(
    table: pd.DataFrame,
    treatment: str | None = None,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 20,
    q_threshold: float = 0.1,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure | None:
    """Plot effects with their intervals, a row per gene and a panel per stratum.

    Parameters
    ----------
    table
        Result of :func:`~scvci.tl.estimate_effects`.
    treatment
        The treatment, needed if the table has several.
    genes
        Genes from top to bottom; by default those with the smallest p-values in any stratum
        (without p-values the largest estimates), by descending mean estimate.
    n_genes
        Number of genes that are chosen by default.
    q_threshold
        q-value below which an effect is coloured.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in; only for a table of one stratum.

    Returns
    -------
    Array of axes, one per stratum; the figure if ``return_fig``; ``None`` if it was shown.

    Raises
    ------
    ValueError
        If a treatment or gene is not in the table, or has to be chosen.

    Notes
    -----
    Hollow diamonds are estimates without an interval: the model's alone, or of genes that too few
    cells express. Crosses at the edge are genes without a finite estimate. The table's ``note``
    says why, and so does a panel that holds nothing else.
    """
    rows = choose(table, "treatment", treatment)
    shown = _choose_genes(rows, genes, n_genes)
    strata = list(pd.unique(rows["stratum"]))
    # Names of genes take room once in a row of panels.
    names = 0.075 * max(map(len, shown)) / min(len(strata), MAX_COLUMNS)
    size = (2.5 + names, 0.6 + 0.2 * len(shown))
    axes = make_panels(len(strata), size, ax, sharex=True, sharey=True)
    legend: dict[str, Artist] = {}
    for panel, stratum in zip(axes, strata, strict=True):
        part = rows[(rows["stratum"] == stratum) & rows["gene"].isin(shown)]
        legend |= _forest_panel(panel, part, shown, q_threshold)
        set_title(panel, stratum)
        panel.tick_params(axis="y", labelsize="small")
    axes[0].set_yticks(np.arange(len(shown)), shown)
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    if not legend:
        axes[0].set_xticks([])
    level = table.attrs.get("level")
    unit = _unit(table) + ("" if level is None else f"\nwith {100 * level:g} % intervals")
    describe(axes, rows, unit, legend=legend, given=ax is not None)
    return finish(axes, show, save, ax is not None, return_fig)


def volcano(
    table: pd.DataFrame,
    treatment: str | None = None,
    *,
    stratum: str | None = None,
    q_threshold: float = 0.1,
    n_labels: int = 10,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure | None:
    """Plot effects against their p-values, a panel per stratum.

    Parameters
    ----------
    table
        Result of :func:`~scvci.tl.estimate_effects`.
    treatment
        The treatment, needed if the table has several.
    stratum
        The only stratum to draw, by default all.
    q_threshold
        q-value below which a gene is coloured by the sign of its effect.
    n_labels
        Most coloured genes that are named, by p-value; a name without room is left out.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in; only for one stratum.

    Returns
    -------
    Array of axes, one per stratum; the figure if ``return_fig``; ``None`` if it was shown.

    Raises
    ------
    ValueError
        If a treatment or stratum is not in the table, or has to be chosen.

    Notes
    -----
    Genes without a p-value are counted under the title and not drawn. p-values too small for a
    floating-point number are triangles at the upper edge.
    """
    rows = choose(table, "treatment", treatment)
    rows = rows if stratum is None else choose(rows, "stratum", stratum)
    strata = list(pd.unique(rows["stratum"]))
    axes = make_panels(len(strata), (3.5, 3.4), ax)
    points = [
        _volcano_panel(panel, rows[rows["stratum"] == name], q_threshold, n_labels)
        for panel, name in zip(axes, strata, strict=True)
    ]
    describe(axes, rows, _unit(table), "−log10 p-value", given=ax is not None)
    label_points(axes, points, given=ax is not None)
    return finish(axes, show, save, ax is not None, return_fig)


def effect_embedding(
    adata: AnnData,
    key: str,
    *,
    basis: str = "umap",
    label: str = "effect",
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
    **kwargs: Any,
) -> Axes | Figure | None:
    """Plot an effect score of each cell on an embedding, with colours centred on zero.

    Parameters
    ----------
    adata
        Cells with the score and the embedding.
    key
        Column of ``obs`` with the score, as :func:`~scvci.tl.effect_scores` returns it; cells
        without one (NaN) are grey.
    basis
        Name of the embedding, as in :func:`scanpy.pl.embedding`.
    label
        Label of the colour bar, with the unit.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in.
    **kwargs
        Passed to :func:`scanpy.pl.embedding`. The colours end at the 99 % quantile of the
        absolute scores unless ``vmin`` and ``vmax`` are given.

    Returns
    -------
    The axes; the figure if ``return_fig``; ``None`` if the figure was shown.

    Raises
    ------
    ValueError
        If the column or the embedding is missing, or the column does not hold numbers.
    """
    numeric = list(adata.obs.select_dtypes("number"))
    if key not in numeric:
        kind = "holds no numbers" if key in adata.obs else "is missing"
        raise ValueError(f"obs[{key!r}] {kind}; columns of numbers are {numeric}.")
    if not {basis, f"X_{basis}"} & set(adata.obsm):
        raise ValueError(f"No embedding {basis!r}; obsm has {list(adata.obsm)}. Compute it first.")
    scores = np.abs(adata.obs[key].to_numpy(float))
    most = np.quantile(scores[np.isfinite(scores)], 0.99) if np.isfinite(scores).any() else 0.0
    limit = most if most > 0 else 1.0
    given = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 4.2))
    settings = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "vcenter": 0, **kwargs}
    sc.pl.embedding(adata, basis=basis, color=key, ax=ax, show=False, **settings)
    if ax.collections and (bar := ax.collections[-1].colorbar) is not None:
        bar.set_label(label)
    return finish(ax, show, save, given, return_fig)


def _unit(table: pd.DataFrame) -> str:
    return _UNITS.get(table.attrs.get("scale", ""), "effect")


def _choose_genes(rows: pd.DataFrame, genes: Sequence[str] | None, n_genes: int) -> list[str]:
    """Choose the genes asked for, or those with the smallest p-values by descending estimate."""
    if genes is not None:
        check_known("gene", genes, pd.unique(rows["gene"]))
        return list(dict.fromkeys(map(str, genes)))
    estimate = rows["estimate"].where(np.isfinite(rows["estimate"]))
    rows = rows.assign(
        estimate=estimate, size=estimate.abs(), z=estimate.abs() / rows["std_error"]
    )
    by_gene = rows.groupby("gene", sort=False, observed=True).agg(
        p_value=("p_value", "min"), z=("z", "max"), size=("size", "max"), mean=("estimate", "mean")
    )
    # Very small p-values are all 0; the z score tells their genes apart.
    first = by_gene.sort_values(["p_value", "z", "size"], ascending=[True, False, False])
    return list(first[:n_genes].sort_values("mean", ascending=False).index.astype(str))


def _forest_panel(
    ax: Axes, rows: pd.DataFrame, genes: list[str], q_threshold: float
) -> dict[str, Artist]:
    """Draw the effects of one stratum; returns what the legend has to explain."""
    if rows["gene"].duplicated().any():
        raise ValueError(f"Stratum {rows['stratum'].iloc[0]!r} has several rows of one gene.")
    y = pd.Index(genes).get_indexer(rows["gene"])
    estimate, low, high = (rows[c].to_numpy(float) for c in ("estimate", "ci_low", "ci_high"))
    interval = np.isfinite(low) & np.isfinite(high)
    found = interval & (rows["q_value"] < q_threshold).to_numpy()
    kinds = {
        f"raised, q < {q_threshold:g}": (found & (estimate > 0), "o", _UP),
        f"lowered, q < {q_threshold:g}": (found & (estimate < 0), "o", _DOWN),
        f"q ≥ {q_threshold:g}": (interval & ~found, "o", _NEITHER),
        "without interval": (np.isfinite(estimate) & ~interval, "D", _NEITHER),
    }
    legend: dict[str, Artist] = {}
    for label, (rows_of, mark, color) in kinds.items():
        if rows_of.any():
            face = "white" if mark == "D" else color
            if mark == "o":
                ax.hlines(y[rows_of], low[rows_of], high[rows_of], color=color, linewidth=1.6)
            legend[label] = ax.scatter(
                estimate[rows_of], y[rows_of], s=22, marker=mark, color=color, facecolor=face
            )
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    none = ~np.isfinite(estimate)
    if none.all():
        say_why_empty(ax, rows)
    elif none.any():
        legend["not estimated"] = ax.scatter(
            np.full(none.sum(), 0.03), y[none], s=18, marker="x", color="0.6", linewidth=1,
            transform=ax.get_yaxis_transform(),
        )  # fmt: skip
    return legend


def _volcano_panel(
    ax: Axes, rows: pd.DataFrame, q_threshold: float, n_labels: int
) -> pd.DataFrame:
    """Draw the genes of one stratum; returns points and names by p-value."""
    tested = rows.dropna(subset=["estimate", "p_value"])
    if tested.empty:
        ax.set(xticks=[], yticks=[])
        say_why_empty(ax, rows)
    with np.errstate(divide="ignore"):
        height = -np.log10(tested["p_value"].to_numpy(float))
    finite = np.isfinite(height)
    # Room at the upper edge for p-values that are 0 in floating point.
    top = 1.08 * height[finite].max(initial=1.0)
    tested = tested.assign(height=np.where(finite, height, top))
    found = (tested["q_value"] < q_threshold).to_numpy()
    estimate = tested["estimate"].to_numpy(float)
    up, down = found & (estimate > 0), found & (estimate < 0)
    for chosen, color, alpha in ((~found, _NEITHER, 0.5), (up, _UP, 0.8), (down, _DOWN, 0.8)):
        for shape, mark, size in ((finite, "o", 8), (~finite, "^", 18)):
            ax.scatter(
                estimate[chosen & shape], tested["height"][chosen & shape], s=size, marker=mark,
                color=color, alpha=alpha, linewidths=0, rasterized=True,
            )  # fmt: skip
    if len(tested):
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.margins(x=0.2, y=0.12)
        ax.set_ylim(bottom=0)
    note = f"q < {q_threshold:g}: {up.sum()} raised, {down.sum()} lowered"
    without = len(rows) - len(tested)
    missing = f"{without} without p-value"
    note = "\n".join([note] * (len(tested) > 0) + [missing] * (without > 0))
    set_title(ax, rows["stratum"].iloc[0], note)
    tested["z"] = (estimate / tested["std_error"]).abs()
    tested["name"] = tested["gene"].astype(str).where(found)
    tested = tested.sort_values(["height", "z"], ascending=False)
    tested.loc[tested["name"].notna().cumsum() > n_labels, "name"] = np.nan
    return tested[["estimate", "height", "name"]]
