"""A structural causal model of a perturbation experiment with known counterfactuals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import softmax

from ._mechanism import (
    STRATA,
    check_sizes,
    draw_baseline,
    draw_counts,
    draw_effects,
    expected_counts,
    numbered,
    received,
    to_anndata,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._mechanism import Baseline, Effects

_TREATMENTS = ("control", "IFNb", "TNFa", "LPS", "Dex")


@dataclass(frozen=True)
class Departures:
    """What a simulation has that VCI's model does not; none of it by default.

    Attributes
    ----------
    variance
        Standard deviation of the log-factor by which a treatment stretches the latent states of a
        stratum about their mean: effects on variances.
    threshold
        Share of the additive effect that depends on a steep sigmoid of the latent state: at 1 some
        cells respond twice as much and others not at all.
    zero_inflation
        Probability that a gene's counts in a cell are lost. Layers of the truth hold what would be
        expected without loss.
    n_batches, batch_effect
        Technical batches (``obs["batch"]``) and the standard deviation of their log-fold changes.
        A counterfactual stays in the cell's batch.
    """

    variance: float = 0.0
    threshold: float = 0.0
    zero_inflation: float = 0.0
    n_batches: int = 1
    batch_effect: float = 0.0


@dataclass(frozen=True)
class _Mechanism:
    """Parameters of the structural equations; those of a treatment come in the order of names."""

    baseline: Baseline
    effects: Effects
    propensity: np.ndarray
    stretch: np.ndarray
    direction: np.ndarray
    threshold: float


def simulate_perturbation(
    n_cells: int = 6000,
    n_genes: int = 500,
    *,
    n_strata: int = 3,
    n_treatments: int = 5,
    n_latent: int = 4,
    held_out: int | Sequence[tuple[str, str]] | None = None,
    confounding: float = 1.0,
    effect_size: float = 1.0,
    heterogeneity: float = 1.0,
    stratum_interaction: float = 0.25,
    depth: float = 5000.0,
    inverse_dispersion: float = 5.0,
    counterfactual_counts: bool = False,
    departures: Departures | None = None,
    seed: int = 0,
) -> AnnData:
    r"""Simulate cells whose counterfactuals are known.

    Structural equations, for a cell with stratum x:

    .. math::

        z &= \mu_x + u_z, \quad t \sim \mathrm{softmax}(\text{confounding} \cdot a_x) \\
        \eta(z, t) &= b + c_x + W z + \tfrac12 V (z^2 - 1)
            + (1 + g_t^\top z)\, \delta_t + A_t z + e_{x, t} \\
        y &\sim \mathrm{Poisson}(u_\gamma \cdot \ell \cdot \mathrm{softmax}(\eta)),
            \quad u_\gamma \sim \mathrm{Gamma}(\theta, \theta)

    The latent state z, the library size ℓ, the frailties :math:`u_\gamma` of each gene and the
    Poisson noise are the cell's own and the same in every world; only t changes. Treatment
    depends on x and, given x, on nothing else: it is unconfounded within strata.

    Parameters
    ----------
    n_cells, n_genes, n_strata, n_treatments
        Sizes; the control is one of the treatments.
    n_latent
        Dimensions of z.
    held_out
        (treatment, stratum) pairs without a single cell: their number, or the pairs. Every
        treatment keeps at least one stratum.
    confounding
        How much the share of a treatment depends on the stratum; 0 for equal shares.
    effect_size
        Scale of the additive log-fold changes δ.
    heterogeneity
        Scale of the parts of the effect that depend on z (g and A).
    stratum_interaction
        Scale of the part of the effect that is particular to a stratum (e).
    depth
        Median library size.
    inverse_dispersion
        θ of the negative binomial that the counts follow.
    counterfactual_counts
        Whether to add the counts of every world as layers. Worlds share frailties and Poisson
        noise: their counts are nested in a common Poisson process, coupled
        through the factual world.
    departures
        Effects on variances, thresholds, zero inflation and batches.
    seed
        Seed of everything.

    Returns
    -------
    Counts in ``X`` and ``layers["counts"]``; ``obs["treatment"]``, ``obs["cell_type"]`` and
    ``obs["library_size"]`` (ℓ); ``layers["true_<treatment>"]``: expected counts under each
    treatment, for each cell, also of held-out pairs; ``obsm["latent"]``: z; ``uns["simulation"]``:
    parameters and held-out pairs.

    Raises
    ------
    ValueError
        If a size or a held-out pair makes no sense.

    Examples
    --------
    >>> adata = scvci.datasets.simulate_perturbation(held_out=2)
    >>> adata.layers["true_IFNb"].shape
    (6000, 500)
    """
    parameters = {k: v for k, v in locals().items() if k not in ("held_out", "departures")}
    departures = departures or Departures()
    least = {"n_cells": 1, "n_genes": 2, "n_strata": 1, "n_treatments": 2, "n_latent": 1}
    check_sizes(parameters, least)
    treatments = numbered(_TREATMENTS, n_treatments, "drug")
    strata = numbered(STRATA, n_strata, "type")
    rng = np.random.default_rng(seed)
    # Departures draw from a generator of their own: they leave the rest of a simulation as it is.
    own_rng = rng.spawn(1)[0]
    mechanism = _draw_mechanism(
        rng,
        (n_genes, n_strata, n_treatments, n_latent),
        confounding,
        effect_size,
        heterogeneity,
        stratum_interaction,
        own_rng,
        departures,
    )
    pairs = _choose_held_out(rng, held_out, treatments, strata)
    stratum = rng.integers(n_strata, size=n_cells)
    treatment = _assign_treatment(rng, mechanism.propensity, pairs, stratum)
    latent = mechanism.baseline.latent_mean[stratum] + rng.normal(size=(n_cells, n_latent))
    library = depth * np.exp(rng.normal(0, 0.3, size=n_cells))
    batch = own_rng.integers(departures.n_batches, size=n_cells)
    technical = own_rng.normal(size=(departures.n_batches, n_genes)) * departures.batch_effect
    expected = {}
    for t, name in enumerate(treatments):
        log_rate = _log_rate(mechanism, latent, stratum, t) + technical[batch]
        expected[name] = expected_counts(log_rate, library)
    own = received(expected, treatment)
    counts, frailty = draw_counts(rng, own, inverse_dispersion)
    if departures.zero_inflation:
        counts *= own_rng.random(counts.shape, dtype=np.float32) >= departures.zero_inflation
    obs = {
        "treatment": pd.Categorical.from_codes(treatment, treatments),
        "cell_type": pd.Categorical.from_codes(stratum, strata),
        "library_size": library,
    }
    if departures.n_batches > 1:
        obs["batch"] = pd.Categorical(batch.astype(str))
    adata = to_anndata(counts, obs, latent, expected)
    if counterfactual_counts:
        worlds = _couple_counts(rng, counts, own, expected, frailty)
        for name, values in worlds.items():
            adata.layers[f"counts_{name}"] = sparse.csr_matrix(values)
    adata.uns["simulation"] = {
        **parameters,
        **asdict(departures),
        "treatments": treatments,
        "strata": strata,
        "control": treatments[0],
        "held_out": [[treatments[t], strata[x]] for x, t in pairs],
    }
    return adata


def _draw_mechanism(
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int],
    confounding: float,
    effect_size: float,
    heterogeneity: float,
    stratum_interaction: float,
    own_rng: np.random.Generator,
    departures: Departures,
) -> _Mechanism:
    """Draw the parameters."""
    n_genes, n_strata, n_treatments, n_latent = sizes
    effects = draw_effects(rng, sizes, effect_size, heterogeneity, stratum_interaction)
    baseline = draw_baseline(rng, n_genes, n_strata, n_latent)
    preference = rng.normal(0, 0.5, size=(n_strata, n_treatments))
    stretch = np.exp(departures.variance * own_rng.normal(size=n_treatments))
    stretch[0] = 1
    direction = own_rng.normal(size=(n_treatments, n_latent))
    return _Mechanism(
        baseline=baseline,
        effects=effects,
        propensity=softmax(confounding * preference, axis=1),
        stretch=stretch,
        direction=direction / np.linalg.norm(direction, axis=1, keepdims=True),
        threshold=departures.threshold,
    )


def _choose_held_out(
    rng: np.random.Generator,
    held_out: int | Sequence[tuple[str, str]] | None,
    treatments: list[str],
    strata: list[str],
) -> list[tuple[int, int]]:
    """Pairs (stratum, treatment) by index."""
    if held_out is None:
        return []
    n_free = (len(treatments) - 1) * (len(strata) - 1)
    if isinstance(held_out, int):
        if not 0 <= held_out <= n_free:
            raise ValueError(
                f"held_out={held_out} pairs, but every treatment must keep a stratum: at most "
                f"{n_free} of {len(treatments) - 1} treatments × {len(strata)} strata."
            )
        # A random stratum of each treatment stays; any other pair may go.
        kept = rng.integers(len(strata), size=len(treatments))
        free = [
            (x, t) for t in range(1, len(treatments)) for x in range(len(strata)) if x != kept[t]
        ]
        return [free[i] for i in rng.choice(len(free), held_out, replace=False)]
    pairs = []
    for treatment, stratum in held_out:
        if treatment not in treatments[1:]:
            raise ValueError(f"held_out treatment {treatment!r} is not one of {treatments[1:]}.")
        if stratum not in strata:
            raise ValueError(f"held_out stratum {stratum!r} is not one of {strata}.")
        pairs.append((strata.index(stratum), treatments.index(treatment)))
    for t in {t for _, t in pairs}:
        if len({x for x, u in pairs if u == t}) == len(strata):
            raise ValueError(f"held_out leaves no stratum with treatment {treatments[t]!r}.")
    return pairs


def _assign_treatment(
    rng: np.random.Generator,
    propensity: np.ndarray,
    held_out: list[tuple[int, int]],
    stratum: np.ndarray,
) -> np.ndarray:
    propensity = propensity.copy()
    for pair in held_out:
        propensity[pair] = 0
    cumulative = np.cumsum(propensity / propensity.sum(axis=1, keepdims=True), axis=1)
    return (rng.random((len(stratum), 1)) >= cumulative[stratum, :-1]).sum(axis=1)


def _log_rate(
    mechanism: _Mechanism, latent: np.ndarray, stratum: np.ndarray, treatment: int
) -> np.ndarray:
    """Log-rates of every cell in the world of one treatment, ``(n_cells, n_genes)``."""
    center = mechanism.baseline.latent_mean[stratum]
    z = center + mechanism.stretch[treatment] * (latent - center)
    log_rate = mechanism.baseline.log_rate(z, stratum)
    if treatment:
        above = np.tanh(2 * (z - center) @ mechanism.direction[treatment])
        extra_gain = mechanism.threshold * above
        mechanism.effects.add_to(log_rate, z, stratum, treatment, extra_gain=extra_gain)
    return log_rate


def _couple_counts(
    rng: np.random.Generator,
    counts: np.ndarray,
    own: np.ndarray,
    expected: dict[str, np.ndarray],
    frailty: np.ndarray,
) -> dict[str, np.ndarray]:
    """Draw counts of every world, nested with the factual counts in one Poisson process.

    A world with a higher rate keeps the factual molecules and adds some; one with a lower rate
    keeps each of them with the ratio of the rates.
    """
    worlds = {}
    for name, rate in expected.items():
        kept = rng.binomial(counts.astype(np.int64), np.minimum(rate / own, 1.0))
        added = rng.poisson(np.maximum(rate - own, 0) * frailty)
        worlds[name] = (kept + added).astype(np.float32)
    return worlds
