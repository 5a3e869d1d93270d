"""Whether a prediction can be told from the effects of the other treatments."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

_DISTANCES = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}


def centroid_accuracy(pred_mean: np.ndarray, true_means: np.ndarray, index: int) -> float:
    r"""Share of other treatments whose centroid is farther from the prediction (Systema, 2025).

    .. math:: \frac{1}{n - 1} \sum_{s \ne t}
        1\{\|\hat m_t - m_s\|_2 > \|\hat m_t - m_t\|_2\}

    Parameters
    ----------
    pred_mean
        Predicted mean of one treatment, shape ``(n_genes,)``.
    true_means
        Means of the real cells of all treatments but the control, ``(n_treatments, n_genes)``.
    index
        Which of them was predicted.

    Returns
    -------
    In [0, 1]; NaN where there is no other treatment.
    """
    own, others = _distances(pred_mean, true_means, index, "l2")
    return float((others > own).mean()) if len(others) else float("nan")


def perturbation_discrimination(
    pred_effect: np.ndarray, true_effects: np.ndarray, index: int, metric: str = "cosine"
) -> float:
    r"""Perturbation discrimination score, :math:`1 - k / (n - 1)` (Virtual Cell Challenge).

    k is the rank, from 0, of the true effect among the n real effects by their distance to the
    predicted one. Ties share the average of their ranks, so a prediction without information
    scores 0.5. No gene is left out.

    Parameters
    ----------
    pred_effect
        Predicted effect of one treatment, shape ``(n_genes,)``.
    true_effects
        Real effects of all treatments, shape ``(n_treatments, n_genes)``.
    index
        Which of them was predicted.
    metric
        ``"cosine"``, ``"l1"`` or ``"l2"``; the three rank models differently. The cosine distance
        to an effect of zero is 1.

    Returns
    -------
    In [0, 1]; NaN where there is no other treatment.

    Raises
    ------
    ValueError
        If the metric is unknown.
    """
    own, others = _distances(pred_effect, true_effects, index, metric)
    if not len(others):
        return float("nan")
    rank = (others < own).sum() + 0.5 * (others == own).sum()
    return float(1 - rank / len(others))


def _distances(
    pred: np.ndarray, true: np.ndarray, index: int, metric: str
) -> tuple[float, np.ndarray]:
    """Distance from the prediction to its own truth and to the others."""
    if metric not in _DISTANCES:
        raise ValueError(f"metric {metric!r} is none of {sorted(_DISTANCES)}.")
    if np.ndim(true) != 2 or np.shape(true)[1:] != np.shape(pred):
        raise ValueError(
            f"Shapes differ: a prediction of {np.shape(pred)} and real ones of {np.shape(true)}; "
            "need (n_genes,) and (n_treatments, n_genes)."
        )
    distance = cdist(pred[None], true, _DISTANCES[metric])[0]
    # A vector of zeros has no direction: as far from all others as an orthogonal one.
    distance = np.nan_to_num(distance, nan=1.0) if metric == "cosine" else distance
    return float(distance[index]), np.delete(distance, index)
