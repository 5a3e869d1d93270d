"""Plots of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from scvci.model import VCI

#: Blue, orange and green of a palette that colour-blind readers can tell apart.
_COLORS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73"}


def training_curves(
    model: VCI, show: bool | None = None, save: str | Path | None = None
) -> np.ndarray:
    """Plot the three terms of the objective and their weighted sum over epochs.

    Parameters
    ----------
    model
        A trained model.
    show
        Whether to show the figure; by default if it is neither saved nor returned to a notebook.
    save
        File to save the figure to.

    Returns
    -------
    Array of axes.

    Raises
    ------
    ValueError
        If the model is not trained.
    """
    if not model.history:
        raise ValueError("There is no training history; call train() first.")
    panels = {
        "individual": "individual-specific\nlikelihood (nats)",
        "covariate": "covariate-specific\nlikelihood (nats)",
        "divergence": "latent\ndivergence (nats)",
        "loss": "weighted sum",
    }
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), squeeze=False)
    for ax, (key, title) in zip(axes[0], panels.items(), strict=True):
        for part, color in (("train", "blue"), ("validation", "orange")):
            name = f"{part}_loss" if key == "loss" else f"{key}_{part}"
            if name in model.history:
                values = model.history[name]
                ax.plot(
                    values.index, values.iloc[:, 0].astype(float), color=_COLORS[color], label=part
                )
        ax.set(title=title, xlabel="epoch")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    fig.tight_layout()
    _finish(fig, show, save)
    return axes[0]


def counterfactual_shift(
    model: VCI,
    treatment: str,
    adata: AnnData | None = None,
    max_cells: int = 1500,
    show: bool | None = None,
    save: str | Path | None = None,
    ax: Axes | None = None,
    seed: int = 0,
) -> Axes:
    """UMAP of control cells, their counterfactuals, and cells that really were treated.

    A good counterfactual lies among the treated cells of its stratum. Counterfactuals are drawn as
    sampled counts, so that they carry measurement noise like real cells do.

    Parameters
    ----------
    model
        A trained model with a count likelihood.
    treatment
        The treatment.
    adata
        Cells to plot, by default the model's.
    max_cells
        Most cells of each kind.
    show, save
        See :func:`training_curves`.
    ax
        Axes to draw in.
    seed
        Seed of the choice of cells and of the embedding.

    Returns
    -------
    The axes.
    """
    cells = model.cells(adata)
    arms, rng = model.arms, np.random.default_rng(seed)

    def pick(arm: int | None) -> np.ndarray:
        rows = np.flatnonzero(cells.treatment == (-1 if arm is None else arm))
        return np.sort(rng.choice(rows, min(len(rows), max_cells), replace=False))

    [condition] = model.conditions(treatment)
    controls, treated = pick(0), pick(arms.find(condition))
    blocks = model.predict_counterfactual(
        treatment, cells.adata, indices=controls, n_samples=1, output="blocks"
    )
    predicted = sparse.vstack([sparse.csr_matrix(block.values) for block in blocks])
    parts = {
        "control": cells.block(controls),
        f"control, had it received {treatment}": predicted,
        f"received {treatment}": cells.block(treated),
    }
    kinds = {
        kind: AnnData(sparse.csr_matrix(part, dtype=np.float32)) for kind, part in parts.items()
    }
    joint = sc.concat(kinds, label="kind", index_unique="-")
    sc.pp.filter_cells(joint, min_counts=1)
    sc.pp.normalize_total(joint, target_sum=1e4)
    sc.pp.log1p(joint)
    n_comps = min(30, joint.n_vars - 1, joint.n_obs - 1)
    sc.pp.pca(joint, n_comps=n_comps, random_state=seed)
    sc.pp.neighbors(joint, random_state=seed)
    sc.tl.umap(joint, random_state=seed)
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 4.5))
    for (kind, _), color in zip(kinds.items(), ("green", "orange", "blue"), strict=True):
        points = joint.obsm["X_umap"][(joint.obs["kind"] == kind).to_numpy()]
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=5,
            alpha=0.5,
            linewidths=0,
            color=_COLORS[color],
            label=kind,
            rasterized=True,
        )
    ax.set(xlabel="UMAP1", ylabel="UMAP2", xticks=[], yticks=[])
    ax.legend(frameon=False, markerscale=3, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    _finish(ax.figure, show, save)
    return ax


def effect_scatter(
    effects: pd.DataFrame,
    show: bool | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Plot predicted against observed (or true) mean effects, a panel per stratum.

    Parameters
    ----------
    effects
        Columns ``stratum``, ``treatment``, ``observed`` and ``predicted``, one row per gene; and
        ``pair``, whose value ``"held out"`` marks pairs without a measured cell.
    show, save
        See :func:`training_curves`.

    Returns
    -------
    Array of axes.
    """
    strata = list(pd.unique(effects["stratum"]))
    n_columns = min(len(strata), 4)
    n_rows = -(-len(strata) // n_columns)
    fig, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(3.2 * n_columns, 3.3 * n_rows),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    values = effects[["observed", "predicted"]].to_numpy(float)
    limits = (np.nanmin(values) - 0.2, np.nanmax(values) + 0.2)
    for ax, stratum in zip(axes.ravel(), strata, strict=False):
        rows = effects[effects["stratum"] == stratum]
        for pair, color in (("seen", "blue"), ("held out", "orange")):
            part = rows[rows["pair"] == pair]
            ax.scatter(
                part["observed"],
                part["predicted"],
                s=4,
                alpha=0.4,
                linewidths=0,
                color=_COLORS[color],
                label=pair,
                rasterized=True,
            )
        ax.plot(limits, limits, color="black", linewidth=0.8, zorder=0)
        ax.set(title=str(stratum), xlim=limits, ylim=limits, aspect="equal")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.ravel()[len(strata) :]:
        ax.set_axis_off()
    axes[0][0].legend(frameon=False, markerscale=3)
    fig.supxlabel("observed change of mean expression (log1p)")
    fig.supylabel("predicted change")
    fig.tight_layout()
    _finish(fig, show, save)
    return axes


def _finish(fig: object, show: bool | None, save: str | Path | None) -> None:
    if save is not None:
        fig.savefig(save, dpi=150, bbox_inches="tight")  # type: ignore[attr-defined]
    if show or (show is None and save is None and plt.isinteractive()):
        plt.show()
