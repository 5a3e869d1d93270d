"""Plots of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

from scvci.model._seeded import Seeded

from ._panels import COLORS, choose, describe, finish, make_panels, set_title

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvci.model import VCI

type Term = Literal["individual", "covariate", "divergence", "loss"]

_TERMS: dict[Term, str] = {
    "individual": "individual-specific\nlikelihood (nats)",
    "covariate": "covariate-specific\nlikelihood (nats)",
    "divergence": "latent\ndivergence (nats)",
    "loss": "weighted sum",
}


def training_curves(
    model: VCI,
    terms: Term | Sequence[Term] | None = None,
    *,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure | None:
    """Plot the three terms of the objective and their weighted sum over epochs.

    Parameters
    ----------
    model
        A trained model.
    terms
        ``"individual"``, ``"covariate"``, ``"divergence"``, their weighted sum (``"loss"``), or
        several of them; by default all.
    show
        Whether to show the figure. By default it is shown in interactive sessions, such as
        notebooks, unless it is saved, returned or drawn into ``ax``.
    save
        File to save the figure to.
    ax
        Axes to draw in; only for one term.
    return_fig
        Whether to return the figure in place of the axes.

    Returns
    -------
    Array of axes, one per term; the figure if ``return_fig``; ``None`` if it was shown.

    Raises
    ------
    ValueError
        If the model is not trained, or a term is unknown.
    """
    if not model.history:
        raise ValueError("There is no training history; call train() first.")
    chosen = [terms] if isinstance(terms, str) else list(_TERMS if terms is None else terms)
    if not chosen or not set(chosen) <= set(_TERMS):
        raise ValueError(f"terms={terms!r} must be of {list(_TERMS)}.")
    axes = make_panels(len(chosen), (3.2, 2.4), ax, "term")
    for panel, term in zip(axes, chosen, strict=True):
        for part, color in (("train", "blue"), ("validation", "orange")):
            name = f"{part}_loss" if term == "loss" else f"{term}_{part}"
            if name in model.history:
                values = model.history[name].iloc[:, 0].astype(float)
                panel.plot(values.index, values, color=COLORS[color], label=part)
        panel.set_title(_TERMS[term], fontsize="medium")
        panel.set_xlabel("epoch")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    return finish(axes, show, save, ax is not None, return_fig)


def counterfactual_shift(
    model: VCI,
    treatment: str,
    *,
    adata: AnnData | None = None,
    max_cells: int = 1500,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
    seed: int = 0,
) -> Axes | Figure | None:
    """UMAP of control cells, their counterfactuals, and cells that really were treated.

    A good counterfactual lies among the treated cells of its stratum. Counterfactuals are drawn
    from the model, so that they carry measurement noise like real cells do.

    Parameters
    ----------
    model
        A trained model.
    treatment
        The treatment, measured or not.
    adata
        Cells to plot, by default the model's.
    max_cells
        Most cells of each kind.
    show, save, return_fig
        See :func:`training_curves`.
    ax
        Axes to draw in.
    seed
        Seed of the choice of cells, of the draws and of the embedding.

    Returns
    -------
    The axes; the figure if ``return_fig``; ``None`` if the figure was shown.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the treatment is unknown, or there are no control cells.
    """
    model.require_trained("plot counterfactuals")
    kinds = _kinds(model, treatment, adata, max_cells, seed)
    position = _embed(list(kinds.values()), model.is_count, seed)
    given = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 4.9), layout="constrained")
    ends = np.cumsum([part.shape[0] for part in kinds.values()])[:-1]
    for kind, points, color in zip(
        kinds, np.split(position, ends), ("green", "orange", "blue"), strict=True
    ):
        if len(points):
            ax.scatter(
                points[:, 0], points[:, 1], s=5, alpha=0.5, linewidths=0, color=COLORS[color],
                label=kind, rasterized=True,
            )  # fmt: skip
    ax.set(xlabel="UMAP1", ylabel="UMAP2", xticks=[], yticks=[])
    # Below the label of the axis.
    ax.legend(frameon=False, markerscale=3, loc="upper center", bbox_to_anchor=(0.5, -0.07))
    return finish(ax, show, save, given, return_fig)


def effect_scatter(
    table: pd.DataFrame,
    stratum: str | None = None,
    *,
    treatment: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> np.ndarray | Figure | None:
    """Plot predicted against observed (or true) mean effects, a panel per stratum.

    Parameters
    ----------
    table
        Columns ``stratum``, ``treatment``, ``observed`` and ``predicted``, one row per gene: two
        results of :func:`~scvci.tl.estimate_effects` side by side, see Examples. If there is a
        column ``pair``, its value ``"held out"`` marks pairs that training did not see.
    stratum, treatment
        The only stratum or treatment to draw, by default all.
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
        If a stratum or treatment is not in the table.

    Examples
    --------
    >>> rows = ["treatment", "stratum", "gene"]
    >>> options = {"groupby": "cell_type", "model": model}
    >>> observed = scvci.tl.estimate_effects(adata, estimator="observed", **options)
    >>> predicted = scvci.tl.estimate_effects(adata, estimator="plugin", **options)
    >>> table = pd.DataFrame(
    ...     {
    ...         "observed": observed.set_index(rows)["estimate"],
    ...         "predicted": predicted.set_index(rows)["estimate"],
    ...     }
    ... ).reset_index()
    >>> scvci.pl.effect_scatter(table)
    """
    rows = table if stratum is None else choose(table, "stratum", stratum)
    rows = rows if treatment is None else choose(rows, "treatment", treatment)
    held_out = (rows["pair"] == "held out") if "pair" in rows else pd.Series(False, rows.index)
    strata = list(pd.unique(rows["stratum"]))
    axes = make_panels(len(strata), (2.5, 2.9), ax, sharex=True, sharey=True)
    values = rows[["observed", "predicted"]].to_numpy(float)
    low, high = np.nanmin(values), np.nanmax(values)
    limits = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    legend: dict[str, Artist] = {}
    for panel, name in zip(axes, strata, strict=True):
        for pair, color in (("seen", "blue"), ("held out", "orange")):
            part = rows[(rows["stratum"] == name) & (held_out == (pair == "held out"))]
            if len(part):
                panel.scatter(
                    part["observed"], part["predicted"], s=4, alpha=0.4, linewidths=0,
                    color=COLORS[color], rasterized=True,
                )  # fmt: skip
                legend[pair] = plt.Line2D([], [], ls="", marker="o", ms=4, color=COLORS[color])
        panel.plot(limits, limits, color="black", linewidth=0.8, zorder=0)
        panel.set(xlim=limits, ylim=limits, aspect="equal")
        panel.locator_params(nbins=4)
        set_title(panel, name)
    describe(
        axes, rows, "observed change\nof mean expression (log1p)", "predicted change",
        legend=legend if held_out.any() else None, given=ax is not None,
    )  # fmt: skip
    return finish(axes, show, save, ax is not None, return_fig)


def _kinds(
    model: VCI, treatment: str, adata: AnnData | None, max_cells: int, seed: int
) -> dict[str, sparse.csr_matrix]:
    """Expression of controls, of the same cells had they been treated, and of treated cells."""
    cells, rng = model.cells(adata), np.random.default_rng(seed)

    def pick(chosen: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(chosen)
        return np.sort(rng.choice(rows, min(len(rows), max_cells), replace=False))

    [condition] = model.conditions(treatment)
    arm = model.arms.find(condition)
    controls = pick(cells.treatment == 0)
    if not len(controls):
        raise ValueError(f"There are no cells of the control, {model.control!r}, to plot.")
    treated = pick(cells.treatment == arm) if arm is not None else np.array([], dtype=int)
    with Seeded(seed):
        blocks = model.predict_counterfactual(
            treatment, cells.adata, indices=controls, n_samples=1, output="blocks"
        )
        predicted = sparse.vstack([sparse.csr_matrix(block.values) for block in blocks])
    return {
        "control": sparse.csr_matrix(cells.block(controls)),
        f"control, had it received {treatment}": predicted,
        f"received {treatment}": sparse.csr_matrix(cells.block(treated)),
    }


def _embed(parts: list[sparse.csr_matrix], is_count: bool, seed: int) -> np.ndarray:
    """UMAP of all cells together, shape (n_cells, 2)."""
    n_threads = torch.get_num_threads()
    joint = AnnData(sparse.csr_matrix(sparse.vstack(parts), dtype=np.float32))
    if is_count:
        sc.pp.normalize_total(joint, target_sum=1e4)
        sc.pp.log1p(joint)
    n_comps = min(30, joint.n_vars - 1, joint.n_obs - 1)
    sc.pp.pca(joint, n_comps=n_comps, random_state=seed)
    sc.pp.neighbors(joint, random_state=seed)
    sc.tl.umap(joint, random_state=seed)
    # Neighbour search sets the number of threads for all libraries, and sums depend on it.
    torch.set_num_threads(n_threads)
    return joint.obsm["X_umap"]
