"""Effects by DESeq2's count model on pseudobulks, in the columns of the other estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from scvci.effects._design import indicator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._comparison import Comparison

#: Fewest pseudobulks of each arm.
_LEAST = 2


def count_model_effects(
    comparison: Comparison,
    targets: Sequence[str],
    reference: str,
    *,
    level: float,
    min_cells: int,
) -> pd.DataFrame:
    """Sum counts over clusters and fit a negative binomial regression to them (DESeq2).

    Blocks are strata within batches, and clusters where every one has both arms.

    Parameters
    ----------
    comparison
        Cells, groups and clusters.
    targets, reference
        Names of treatments.
    level, min_cells
        See :func:`estimate_effects`.

    Raises
    ------
    ImportError
        If pydeseq2 is not installed.
    ValueError
        If there are no clusters or no counts.

    References
    ----------
    Love, Huber and Anders, "Moderated estimation of fold change and dispersion for RNA-seq data
    with DESeq2", 2014. Muzellec et al., "PyDESeq2", 2023.
    """
    if not comparison.is_count or comparison.scale != "lfc":
        raise ValueError("estimator='deseq2' is a model of counts and estimates scale='lfc'.")
    if comparison.clusters is None:
        raise ValueError(
            "estimator='deseq2' compares clusters; pass cluster_key= with the donor or well."
        )
    groups = comparison.groups
    codes = np.zeros(comparison.cells.n_obs, dtype=int) if groups is None else groups
    names = comparison.group_names or ["all"]
    tables = [
        _fit(
            comparison, target, reference, np.flatnonzero(codes == code), level, min_cells
        ).assign(treatment=target, reference=reference, stratum=name)
        for target in targets
        for code, name in enumerate(names)
    ]
    columns = [
        *("treatment", "reference", "stratum", "gene", "estimate", "std_error", "df", "ci_low"),
        *("ci_high", "p_value", "q_value", "n_treated", "n_reference", "propensity"),
        *("depth_ratio", "mean_factual", "mean_counterfactual", "estimator", "leakage", "note"),
    ]
    return pd.concat(tables, ignore_index=True)[columns]


def _fit(
    comparison: Comparison,
    target: str,
    reference: str,
    rows: np.ndarray,
    level: float,
    min_cells: int,
) -> pd.DataFrame:
    """Rows of the table for one treatment and group."""
    cells = comparison.cells
    assert comparison.clusters is not None
    of_arms = [cells.treatments.name_index[t] for t in (target, reference)]
    everyone = len(rows)
    rows = rows[np.isin(cells.treatment[rows], of_arms)]
    treated = cells.treatment[rows] == of_arms[0]
    block = cells.stratum[rows].astype(int)
    if cells.batch is not None:
        block = block * (int(cells.batch.max()) + 1) + cells.batch[rows]
    n = int(treated.sum()), int((~treated).sum())
    depth = comparison.depth
    table = pd.DataFrame({"gene": cells.genes.tolist()})
    numbers = ("estimate", "std_error", "ci_low", "ci_high", "p_value", "q_value", "df")
    table[[*numbers, "mean_factual", "mean_counterfactual"]] = np.nan
    table = table.assign(
        n_treated=n[0],
        n_reference=n[1],
        propensity=n[0] / everyone if everyone else np.nan,
        depth_ratio=depth[rows][treated].mean() / depth[rows][~treated].mean()
        if depth is not None and min(n)
        else np.nan,
        estimator="skipped",
        leakage=False,
        note="",
    )
    if min(n) < min_cells:
        return table.assign(note=f"{n[0]} treated and {n[1]} reference cells ({min_cells=})")
    # Blocks without both arms say nothing about their difference.
    both = {b for b in np.unique(block) if len(np.unique(treated[block == b])) == 2}
    inside = np.isin(block, list(both))
    rows, treated, block = rows[inside], treated[inside], block[inside]
    if not len(rows):
        return table.assign(note="no stratum or batch has both treated and reference cells")
    cluster = comparison.clusters[rows]
    keys, member = np.unique(np.stack([cluster, block, treated]), axis=1, return_inverse=True)
    counts = _sum_rows(cells, rows, member.ravel(), keys.shape[1])
    blocks = _blocks(*keys)
    left = keys.shape[1] - len(np.unique(blocks)) - 1
    if min((keys[2] == 1).sum(), (keys[2] == 0).sum()) < _LEAST or left < 1:
        return table.assign(note="too few clusters for an error")
    expressed = counts.sum(axis=0) > 0
    found = _deseq2(counts[:, expressed], keys[2].astype(bool), blocks)
    estimate, error = (np.full(len(table), np.nan) for _ in range(2))
    p_value, base = estimate.copy(), estimate.copy()
    estimate[expressed], error[expressed] = found["log2FoldChange"], found["lfcSE"]
    p_value[expressed], base[expressed] = found["pvalue"], found["baseMean"]
    # Genes that DESeq2's filter leaves out are not found.
    adjusted = found["padj"].where(found["padj"].notna() | found["pvalue"].isna(), 1.0)
    q_value = np.full(len(table), np.nan)
    q_value[expressed] = adjusted
    half = stats.norm.ppf((1 + level) / 2) * error
    # The mean of the normalised pseudobulks, shared out by the fold change.
    reference_mean = 2 * base / (1 + 2**estimate)
    return table.assign(
        estimate=estimate,
        std_error=error,
        df=np.inf,
        ci_low=estimate - half,
        ci_high=estimate + half,
        p_value=p_value,
        q_value=q_value,
        mean_factual=reference_mean * 2**estimate,
        mean_counterfactual=reference_mean,
        estimator="deseq2",
    )


def _blocks(cluster: np.ndarray, block: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Block of each pseudobulk: with its cluster, where every cluster is in both arms of it."""
    with_cluster = block * (int(cluster.max()) + 1) + cluster
    paired = all(len(np.unique(treated[with_cluster == b])) == 2 for b in np.unique(with_cluster))
    return with_cluster if paired else block


def _sum_rows(cells: Any, rows: np.ndarray, member: np.ndarray, n: int) -> np.ndarray:
    """Sum the counts of the cells of each pseudobulk."""
    total = np.zeros((n, len(cells.genes)))
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        total += (indicator(member[part], n) @ cells.counts(rows[part])).toarray()
    return total


def _deseq2(counts: np.ndarray, treated: np.ndarray, blocks: np.ndarray) -> pd.DataFrame:
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.ds import DeseqStats
    except ImportError as error:
        raise ImportError(
            "estimator='deseq2' needs pydeseq2: pip install scvci[deseq2]"
        ) from error
    names = [f"p{i}" for i in range(len(counts))]
    metadata = pd.DataFrame(
        {
            "arm": np.where(treated, "treated", "reference"),
            "block": [f"b{b}" for b in np.unique(blocks, return_inverse=True)[1]],
        },
        index=names,
    )
    design = "~ block + arm" if metadata["block"].nunique() > 1 else "~ arm"
    data = DeseqDataSet(
        counts=pd.DataFrame(np.round(counts).astype(int), index=names),
        metadata=metadata,
        design=design,
        quiet=True,
        n_cpus=1,
    )
    data.deseq2()
    results = DeseqStats(data, contrast=["arm", "treated", "reference"], quiet=True, n_cpus=1)
    results.summary()
    return results.results_df
