"""Whether the genes that respond are found, with the right sign and order."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from ._population import _check_shapes, check_cells


def differential_expression(
    treated: np.ndarray, control: np.ndarray, method: str = "t-test"
) -> pd.DataFrame:
    """Test each gene for a difference between two sets of cells.

    Parameters
    ----------
    treated, control
        Log-normalised cells, shapes ``(n, n_genes)`` and ``(m, n_genes)`` with n, m ≥ 2.
    method
        ``"t-test"`` (Welch's) or ``"wilcoxon"`` (rank sum, normal approximation).

    Returns
    -------
    One row per gene, in order: ``log_fold_change``, the difference of means in natural-log units;
    ``score``, Welch's t, or the probability that a treated cell exceeds a control cell minus one
    half; ``p_value``; ``q_value``, adjusted by Benjamini and Hochberg. A gene that is constant
    has score 0 and p = 1.

    Raises
    ------
    ValueError
        If the method is unknown, or the sets have fewer than two cells or other genes.
    """
    check_cells(treated, control)
    treated, control = np.asarray(treated, dtype=float), np.asarray(control, dtype=float)
    if method == "t-test":
        with np.errstate(divide="ignore", invalid="ignore"):
            score, p_value = stats.ttest_ind_from_stats(
                *_moments(treated), *_moments(control), equal_var=False
            )
    elif method == "wilcoxon":
        u, p_value = stats.mannwhitneyu(treated, control, axis=0, method="asymptotic")
        score = u / (len(treated) * len(control)) - 0.5
    else:
        raise ValueError(f"method {method!r} is neither 't-test' nor 'wilcoxon'.")
    p_value = np.nan_to_num(p_value, nan=1.0)
    return pd.DataFrame(
        {
            "log_fold_change": treated.mean(axis=0) - control.mean(axis=0),
            "score": np.where(np.isnan(score), 0.0, score),
            "p_value": p_value,
            "q_value": stats.false_discovery_control(p_value, method="bh"),
        }
    )


def top_k_overlap(true_score: np.ndarray, pred_score: np.ndarray, k: int = 50) -> float:
    r"""Share of the k top genes that are found, :math:`|T_k \cap \hat T_k| / k`.

    Parameters
    ----------
    true_score, pred_score
        Score of each gene, by absolute value; such as the effect, shape ``(n_genes,)``.
    k
        Number of genes.

    Returns
    -------
    In [0, 1]; NaN where there are no more than k genes, all of which would be found, or where
    scores have no order.
    """
    _check_shapes(true_score=true_score, pred_score=pred_score)
    if len(true_score) <= k or np.ptp(true_score) == 0 or np.ptp(pred_score) == 0:
        return float("nan")
    top = [set(np.argsort(-np.abs(s), kind="stable")[:k]) for s in (true_score, pred_score)]
    return len(top[0] & top[1]) / k


def direction_match(
    true_effect: np.ndarray, pred_effect: np.ndarray, significant: np.ndarray
) -> float:
    r"""Share of significant genes whose effect has the right sign.

    .. math:: \frac{1}{|S|} \sum_{g \in S} 1\{\operatorname{sign} \hat d_g =
        \operatorname{sign} d_g\}

    Parameters
    ----------
    true_effect, pred_effect
        Effects, shape ``(n_genes,)``.
    significant
        S, the genes that change significantly in real cells: a mask, shape ``(n_genes,)``.

    Returns
    -------
    In [0, 1]; no effect is no match. NaN where no gene is significant.
    """
    _check_shapes(true_effect=true_effect, pred_effect=pred_effect, significant=significant)
    if not np.any(significant):
        return float("nan")
    same = np.sign(true_effect) == np.sign(pred_effect)
    return float(same[np.asarray(significant, dtype=bool)].mean())


def logfc_spearman(
    true_effect: np.ndarray, pred_effect: np.ndarray, significant: np.ndarray
) -> float:
    r"""Rank correlation of log-fold changes over significant genes.

    :math:`\rho_S(\hat d, d)`, Spearman's ρ over the genes S.

    Parameters
    ----------
    true_effect, pred_effect
        Log-fold changes, shape ``(n_genes,)``.
    significant
        S, the genes that change significantly in real cells: a mask, shape ``(n_genes,)``.

    Returns
    -------
    In [−1, 1]; NaN where fewer than three genes are significant, or all have the same effect.
    """
    _check_shapes(true_effect=true_effect, pred_effect=pred_effect, significant=significant)
    genes = np.asarray(significant, dtype=bool)
    true, pred = true_effect[genes], pred_effect[genes]
    if len(true) < 3 or np.ptp(true) == 0 or np.ptp(pred) == 0:
        return float("nan")
    return float(stats.spearmanr(true, pred).statistic)


def de_jaccard(true_significant: np.ndarray, pred_significant: np.ndarray) -> float:
    r"""Jaccard index of two sets of significant genes, :math:`|S \cap \hat S| / |S \cup \hat S|`.

    Parameters
    ----------
    true_significant, pred_significant
        Masks, shape ``(n_genes,)``.

    Returns
    -------
    In [0, 1]; NaN where both sets are empty.
    """
    _check_shapes(true_significant=true_significant, pred_significant=pred_significant)
    true, pred = np.asarray(true_significant, bool), np.asarray(pred_significant, bool)
    union = int((true | pred).sum())
    return int((true & pred).sum()) / union if union else float("nan")


def _moments(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    return cells.mean(axis=0), cells.std(axis=0, ddof=1), len(cells)
