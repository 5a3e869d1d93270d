"""Adaptive shrinkage: priors of effects as scale mixtures of normals, estimated from genes."""

from __future__ import annotations

import numpy as np

#: Variances of the mixture's parts, relative to the variance over genes.
_GRID = np.array([0.0, *4.0 ** np.arange(-3, 5)])
#: Genes that the weights of all rows together count as in those of one row.
_PRIOR_GENES = 10.0
#: Steps of the common weights, and of those of each row, which start from the former.
_N_STEPS, _N_ROW_STEPS = 30, 20
#: Numbers in an array at a time, and in the estimate of the common weights.
_MAX_NUMBERS = 2_000_000
#: Largest share of an estimate that is kept, so that its variance is finite.
_MOST = 1 - 1e-9


def mixture_variances(estimate: np.ndarray, noise: np.ndarray, variance: float) -> np.ndarray:
    r"""Prior variance of each effect under which a normal prior shrinks as a mixture would.

    A treatment that changes few genes strongly and the others not at all has effects of one
    variance that is wrong for both: noise stays and strong effects go. Effects are therefore taken
    from :math:`\sum_k \pi_k N(0, s_k)` with variances :math:`s_k` from 0 to 256 times that over
    genes (Stephens, 2017). The weights are those of maximum likelihood over all rows, and of each
    row with the former counted as 10 genes. An estimate z with noise v has the posterior mean
    :math:`B z`, and a normal prior of variance :math:`v B / (1 - B)` gives the same.

    Where the noise is larger than stated, strong noise is taken for strong effects: a normal prior
    is the safer one then.

    Parameters
    ----------
    estimate, noise
        Estimates and their sampling variances, shape ``(n_rows, n_genes)``; NaN where there are
        none.
    variance
        Variance of effects over genes, positive.

    Returns
    -------
    Shape ``(n_rows, n_genes)``; ``variance`` where there is no estimate.

    References
    ----------
    Stephens, "False discovery rates: a new deal", Biostatistics 2017.
    """
    n_rows, n_genes = estimate.shape
    parts = _GRID * variance
    known = np.isfinite(estimate) & np.isfinite(noise) & (noise > 0)
    if not known.any():
        return np.full(estimate.shape, variance)
    n_common = min(int(known.sum()), _MAX_NUMBERS // len(parts))
    some = np.random.default_rng(0).permutation(int(known.sum()))[:n_common]
    likelihood = _likelihood(estimate[known][some], noise[known][some], parts)
    common = np.full(len(parts), 1 / len(parts))
    for _ in range(_N_STEPS):
        common = _responsibilities(likelihood, common).mean(axis=0)
    found = np.full(estimate.shape, variance)
    n = max(1, _MAX_NUMBERS // (len(parts) * n_genes))
    for start in range(0, n_rows, n):
        rows = slice(start, start + n)
        z, v, used = estimate[rows], noise[rows], known[rows]
        likelihood = _likelihood(np.where(used, z, 0), np.where(used, v, 1), parts)
        weights = np.repeat(common[None, None], len(z), axis=0)
        for _ in range(_N_ROW_STEPS):
            shares = _responsibilities(likelihood, weights) * used[..., None]
            total = shares.sum(axis=1, keepdims=True) + _PRIOR_GENES * common
            weights = total / total.sum(axis=-1, keepdims=True)
        v = np.where(used, v, 1)
        kept = (_responsibilities(likelihood, weights) * (parts / (parts + v[..., None]))).sum(-1)
        kept = np.minimum(kept, _MOST)
        found[rows] = np.where(used, v * kept / (1 - kept), variance)
    return found


def _likelihood(estimate: np.ndarray, noise: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Likelihood of each estimate under each part of the mixture, up to a factor of its own."""
    total = noise[..., None] + parts
    log = -0.5 * (np.log(total) + estimate[..., None] ** 2 / total)
    return np.exp(log - log.max(axis=-1, keepdims=True))


def _responsibilities(likelihood: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shares = likelihood * weights
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
