"""All scores of one prediction for one (treatment, stratum)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._de import (
    de_jaccard,
    differential_expression,
    direction_match,
    logfc_spearman,
    top_k_overlap,
)
from ._discrimination import centroid_accuracy, perturbation_discrimination
from ._distributions import covariance_error, energy_distance, mmd
from ._individual import ite_corr, pehe, per_cell_mse, top_genes
from ._population import (
    cosine_logfc,
    l2_top_expressed,
    pearson_delta,
    r2_delta,
    r2_means,
    r2_variances,
    systema_reference,
)

#: Metrics of :func:`evaluate` by name, and whether more is better.
METRICS: dict[str, bool] = {
    "r2_means": True,
    "r2_means_top50": True,
    "r2_delta": True,
    "pearson_delta": True,
    "pearson_delta_systema": True,
    "cosine_logfc": True,
    "l2_top1000": False,
    "centroid_accuracy": True,
    "pds_cosine": True,
    "pds_l1": True,
    "pds_l2": True,
    "de_overlap_50": True,
    "de_direction_match": True,
    "de_spearman": True,
    "de_jaccard": True,
    "r2_variances": True,
    "energy_distance": False,
    "mmd": False,
    "covariance_error": False,
    "agreement": True,
    "ite_corr": True,
    "mse": False,
    "mse_top50": False,
    "pehe": False,
}
#: A gene responds where its q-value is below.
ALPHA = 0.05
_N_TOP = 50


@dataclass(frozen=True)
class PairReference:
    """What predictions for one (treatment, stratum) are held to.

    Attributes
    ----------
    mean, control
        Pseudobulks of the treated and of the control cells, shape ``(n_genes,)``.
    treatments, index
        Pseudobulks of all treatments of the stratum but the control, and which of them this is.
    top
        Positions of the top genes, which were not chosen on the cells of ``mean``.
    significant
        Mask of the genes that change in real cells; ``None`` where cells are without noise.
    """

    mean: np.ndarray
    control: np.ndarray
    treatments: np.ndarray
    index: int
    top: np.ndarray
    significant: np.ndarray | None


def score_means(reference: PairReference, guess: np.ndarray) -> dict[str, float]:
    """Score a predicted pseudobulk, shape ``(n_genes,)``."""
    true, base, top = reference.mean, reference.control, reference.top
    # A change added to the control may fall below zero counts.
    positive = np.maximum(guess, 0)
    scores = {
        "r2_means": r2_means(true, guess),
        "r2_delta": r2_delta(true, guess, base),
        "pearson_delta": pearson_delta(true, guess, base),
        "cosine_logfc": cosine_logfc(np.expm1(true), np.expm1(positive), np.expm1(base)),
        "l2_top1000": l2_top_expressed(true, guess, base),
        "de_overlap_50": top_k_overlap(true - base, guess - base, _N_TOP),
    }
    if 1 < len(top) < len(true):
        scores["r2_means_top50"] = r2_means(true[top], guess[top])
    if reference.significant is not None:
        effects = (true - base, guess - base, reference.significant)
        scores["de_direction_match"] = direction_match(*effects)
        scores["de_spearman"] = logfc_spearman(*effects)
    return scores | _score_discrimination(reference, guess)


def _score_discrimination(reference: PairReference, guess: np.ndarray) -> dict[str, float]:
    means, base, index = reference.treatments, reference.control, reference.index
    if len(means) < 2:
        return {}
    systema = systema_reference(means)
    scores = {
        "pearson_delta_systema": pearson_delta(reference.mean, guess, systema),
        "centroid_accuracy": centroid_accuracy(guess, means, index),
    }
    for metric in ("cosine", "l1", "l2"):
        scores[f"pds_{metric}"] = perturbation_discrimination(
            guess - base, means - base, index, metric
        )
    return scores


def score_distributions(
    reference: PairReference,
    true: np.ndarray,
    guess: np.ndarray,
    rng: np.random.Generator,
    most: int,
) -> dict[str, float]:
    """Score predicted against real log-normalised cells.

    Distances are taken between at most ``most`` cells a side, on the top genes, and so are
    covariances, of all cells. Principal components would favour the cells that they were fitted
    to.
    """
    if min(len(true), len(guess)) < 2:
        return {}
    genes = reference.top if len(reference.top) else np.arange(true.shape[1])
    true_top, guess_top = true[:, genes], guess[:, genes]
    x, y = (
        cells[rng.permutation(len(cells))[:most]] if len(cells) > most else cells
        for cells in (true_top, guess_top)
    )
    return {
        "r2_variances": r2_variances(true, guess),
        "energy_distance": energy_distance(x, y),
        "mmd": mmd(x, y),
        "covariance_error": covariance_error(true_top, guess_top),
    }


def score_significance(
    significant: np.ndarray, guess: np.ndarray, control: np.ndarray
) -> dict[str, float]:
    """Compare the genes that change in predicted cells with those that do in real cells."""
    if min(len(guess), len(control)) < 2:
        return {}
    found = differential_expression(guess, control)["q_value"].to_numpy() < ALPHA
    return {"de_jaccard": de_jaccard(significant, found)}


def score_cells(
    true: np.ndarray, guess: np.ndarray, true_control: np.ndarray, guess_control: np.ndarray
) -> dict[str, float]:
    """Score log-normalised counterfactuals of single cells against the known ones."""
    effect, guessed = true - true_control, guess - guess_control
    top = top_genes(effect, _N_TOP)
    scores = {
        "ite_corr": ite_corr(effect, guessed, _N_TOP),
        "mse": per_cell_mse(true, guess),
        "pehe": pehe(effect, guessed),
    }
    if len(top) < true.shape[1]:
        scores["mse_top50"] = per_cell_mse(true, guess, top)
    return scores
