"""Figures of the accuracy report, drawn from its summary of means and spreads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import ScaledTranslation
from natsort import natsorted
from report_numbers import BASELINES, LOWER_IS_BETTER, on_shared_seeds, summarise

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

mpl.use("Agg")

#: Colours that colour-blind readers can tell apart (Okabe and Ito), with a shape each.
_STYLES = {
    "VCI": ("#D55E00", "o", 7.5),
    "best baseline": ("#0072B2", "D", 5.5),
}
_PAIRS = {"seen": ("#0072B2", "s", -0.14), "held out": ("#D55E00", "o", 0.14)}
_RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def draw_all(scores: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Draw what the scores allow; names of the files and a description of each."""
    numbers = summarise(scores)
    methods = numbers["method"].unique()
    ablations = natsorted(m for m in methods if m.startswith("VCI "))
    ours = ("VCI", *ablations, *BASELINES)
    peers = sorted(m for m in methods if m not in ours)
    numbers = _with_best_baseline(numbers)
    drawn = {
        "accuracy_means": (
            regimes(numbers, [("rmse", "seen"), ("rmse", "held out")]),
            "Error of predicted means by data set, relative to no change",
        ),
        "accuracy_individuals": (
            regimes(numbers, [(m, p) for m in ("ite_corr", "mse") for p in _PAIRS]),
            "Accuracy of single cells by data set",
        ),
        "accuracy_ablations": (
            _variants_of(scores, ablations, []),
            "Ablations: accuracy with spread between seeds",
        ),
        "accuracy_peers": (
            _variants_of(scores, peers, ["ridge", "additive"]),
            "Other models: accuracy with spread between seeds",
        ),
    }
    for name, (figure, _) in drawn.items():
        file = folder / f"{name}.png"
        file.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(file, dpi=130, bbox_inches="tight")
            plt.close(figure)
    return {name: text for name, (figure, text) in drawn.items() if figure is not None}


def _with_best_baseline(numbers: pd.DataFrame) -> pd.DataFrame:
    """Add the baseline with the best mean, for each data set, kind of pair and metric."""
    baselines = numbers[numbers["method"].isin(BASELINES)]
    sign = baselines["metric"].isin(LOWER_IS_BETTER).map({True: 1.0, False: -1.0})
    order = (sign * baselines["mean"]).sort_values(kind="stable").index
    best = baselines.loc[order].drop_duplicates(["dataset", "pair", "metric"])
    return pd.concat([numbers, best.assign(method="best baseline")], ignore_index=True)


def _variants_of(scores: pd.DataFrame, methods: list[str], beside: list[str]) -> Figure | None:
    """Methods beside the model and some others, on the seeds that all methods were run for."""
    numbers = summarise(on_shared_seeds(scores, methods))
    return variants(numbers, ["VCI", *methods, *beside], methods) if len(numbers) else None


def regimes(numbers: pd.DataFrame, panels: list[tuple[str, str]]) -> Figure | None:
    """One row per data set, one panel per metric and kind of pair.

    Errors are relative to those of no change, so that data sets share an axis.
    """
    tables = []
    for metric, pair in panels:
        part = numbers[(numbers["metric"] == metric) & (numbers["pair"] == pair)]
        table = part.pivot(index="dataset", columns="method", values=["mean", "standard_error"])
        if metric != "ite_corr" and len(table) and ("mean", "no change") in table:
            unit = table["mean", "no change"]
            table = table.div(unit.where(unit > 0), axis=0)
        tables.append(table)
    names = [d for d in numbers["dataset"].unique() if any(d in t.index for t in tables)]
    if not names:
        return None
    width = 3.4 if len(panels) <= 2 else 2.3
    with plt.rc_context(_RC):
        figure, axes = _grid(1, len(panels), width, 0.3 * len(names))
        for ax, (metric, pair), table in zip(axes[0], panels, tables, strict=True):
            _regime_panel(ax, table.reindex(names), metric)
            ax.set_title(f"{pair} pairs", pad=16)
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
        present = [m for m in _STYLES if (numbers["method"] == m).any()]
        _legend(axes, {name: _STYLES[name] for name in present}, 34)
    return figure


def _grid(n_rows: int, n_columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Panels of one size in inches; what sticks out is cared for when the figure is saved."""
    gap = 0.85
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(n_columns * width, n_rows * height + (n_rows - 1) * gap),
        sharey=True,
        squeeze=False,
    )
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.14, hspace=gap / height)
    return figure, axes


def _legend(axes: np.ndarray, styles: dict[str, tuple], above: float) -> None:
    """Name the markers, some points above the first panel's left corner."""
    handles = [
        plt.Line2D([], [], ls="", color=color, marker=marker, ms=size, label=name)
        for name, (color, marker, size) in styles.items()
    ]
    ax = axes[0, 0]
    move = ScaledTranslation(0, above / 72, ax.figure.dpi_scale_trans)
    ax.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        bbox_transform=ax.transAxes + move,
        ncols=6,
        frameon=False,
        borderaxespad=0,
        handletextpad=0.3,
    )


