"""How well single cells are predicted, where their counterfactuals are known."""

from __future__ import annotations

import numpy as np

from ._population import _check_shapes


def top_genes(true_effect: np.ndarray, n_top: int = 50) -> np.ndarray:
    """Genes with the largest absolute mean effect, largest first.

    Parameters
    ----------
    true_effect
        Effects, shape ``(n_cells, n_genes)``.
    n_top
        How many genes.
    """
    return np.argsort(-np.abs(true_effect.mean(axis=0)), kind="stable")[:n_top]


def ite_corr(true_effect: np.ndarray, pred_effect: np.ndarray, n_top: int = 50) -> float:
    r"""Correlation over cells of predicted and true individual effects.

    .. math:: \frac{1}{|\mathcal G|} \sum_{g \in \mathcal G}
        \mathrm{corr}_i(\hat\tau_{ig}, \tau_{ig}),
        \quad \tau_{ig} = y_{ig}(t') - y_{ig}(\text{control}),

    over the genes 𝒢 with the largest absolute mean true effect, within *one* stratum. A model that
    predicts group means only scores 0, whatever its R².

    Parameters
    ----------
    true_effect, pred_effect
        Individual effects of the cells of one stratum, shape ``(n_cells, n_genes)``.
    n_top
        Number of genes.

    Returns
    -------
    The mean correlation. A gene with a constant prediction counts 0; a gene with a constant true
    effect has nothing to predict and is left out. NaN if none is left.
    """
    _check_shapes(true_effect=true_effect, pred_effect=pred_effect)
    genes = top_genes(true_effect, n_top)
    true, pred = true_effect[:, genes].astype(float), pred_effect[:, genes].astype(float)
    true, pred = true - true.mean(axis=0), pred - pred.mean(axis=0)
    # A spread at rounding level is a constant.
    tiny = 1e-6
    true_sd, pred_sd = true.std(axis=0), pred.std(axis=0)
    varies = true_sd > tiny
    if not varies.any():
        return float("nan")
    covariance = (true * pred).mean(axis=0)
    safe = np.where(pred_sd > tiny, pred_sd, 1.0) * np.where(varies, true_sd, 1.0)
    corr = np.where(pred_sd > tiny, covariance / safe, 0.0)
    return float(corr[varies].mean())


def per_cell_mse(
    true_expression: np.ndarray, pred_expression: np.ndarray, genes: np.ndarray | None = None
) -> float:
    """Mean squared error over cells and genes.

    Parameters
    ----------
    true_expression, pred_expression
        Counterfactual expression on one scale, shape ``(n_cells, n_genes)``.
    genes
        Positions of the genes to score; all by default.
    """
    _check_shapes(true_expression=true_expression, pred_expression=pred_expression)
    if genes is not None:
        true_expression, pred_expression = true_expression[:, genes], pred_expression[:, genes]
    return float(np.mean((true_expression - pred_expression) ** 2))


def pehe(true_effect: np.ndarray, pred_effect: np.ndarray) -> float:
    r"""Precision in estimating heterogeneous effects, :math:`\sqrt{E(\hat\tau_i - \tau_i)^2}`.

    Parameters
    ----------
    true_effect, pred_effect
        Individual effects, shape ``(n_cells, n_genes)``.
    """
    return float(np.sqrt(per_cell_mse(true_effect, pred_effect)))
