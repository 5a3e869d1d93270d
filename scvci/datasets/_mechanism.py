"""Structural equations that simulations share: latent states, effects on log-rates, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import softmax

if TYPE_CHECKING:
    from collections.abc import Mapping

STRATA = ("CD4 T", "CD14 Mono", "B", "NK", "CD8 T", "DC")


@dataclass(frozen=True)
class Baseline:
    """What determines the log-rates of an untreated cell.

    Attributes
    ----------
    offset
        Log-rates of a stratum, shape ``(n_strata, n_genes)``.
    loadings, curvature
        Linear and quadratic dependence on the latent state, shape ``(n_latent, n_genes)``.
    latent_mean
        Mean of the latent states of a stratum, shape ``(n_strata, n_latent)``.
    """

    offset: np.ndarray
    loadings: np.ndarray
    curvature: np.ndarray
    latent_mean: np.ndarray

    def log_rate(self, z: np.ndarray, stratum: np.ndarray) -> np.ndarray:
        """Log-rates of untreated cells, shape ``(n_cells, n_genes)``.

        Parameters
        ----------
        z
            Latent states, shape ``(n_cells, n_latent)``.
        stratum
            Stratum of each cell by index.
        """
        curved = 0.5 * (z**2 - 1) @ self.curvature
        return self.offset[stratum] + z @ self.loadings + curved


@dataclass(frozen=True)
class Effects:
    """Changes of log-rates by each treatment; those of the control (index 0) are zero.

    Attributes
    ----------
    additive
        The same for every cell, shape ``(n_treatments, n_genes)``.
    gain
        How far the latent state scales the additive effect, shape ``(n_treatments, n_latent)``.
    interaction
        Linear in the latent state, shape ``(n_treatments, n_latent, n_genes)``.
    by_stratum
        Particular to a stratum, shape ``(n_strata, n_treatments, n_genes)``.
    """

    additive: np.ndarray
    gain: np.ndarray
    interaction: np.ndarray
    by_stratum: np.ndarray

    def add_to(
        self,
        log_rate: np.ndarray,
        z: np.ndarray,
        stratum: np.ndarray,
        treatment: int,
        scale: float = 1.0,
        extra_gain: np.ndarray | float = 0.0,
    ) -> None:
        """Add the effect of a treatment to log-rates, in place.

        Parameters
        ----------
        log_rate
            What to add to, shape ``(n_cells, n_genes)``.
        z, stratum
            Latent state and stratum of each cell.
        treatment
            Index of the treatment.
        scale
            Share of the effect, such as the response to a dose.
        extra_gain
            What else scales the additive effect of each cell, shape ``(n_cells,)``.
        """
        gain = 1 + z @ self.gain[treatment] + extra_gain
        log_rate += scale * (gain[:, None] * self.additive[treatment])
        log_rate += scale * (z @ self.interaction[treatment])
        log_rate += scale * self.by_stratum[stratum, treatment]


def draw_effects(
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int],
    effect_size: float,
    heterogeneity: float,
    stratum_interaction: float,
) -> Effects:
    """Draw effects.

    Parameters
    ----------
    rng
        Source of randomness.
    sizes
        Numbers of genes, strata, treatments (with the control) and latent dimensions.
    effect_size, heterogeneity, stratum_interaction
        Scales of the additive part, of those that depend on z and of that of a stratum.
    """
    n_genes, n_strata, n_treatments, n_latent = sizes
    responds = rng.random((n_treatments, n_genes)) < 0.5
    # Responses are skewed towards activation, so that effects have a mean over genes.
    additive = responds * rng.normal(0.5, 0.9, size=(n_treatments, n_genes)) * effect_size
    gain = rng.normal(0, 0.2, size=(n_treatments, n_latent)) * heterogeneity
    interaction = rng.normal(0, 0.15, size=(n_treatments, n_latent, n_genes)) * heterogeneity
    interaction = interaction * responds[:, None, :]
    by_stratum = rng.normal(0, 1, size=(n_strata, n_treatments, n_genes)) * stratum_interaction
    by_stratum = by_stratum * responds
    for effect in (additive, gain, interaction):
        effect[0] = 0
    by_stratum[:, 0] = 0
    return Effects(additive, gain, interaction, by_stratum)


def draw_baseline(
    rng: np.random.Generator, n_genes: int, n_strata: int, n_latent: int
) -> Baseline:
    """Draw what untreated cells are like.

    Parameters
    ----------
    rng
        Source of randomness.
    n_genes, n_strata, n_latent
        Sizes.
    """
    return Baseline(
        offset=rng.normal(0, 1.0, size=n_genes) + rng.normal(0, 0.5, size=(n_strata, n_genes)),
        loadings=rng.normal(0, 0.25, size=(n_latent, n_genes)),
        curvature=rng.normal(0, 0.05, size=(n_latent, n_genes)),
        latent_mean=rng.normal(0, 0.5, size=(n_strata, n_latent)),
    )


def expected_counts(log_rate: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Library size times the softmax of log-rates, shape ``(n_cells, n_genes)``.

    Parameters
    ----------
    log_rate
        Log-rates, shape ``(n_cells, n_genes)``.
    library
        Library size of each cell.
    """
    rate = softmax(log_rate.astype(np.float32), axis=1)
    return rate * library[:, None].astype(np.float32)