def _regime_panel(ax: Axes, table: pd.DataFrame, metric: str) -> None:
    correlation = metric == "ite_corr"
    low, high = (-0.1, 1.02) if correlation else (0, 1.6 if metric == "rmse" else 1.2)
    for y in range(0, len(table), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="0.955", lw=0, zorder=0)
    for method, (color, marker, size) in reversed(_STYLES.items()):
        if ("mean", method) not in table:
            continue
        mean = table["mean", method].to_numpy()
        error = np.nan_to_num(table["standard_error", method].to_numpy())
        y = np.arange(len(table)) + (0.2 * list(_STYLES).index(method) - 0.1)
        _points(ax, mean, y, error, (low, high), color, marker, size)
    if not correlation:
        ax.axvline(1, color="0.4", lw=1, zorder=1)
        ax.annotate(
            "no change",
            (1, 1),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color="0.4",
        )
    label = {
        "ite_corr": "individual-effect correlation\n(means score 0; higher is better)",
        "rmse": "RMSE of means / that of no change\n(lower is better)",
        "mse": "MSE per cell / that of no change\n(lower is better)",
    }
    ax.set(xlim=(low, high), xlabel=label[metric])
    ax.tick_params(axis="y", length=0)


def _points(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    limits: tuple[float, float],
    color: str,
    marker: str,
    size: float,
) -> None:
    """Points with error bars; those outside the limits are arrows at the edge."""
    low, high = limits
    inside = (x >= low) & (x <= high)
    if inside.any():
        ax.errorbar(
            x[inside], y[inside], xerr=error[inside], ls="", color=color, marker=marker, ms=size,
            mec="white", mew=0.6, elinewidth=1.2, zorder=3,
        )  # fmt: skip
    for outside, edge, arrow in ((x > high, high, ">"), (x < low, low, "<")):
        n = outside.sum()
        ax.plot(
            np.full(n, edge), y[outside], ls="", color=color, marker=arrow, ms=6, clip_on=False,
            zorder=4,
        )  # fmt: skip


def variants(
    numbers: pd.DataFrame, methods: list[str], must: list[str] | None = None
) -> Figure | None:
    """One row of panels per data set, one line per method, colours for kinds of pair."""
    extra = numbers["method"].isin(must or methods[1:])
    # A data set with few of the methods would be a panel of empty lines; the table has it.
    n_methods = numbers[extra].groupby("dataset", sort=False, observed=True)["method"].nunique()
    datasets = n_methods.index[2 * n_methods >= n_methods.max()]
    if not len(datasets):
        return None
    metrics = {
        "ite_corr": "individual-effect correlation",
        "rmse": "RMSE of means",
        "r2_delta": "ΔR² of means (clipped at −1)",
    }
    with plt.rc_context(_RC):
        figure, axes = _grid(len(datasets), len(metrics), 3.2, 0.25 * len(methods))
        for line, dataset in zip(axes, datasets, strict=True):
            mine = numbers[(numbers["dataset"] == dataset) & numbers["method"].isin(methods)]
            for ax, (metric, label) in zip(line, metrics.items(), strict=True):
                ax.tick_params(axis="y", length=0)
                part = mine[mine["metric"] == metric]
                if part.empty:
                    ax.spines[:].set_visible(False)
                    ax.set_xticks([])
                    ax.text(0.5, 0.5, "no truth for single cells", ha="center", va="center",
                            transform=ax.transAxes, color="0.5")  # fmt: skip
                    continue
                _variant_panel(ax, part, methods)
                ax.set_xlabel(label)
                if metric == "r2_delta":
                    ax.set_xlim(-1 if part["mean"].min() < 0 else 0, 1.02)
            line[0].set_title(dataset, fontweight="bold")
        axes[0, 0].set_yticks(range(len(methods)), methods)
        axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
        _legend(axes, {f"{pair} pairs": (c, m, 5) for pair, (c, m, _) in _PAIRS.items()}, 24)
    return figure


def _variant_panel(ax: Axes, part: pd.DataFrame, methods: list[str]) -> None:
    for y in range(0, len(methods), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="0.955", lw=0, zorder=0)
    low = -1 if part["metric"].iloc[0] == "r2_delta" else -np.inf
    for pair, (color, marker, shift) in _PAIRS.items():
        mine = part[part["pair"] == pair].set_index("method").reindex(methods)
        mean = mine["mean"].to_numpy()
        if np.isfinite(mean[0]):
            ax.axvline(mean[0], color=color, lw=0.8, alpha=0.6, zorder=1)
        spread = np.nan_to_num(mine["sd_between_seeds"].to_numpy())
        y = np.arange(len(methods)) + shift
        _points(ax, mean, y, spread, (low, np.inf), color, marker, 5)
