"""Effects as a ranking of genes, in the shape that scanpy's tables and plots read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._effects import estimate_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvci.data import Cells
    from scvci.model import VCI

#: Types of the columns in :func:`scanpy.tl.rank_genes_groups`.
_DTYPES = {
    "names": "O",
    "scores": "float32",
    "pvals": "float64",
    "pvals_adj": "float64",
    "logfoldchanges": "float32",
}


def rank_genes_counterfactual(
    model: VCI,
    treatment: str | Sequence[str] | None = None,
    *,
    reference: str | None = None,
    groupby: str | None = None,
    key_added: str = "rank_genes_counterfactual",
    adata: AnnData | None = None,
    **effect_kwargs: Any,
) -> pd.DataFrame:
    """Rank genes by their effect, for scanpy's tables and plots.

    Writes what :func:`scanpy.tl.rank_genes_groups` would write, with effects from
    :func:`estimate_effects` in place of differences between groups of cells: all of
    ``sc.get.rank_genes_groups_df`` and ``sc.pl.rank_genes_groups``, ``..._dotplot``,
    ``..._matrixplot`` and ``..._heatmap`` read it with ``key=key_added``.

    Parameters
    ----------
    model
        A model, trained where predictions are wanted.
    treatment
        A treatment, several, or ``None`` for all but the reference.
    reference
        What they are compared with, by default the control.
    groupby
        Column of ``obs`` by which effects of one treatment are told apart; its labels are then
        the groups. By default the treatments are the groups.
    key_added
        Key in ``adata.uns``, and the beginning of a column's name; see the notes.
    adata
        Cells to estimate from and to write to, by default the model's.
    **effect_kwargs
        Passed to :func:`estimate_effects`: ``estimator``, ``scale``, ``cluster_key`` and so
        on.

    Returns
    -------
    The table of effects. ``adata.uns[key_added]`` holds ``params`` and, with a field for each
    group and a row for each gene, ``names``, ``scores`` (estimate over standard error),
    ``pvals``, ``pvals_adj`` (q-values) and ``logfoldchanges`` (base 2).

    Raises
    ------
    ValueError
        If there are several treatments and ``groupby``, ``groupby`` is not one column, or an entry
        of the name was not written by this function.

    Notes
    -----
    scanpy groups cells by the column that ``params["groupby"]`` names. Where the labels of
    the treatment's column are not the treatments' names (it lacks the doses, members stand in
    another order, labels are not text, or treatments are a matrix in ``obsm``), the treatment
    of each cell is written to ``adata.obs[f"{key_added}_arm"]`` and that column is named.

    Genes come by descending score, so the first are raised most and the last lowered most. A
    gene without a p-value (skipped, or extrapolated to cells that were never measured) has
    score 0, as scanpy scores a gene that it cannot test, and therefore stands between both
    ends; those that have an estimate come by it. Its ``pvals`` and ``pvals_adj`` are NaN.

    Log-fold changes come from the means that p-values come from; for ``scale="log1p"`` from
    means of logarithms, as scanpy's do. A gene
    without estimate has 0, and a gene that only one side expresses the largest finite one:
    scanpy's plots lose or fail on numbers that are not finite.

    ``sc.pl.rank_genes_groups_dotplot(values_to_plot=...)`` needs a group for every label of
    the column: when treatments are the groups, hand it the treated cells only.
    """
    if groupby is not None and not isinstance(groupby, str):
        raise ValueError(
            f"groupby={groupby!r} must be one column of obs, by which scanpy's plots group "
            "cells. Join several columns into one first."
        )
    cells = model.cells(adata)
    results, column = model.results(cells.adata), f"{key_added}_arm"
    results.check("uns", key_added, "ranking")
    arguments = {"reference": reference, "groupby": groupby, **effect_kwargs}
    if model.is_trained_ or (adata is not None and adata is not model.adata):
        arguments["model"] = model
    table = estimate_effects(cells.adata, treatment, **arguments)
    treatments = list(pd.unique(table["treatment"]))
    if groupby is not None and len(treatments) > 1:
        raise ValueError(
            f"With groupby={groupby!r} the groups are its labels, for one treatment; got "
            f"{treatments}. Call once for each treatment, with a key_added of its own."
        )
    fold_changes = _fold_changes(table)
    estimated = table["estimate"].notna()
    labels = None
    if groupby is None:
        groupby, labels = _arm_column(cells, column)
        if labels is not None:
            results.check("obs", column, "arms")
    ranking = {
        "params": {
            "groupby": groupby,
            "reference": str(table["reference"].iloc[0]),
            "method": ", ".join(pd.unique(table.loc[estimated, "estimator"].astype(str))),
            "use_raw": False,
            "layer": cells.layer,
            "corr_method": "benjamini-hochberg",
        },
        **rank_effects(table, fold_changes, "stratum" if arguments["groupby"] else "treatment"),
    }
    if labels is not None:
        results.write("obs", column, labels, {"kind": "arms", "treatment": "of each cell"})
    record = model.describe(kind="ranking", treatment=", ".join(treatments))
    results.write("uns", key_added, ranking, record)
    return table


def _arm_column(cells: Cells, added: str) -> tuple[str, pd.Categorical | None]:
    """Column of ``obs`` with the arm of each cell, and what to write where there is none."""
    names = list(cells.treatments.names)
    arms = np.array(names, dtype=object)[cells.treatment]
    key = cells.treatments.keys.key
    if key in cells.adata.obs and np.array_equal(
        cells.adata.obs[key].to_numpy(dtype=object), arms
    ):
        return key, None
    return added, pd.Categorical(arms, names).remove_unused_categories()


def _fold_changes(table: pd.DataFrame) -> pd.DataFrame:
    """Effects of the table as log-fold changes, base 2, from the same means."""
    scale = table.attrs["scale"]
    if scale == "lfc":
        return table
    means = table[["mean_factual", "mean_counterfactual"]].to_numpy(float)
    means = np.expm1(means) if scale == "log1p" else means
    with np.errstate(invalid="ignore"):
        # The small number by which scanpy, too, avoids ratios of zeros.
        logs = np.log2(means + 1e-9)
    fold = np.where(table["estimate"].notna(), logs[:, 0] - logs[:, 1], np.nan)
    return table.assign(estimate=fold)


def rank_effects(
    table: pd.DataFrame, fold_changes: pd.DataFrame, by: str
) -> dict[str, np.recarray]:
    """Turn a table of effects into the record arrays of :func:`scanpy.tl.rank_genes_groups`.

    Parameters
    ----------
    table
        Effects, one row for each group and gene.
    fold_changes
        The same effects as log-fold changes (base 2).
    by
        Column of the groups, ``"treatment"`` or ``"stratum"``.

    Returns
    -------
    ``names``, ``scores``, ``pvals``, ``pvals_adj`` and ``logfoldchanges``, each with a field for
    every group and a row for every gene, by descending score.

    Raises
    ------
    ValueError
        If a gene has several rows in a group.
    """
    repeated = table.duplicated([by, "gene"])
    if repeated.any():
        first = table[repeated].iloc[0]
        raise ValueError(
            f"Gene {first['gene']!r} has several effects of {by} {first[by]!r}; a ranking needs "
            "one. Choose one treatment, or one stratum, of the table."
        )
    genes = pd.Index(pd.unique(table["gene"]))
    log_fold = fold_changes.set_index([by, "gene"])["estimate"].fillna(0.0)
    largest = log_fold[np.isfinite(log_fold)].abs().max()
    log_fold = log_fold.clip(-largest, largest)
    ranked = {
        group: _rank_group(rows.set_index("gene").reindex(genes), log_fold.loc[group])
        for group, rows in table.groupby(by, sort=False, observed=True)
    }
    return {
        column: pd.DataFrame({str(g): r[column].to_numpy() for g, r in ranked.items()}).to_records(
            index=False, column_dtypes=dtype
        )
        for column, dtype in _DTYPES.items()
    }


def _rank_group(rows: pd.DataFrame, log_fold: pd.Series) -> pd.DataFrame:
    """Columns of the ranking of one group, by descending score; ``rows`` are named by gene."""
    scores = rows["estimate"] / rows["std_error"]
    tested = np.isfinite(scores) & rows["p_value"].notna()
    ranked = pd.DataFrame(
        {
            "names": rows.index,
            "scores": scores.where(tested, 0.0),
            "pvals": rows["p_value"].where(tested),
            "pvals_adj": rows["q_value"].where(tested),
            "logfoldchanges": log_fold.reindex(rows.index, fill_value=0.0),
        }
    )
    ties = rows["estimate"].where(~tested).fillna(-np.inf)
    return ranked.iloc[np.lexsort((-ties, ~tested, -ranked["scores"]))]
