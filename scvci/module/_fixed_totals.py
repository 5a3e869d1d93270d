"""Counts of genes with a given total per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution

#: Largest total that single precision holds exactly, and so do all counts below it.
_MAX_TOTAL = 2**24
#: Smallest shape of the gamma variables, and smallest rate before it is multiplied by the mean:
#: with too small a shape all rates of a cell would underflow to zero.
_MIN_THETA, _MIN_RATE = 1e-4, 1e-280


@torch.no_grad()
def sample_with_totals(
    distribution: Distribution, totals: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    r"""Sample whole counts whose sum over genes is each cell's given total.

    First the cell's rates are drawn, then its total is spread over the genes in proportion to
    them:

    .. math:: w_g \sim p(w_g), \qquad
        y \mid N \sim \text{Multinomial}\Big(N, \frac{w}{\sum_h w_h}\Big),

    with :math:`w_g = \mu_g` (Poisson), a gamma variable of mean :math:`\mu_g` and shape
    :math:`\theta_g` (negative binomial), or that and zero with the probability of dropout, but
    never in all genes of a cell (zero-inflated).

    For the Poisson this is the distribution given the total. Where rates are random, the total is
    taken for a matter of sequencing depth, which says nothing about the rates; Bayes' rule would
    weigh them by how likely they make the total. A gene's mean is
    :math:`N \operatorname{E}[w_g / \sum_h w_h]`, in proportion to its mean under the
    distribution as long as no gene with a small :math:`\theta` has much of the total.

    Parameters
    ----------
    distribution
        Poisson, negative binomial or zero-inflated negative binomial of scvi-tools, batch shape
        ``(..., n_cells, n_genes)``.
    totals
        Whole numbers, shape ``(n_cells, 1)`` or anything that broadcasts to
        ``(..., n_cells, 1)``; at most 2²⁴, as single precision counts no further.
    generator
        Source of the sample's seed; by default torch's, so that :func:`torch.manual_seed` fixes
        the sample.

    Returns
    -------
    Counts, shape ``(..., n_cells, n_genes)``, with the device and the type of the means. The work
    is done by numpy, in double precision on the CPU.

    Raises
    ------
    TypeError
        If the distribution is not one of counts.
    ValueError
        If totals are not whole, negative, too large or of another shape, or a cell with counts
        has no gene with a positive mean.
    """
    if not isinstance(distribution, NegativeBinomial | Poisson):
        raise TypeError(
            f"{type(distribution).__name__} has no totals to fix: it is not a distribution of "
            "counts. Use the likelihood 'nb', 'zinb' or 'poisson'."
        )
    parameters = [p.double().cpu().numpy() for p in _parameters(distribution)]
    mean = distribution.mean
    total = _check_totals(totals, mean)
    source = "cpu" if generator is None else generator.device
    seed = torch.randint(2**63 - 1, (), generator=generator, device=source)
    rng = np.random.default_rng(int(seed))
    rates = _draw_rates(*parameters, rng=rng)
    shares = _shares(rates, total)
    counts = rng.multinomial(total, shares)
    return torch.as_tensor(counts).to(mean.device, mean.dtype)


def _parameters(distribution: NegativeBinomial | Poisson) -> tuple[Tensor, ...]:
    """Means, and where there are any inverse dispersions and dropout, all of one shape."""
    if isinstance(distribution, Poisson):
        return (distribution.rate,)
    if isinstance(distribution, ZeroInflatedNegativeBinomial):
        return distribution.mu, distribution.theta, distribution.zi_probs
    return distribution.mu, distribution.theta


def _check_totals(totals: Tensor, mean: Tensor) -> np.ndarray:
    """Totals of all cells as whole numbers, shape ``(..., n_cells)``."""
    shape = (*mean.shape[:-1], 1)
    try:
        total = torch.broadcast_to(totals, shape).double().cpu().numpy()[..., 0]
    except RuntimeError as error:
        raise ValueError(
            f"totals has shape {tuple(totals.shape)}, not {shape}: one total per cell."
        ) from error
    # NaN fails every comparison, so it is caught as well.
    wrong = ~((total >= 0) & (total <= _MAX_TOTAL) & (total == np.round(total)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"totals has the value {total.flat[row]:g} (first: row {row}); pass whole numbers "
            f"from 0 to {_MAX_TOTAL}, such as the sums of a cell's counts."
        )
    return total.astype(np.int64)


def _draw_rates(
    mean: np.ndarray,
    theta: np.ndarray | None = None,
    dropout: np.ndarray | None = None,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rates of each cell's genes, all arrays of shape ``(..., n_cells, n_genes)``."""
    if theta is None:
        return mean
    theta = np.maximum(theta, _MIN_THETA)
    rates = np.maximum(rng.standard_gamma(theta), _MIN_RATE) / theta * mean
    if dropout is None:
        return rates
    # The gene that is the furthest from dropout stays in any case: some gene has the counts.
    margin = np.where(mean > 0, rng.random(rates.shape) - dropout, -np.inf)
    kept = (margin >= 0) | (margin == margin.max(axis=-1, keepdims=True))
    return rates * kept


def _shares(rates: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Rates as shares of their sum; those of a cell without counts do not matter."""
    sums = rates.sum(axis=-1)
    wrong = ~np.isfinite(sums) | ((sums <= 0) & (total > 0))
    if wrong.any():
        raise ValueError(
            f"Row {np.flatnonzero(wrong)[0]} has means that are all zero, or not finite; its "
            "counts cannot be spread over the genes. Check the model and the size it was given."
        )
    return rates / np.where(sums > 0, sums, 1.0)[..., None]