def received(expected: Mapping[str, np.ndarray], treatment: np.ndarray) -> np.ndarray:
    """Pick the expected counts of every cell under the treatment it received.

    Parameters
    ----------
    expected
        Expected counts of every cell in each world, in the order of the codes.
    treatment
        Code of the treatment of each cell.
    """
    own = np.empty_like(next(iter(expected.values())))
    for t, values in enumerate(expected.values()):
        own[treatment == t] = values[treatment == t]
    return own


def draw_counts(
    rng: np.random.Generator, own: np.ndarray, inverse_dispersion: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw negative binomial counts and the frailties behind them.

    Parameters
    ----------
    rng
        Source of randomness.
    own
        Expected counts, shape ``(n_cells, n_genes)``.
    inverse_dispersion
        θ of the negative binomial.
    """
    frailty = rng.standard_gamma(inverse_dispersion, size=own.shape, dtype=np.float32)
    frailty /= np.float32(inverse_dispersion)
    return rng.poisson(own * frailty).astype(np.float32), frailty


def to_anndata(
    counts: np.ndarray,
    obs: Mapping[str, object],
    latent: np.ndarray,
    expected: Mapping[str, np.ndarray],
) -> AnnData:
    """Put a simulation together.

    Parameters
    ----------
    counts
        Counts, shape ``(n_cells, n_genes)``.
    obs
        Columns that describe cells.
    latent
        Latent states, shape ``(n_cells, n_latent)``.
    expected
        Expected counts of every cell in each world.
    """
    n_cells, n_genes = counts.shape
    adata = AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"Gene{i:04d}" for i in range(n_genes)]),
    )
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["latent"] = latent
    for name, values in expected.items():
        adata.layers[f"true_{name}"] = values
    return adata


def numbered(first: tuple[str, ...], n: int, stem: str) -> list[str]:
    """List the first names, and numbered ones where they do not suffice.

    Parameters
    ----------
    first
        Names to begin with.
    n
        How many names.
    stem
        What numbered names begin with.
    """
    return [*first[:n], *(f"{stem}_{i + 1}" for i in range(len(first), n))]


def check_sizes(given: Mapping[str, float], least: Mapping[str, int]) -> None:
    """Refuse sizes that are too small, and a depth or dispersion that is not positive.

    Parameters
    ----------
    given
        Values of the arguments.
    least
        Bounds of those that count something.

    Raises
    ------
    ValueError
        With the name and the value.
    """
    for name, bound in least.items():
        if given[name] < bound:
            raise ValueError(f"{name}={given[name]} must be at least {bound}.")
    for name in ("depth", "inverse_dispersion"):
        if not given[name] > 0:
            raise ValueError(f"{name}={given[name]} must be positive.")
