"""Counts of genes with a given total per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch.distributions import Distribution

#: Numbers of one (n_cells, n_genes) array of a chunk: 16 MiB in double precision.
_BLOCK = 2**21
#: Largest total that single precision holds exactly, and so do all counts below it.
_MAX_TOTAL = 2**24
#: Gamma variables of a smaller shape would underflow to zero, even in double precision.
_MIN_THETA = 1e-4


@torch.no_grad()
def sample_with_totals(
    distribution: Distribution, totals: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    r"""Sample whole counts whose sum over genes is each cell's given total.

    A cell first draws its rates, then spreads its total over the genes in proportion to them:

    .. math:: w_g \sim p(w_g), \qquad
        y \mid N \sim \text{Multinomial}\Big(N, \frac{w}{\sum_h w_h}\Big),

    with :math:`w_g = \mu_g` (Poisson), a gamma variable of mean :math:`\mu_g` and shape
    :math:`\theta_g` (negative binomial), or that and zero with the probability of dropout, but
    never in all genes of a cell (zero-inflated).

    For the Poisson this is its law given the total. With random rates it takes the total for a
    matter of sequencing depth, which says nothing about the cell's rates; Bayes' rule would
    weigh the rates by how likely they make the total. A gene's mean is
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
        Source of random numbers, on the distribution's device; by default torch's, so that
        :func:`torch.manual_seed` fixes the sample.

    Returns
    -------
    Counts, shape ``(..., n_cells, n_genes)``, with the device and the type of the means. The work
    is done in double precision (which MPS lacks: move the distribution to the CPU), in chunks of
    cells whose arrays are 16 MiB or one cell's genes.

    Raises
    ------
    TypeError
        If the distribution is none of counts.
    ValueError
        If totals are not whole, negative, too large or of another shape, or a cell with counts
        has no gene with a positive mean.
    """
    if not isinstance(distribution, NegativeBinomial | Poisson):
        raise TypeError(
            f"{type(distribution).__name__} has no totals to fix: it is not a distribution of "
            "counts. Use the likelihood 'nb', 'zinb' or 'poisson'."
        )
    parameters = [values.reshape(-1, values.shape[-1]) for values in _parameters(distribution)]
    mean = distribution.mean
    total = _check_totals(totals, mean)
    counts = torch.empty_like(parameters[0])
    n_rows = max(1, _BLOCK // mean.shape[-1])
    for start in range(0, len(counts), n_rows):
        rows = slice(start, start + n_rows)
        rates = _draw_rates([values[rows].double() for values in parameters], generator)
        _check_rates(rates, total[rows], start)
        counts[rows] = _spread(rates, total[rows], generator).to(counts.dtype)
    return counts.reshape(mean.shape)


def _parameters(distribution: NegativeBinomial | Poisson) -> tuple[Tensor, ...]:
    """Means, and where there are any inverse dispersions and dropout, all of one shape."""
    if isinstance(distribution, Poisson):
        return (distribution.rate,)
    if isinstance(distribution, ZeroInflatedNegativeBinomial):
        return distribution.mu, distribution.theta, distribution.zi_probs
    return distribution.mu, distribution.theta


def _check_totals(totals: Tensor, mean: Tensor) -> Tensor:
    """Totals of all rows in double precision, ``(n_rows, 1)``."""
    shape = (*mean.shape[:-1], 1)
    try:
        total = torch.broadcast_to(totals, shape).to(mean.device, torch.float64).reshape(-1, 1)
    except RuntimeError as error:
        raise ValueError(
            f"totals has shape {tuple(totals.shape)}, not {shape}: one total per cell."
        ) from error
    # NaN fails every comparison, so it is caught as well.
    wrong = ~((total >= 0) & (total <= _MAX_TOTAL) & (total == total.round()))
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"totals has the value {total[row].item():g} (first: row {row}); pass whole numbers "
            f"from 0 to {_MAX_TOTAL}, such as the sums of a cell's counts."
        )
    return total


def _draw_rates(parameters: list[Tensor], generator: torch.Generator | None) -> Tensor:
    mean, *others = parameters
    if not others:
        return mean
    theta = others[0].clamp(min=_MIN_THETA)
    rates = torch._standard_gamma(theta, generator=generator).mul_(mean).div_(theta)
    if len(others) == 1:
        return rates
    drawn = torch.rand(rates.shape, generator=generator, dtype=rates.dtype, device=rates.device)
    # The gene that is the furthest from dropout stays in any case: some gene has the counts.
    margin = (drawn - others[1]).masked_fill_(mean <= 0, -torch.inf)
    kept = (margin >= 0) | (margin == margin.amax(dim=-1, keepdim=True))
    return rates.mul_(kept)


def _check_rates(rates: Tensor, total: Tensor, start: int) -> None:
    sums = rates.sum(dim=-1, keepdim=True)
    wrong = ~torch.isfinite(sums) | ((sums <= 0) & (total > 0))
    if wrong.any():
        row = start + int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"Row {row} has means that are all zero, or not finite; its counts cannot be spread "
            "over the genes. Check the model and the size it was given."
        )


def _spread(rates: Tensor, total: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a multinomial of each row, by halving its genes.

    Genes are joined in pairs, pairs in pairs of pairs and so on; on the way back each pair's
    count is divided by a binomial. That takes as many binomials as genes, whatever the total.
    """
    levels = [rates]
    while levels[-1].shape[-1] > 1:
        level = levels[-1]
        levels[-1] = pad(level, (0, level.shape[-1] % 2))
        levels.append(levels[-1][:, ::2] + levels[-1][:, 1::2])
    counts = total
    for level in reversed(levels[:-1]):
        first, both = level[:, ::2], level[:, ::2] + level[:, 1::2]
        share = torch.where(both > 0, first / both, 0.0)
        ones = counts[:, : share.shape[-1]].contiguous()
        left = torch.binomial(ones, share, generator=generator)
        counts = torch.stack([left, ones - left], dim=-1).flatten(start_dim=-2)
    return counts[:, : rates.shape[-1]]
