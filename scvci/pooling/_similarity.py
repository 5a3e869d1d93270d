"""How much each measured treatment says about one that was not measured, by their features."""

from __future__ import annotations

import numpy as np

#: Penalties in units of the kernel's mean diagonal, from the one that ignores features.
_PENALTIES = (np.inf, *np.logspace(2, -3, 11))


def similarity_weights(
    features: np.ndarray,
    effects: np.ndarray,
    query: np.ndarray,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    r"""Weights by which measured effects add up to the effect of an unmeasured treatment.

    Effects are modelled as :math:`e_i = \mu + f(x_i) + \varepsilon_i`, where :math:`f` is linear
    in standardised features (ordinary kriging with the kernel :math:`K = Z Z^\top / p`) and
    :math:`\varepsilon_i` has variance :math:`\lambda r_i`. With
    :math:`P = (K + \lambda\,\mathrm{diag}(r))^{-1}` the weights of a query with similarities
    :math:`k` are

    .. math:: w = P k + \frac{P 1}{1^\top P 1} (1 - 1^\top P k).

    The penalty :math:`\lambda` is the strongest whose leave-one-out error is within one standard
    error of the least. So features that say nothing about effects are mostly ignored, and the
    prediction is then the mean effect.

    Parameters
    ----------
    features
        Features of the measured treatments, shape ``(n_members, n_features)``. Columns without
        variance are ignored.
    effects
        Their effects, shape ``(n_members, n_genes)``, in any unit.
    query
        Features of the unmeasured treatments, shape ``(n_query, n_features)``.
    noise
        Sampling variances of ``effects``, shape ``(n_members,)`` or ``(n_members, n_genes)``, in
        the square of their unit. A member's :math:`r_i` is then its sampling variance plus the
        variance of effects beyond noise; by default all are equal.

    Returns
    -------
    Shape ``(n_query, n_members)``; rows sum to one, and weights can be negative. The prediction is
    ``weights @ effects``. Without use of the features and without ``noise`` each weight is
    ``1 / n_members``.

    Raises
    ------
    ValueError
        If shapes do not fit, there is no member, or a value is not finite.

    References
    ----------
    Dubrule, "Cross validation of kriging in a unique neighborhood", Mathematical Geology 15
    (1983), for the leave-one-out errors.
    """
    features, effects, query = (np.asarray(a, dtype=float) for a in (features, effects, query))
    _check(features, effects, query)
    n_members = len(features)
    if n_members == 1:
        return np.ones((len(query), 1))
    spread = _relative_variances(effects, noise)
    own, other = _standardise(features, query)
    n_features = max(own.shape[1], 1)
    kernel, cross = own @ own.T / n_features, other @ own.T / n_features
    penalty = _choose_penalty(kernel, effects, spread)
    precision = np.linalg.inv(kernel / penalty + np.diag(spread))
    mean_weights = precision.sum(axis=0) / precision.sum()
    weights = (cross / penalty) @ precision
    return weights + (1 - weights.sum(axis=1, keepdims=True)) * mean_weights


def _check(features: np.ndarray, effects: np.ndarray, query: np.ndarray) -> None:
    for name, array in (("features", features), ("effects", effects), ("query", query)):
        if array.ndim != 2:
            raise ValueError(f"{name} must have two dimensions; its shape is {array.shape}.")
        if not np.isfinite(array).all():
            row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(array)))
            raise ValueError(
                f"{name} has a NaN or infinite value (row {row}, column {column}); leave that "
                "treatment out or mend the value."
            )
    if len(features) == 0:
        raise ValueError("There is no measured treatment, so no effect to weigh.")
    if len(effects) != len(features) or query.shape[1] != features.shape[1]:
        raise ValueError(
            f"Shapes do not fit: features {features.shape}, effects {effects.shape}, query "
            f"{query.shape}. Features and effects need a row for each member, features and query "
            "the same columns."
        )


def _standardise(features: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale both by the members' moments, without the columns that do not vary."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # The standard deviation of a constant is not exactly zero in floating point.
    varies = scale > 1e-10 * np.abs(features).max(axis=0)
    mean, scale = mean[varies], scale[varies]
    return (features[:, varies] - mean) / scale, (query[:, varies] - mean) / scale


def _relative_variances(effects: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """Variance of each member's effect about the mean, with an average of one."""
    n_members = len(effects)
    if noise is None:
        return np.ones(n_members)
    noise = np.asarray(noise, dtype=float)
    if noise.shape not in ((n_members,), effects.shape):
        raise ValueError(
            f"noise has the shape {noise.shape}; it must be ({n_members},) or {effects.shape}, as "
            "the effects."
        )
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise ValueError("noise holds variances: they must be finite and not negative.")
    sampling = noise.reshape(n_members, -1).mean(axis=1)
    total = effects.var(axis=0, ddof=1).mean()
    # A floor keeps one member with little noise from taking all the weight.
    beyond = max(total - sampling.mean(), 0.05 * max(total, sampling.mean()))
    variance = beyond + sampling
    return variance / variance.mean() if variance.any() else np.ones(n_members)


def _choose_penalty(kernel: np.ndarray, effects: np.ndarray, spread: np.ndarray) -> float:
    """Strongest penalty that is not clearly worse than the best.

    The least of several noisy errors is often that of a weak penalty by luck alone; the
    differences between the errors of the same members say how much luck there is.
    """
    centred = effects - effects.mean(axis=0)
    products = centred @ centred.T
    errors = np.array([_left_out_errors(kernel / p, products, spread) for p in _PENALTIES])
    means = errors.mean(axis=1)
    excess = errors - errors[means.argmin()]
    allowed = excess.std(axis=1, ddof=1) / np.sqrt(len(kernel))
    # Rounding must not decide between equal errors, as those of two members are.
    enough = excess.mean(axis=1) <= allowed + 1e-6 * means.min()
    return float(_PENALTIES[int(np.argmax(enough))])


def _left_out_errors(kernel: np.ndarray, products: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Squared error of each member's effect from the others', summed over genes.

    Parameters
    ----------
    kernel
        Kernel over the penalty, shape ``(n_members, n_members)``.
    products
        Products of the centred effects, ``(n_members, n_members)``.
    spread
        Relative variances, ``(n_members,)``.

    Returns
    -------
    Shape ``(n_members,)``, over the relative variances, so that noisy members count less.
    """
    precision = np.linalg.inv(kernel + np.diag(spread))
    rows = precision.sum(axis=0)
    contrast = precision - np.outer(rows, rows) / rows.sum()
    squared = ((contrast @ products) * contrast).sum(axis=1) / np.diag(contrast) ** 2
    return squared / spread
