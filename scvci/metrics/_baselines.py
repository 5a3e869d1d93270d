"""The trivial baselines that have to stand beside every model.

All work on a table of means of shape ``(n_strata, n_treatments, n_genes)`` with NaN for pairs that
were never observed, and return a table of the same shape with a prediction for every pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def no_change(means: np.ndarray, control: int = 0) -> np.ndarray:
    """Predict the stratum's own control under every treatment.

    Parameters
    ----------
    means
        Table of means, see the module's description.
    control
        Index of the control.
    """
    _check_table(means)
    return np.repeat(means[:, [control]], means.shape[1], axis=1)


def treatment_mean(means: np.ndarray, control: int = 0) -> np.ndarray:
    """Predict the mean of the treatment over the other strata, or the only one there is.

    Parameters
    ----------
    means, control
        See :func:`no_change`.
    """
    _check_table(means)
    return _mean_over_other_strata(means)


def additive(means: np.ndarray, control: int = 0) -> np.ndarray:
    r"""Predict own control plus the mean effect in the other strata, :math:`c_x + \bar d_t`.

    Parameters
    ----------
    means, control
        See :func:`no_change`.
    """
    _check_table(means)
    base = means[:, [control]]
    return base + _mean_over_other_strata(means - base)


def low_rank_linear(
    means: np.ndarray, control: int = 0, n_components: int = 10, ridge: float = 0.1
) -> np.ndarray:
    r"""Linear model with gene and treatment components (Ahlmann-Eltze et al., 2025).

    .. math:: \hat W = \arg\min_W \|Y - (G W P^\top + b)\|^2 + \text{ridge} \|W\|^2

    with Y the effects of observed pairs, G their first principal gene components, P the first
    principal treatment components with a one-hot code of the stratum beside them, and b the mean
    effect. Each pair is predicted by a fit without that pair.

    Parameters
    ----------
    means, control
        See :func:`no_change`.
    n_components
        Components of genes and of treatments.
    ridge
        Penalty.
    """
    _check_table(means)
    effects = means - means[:, [control]]
    n_strata, n_treatments, n_genes = means.shape
    prediction = np.full_like(means, np.nan)
    pairs = [(x, t) for x in range(n_strata) for t in range(n_treatments) if t != control]
    for x, t in pairs:
        train = [p for p in pairs if p != (x, t) and np.isfinite(effects[p]).all()]
        if not any(u == t for _, u in train):
            continue
        prediction[x, t] = _low_rank_effect(effects, train, (x, t), n_components, ridge)
    prediction[:, control] = 0
    return means[:, [control]] + prediction


def _low_rank_effect(
    effects: np.ndarray,
    train: list[tuple[int, int]],
    pair: tuple[int, int],
    n_components: int,
    ridge: float,
) -> np.ndarray:
    """Effect of one pair from a fit to the others."""
    y = np.stack([effects[p] for p in train])
    center = y.mean(axis=0)
    genes = np.linalg.svd(y - center, full_matrices=False)[2][:n_components]
    treatments = sorted({t for _, t in train})
    profiles = np.stack([y[[u == t for _, u in train]].mean(axis=0) for t in treatments])
    left, scale, _ = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)
    components = (left * scale)[:, :n_components]
    components = components / max(float(np.abs(components).max()), 1e-12)

    def code(x: int, t: int) -> np.ndarray:
        return np.concatenate([components[treatments.index(t)], np.eye(len(effects))[x]])

    p = np.stack([code(*q) for q in train])
    scores = (y - center) @ genes.T
    w = np.linalg.solve(p.T @ p + ridge * np.eye(p.shape[1]), p.T @ scores)
    return center + code(*pair) @ w @ genes


#: Baselines by name.
BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "no change": no_change,
    "treatment mean": treatment_mean,
    "additive": additive,
    "low-rank linear": low_rank_linear,
}


def _mean_over_other_strata(table: np.ndarray) -> np.ndarray:
    observed = np.isfinite(table)
    total = np.where(observed, table, 0).sum(axis=0)
    n = observed.sum(axis=0)
    own = np.where(observed, table, 0)
    n_other = n - observed
    with np.errstate(invalid="ignore", divide="ignore"):
        other = (total - own) / n_other
    return np.where(n_other > 0, other, table)


def _check_table(means: np.ndarray) -> None:
    if np.ndim(means) != 3:
        raise ValueError(
            f"means must have shape (n_strata, n_treatments, n_genes); got {np.shape(means)}."
        )
