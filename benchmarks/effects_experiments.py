"""Simulated experiments whose effects are known, by regime.

Every experiment draws cells, and a mechanism of its own, from
``scvci.datasets.simulate_perturbation``. The true effect on the mean of log1p expression, for
strata composed as in the sample, is the average over a large sample of the same mechanism (the
same seed) of the exact mean of log1p of a negative binomial at each cell's rate. Effects of donors
multiply the rates; the true effect is then that in the population of donors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, stats

from scvci.datasets import Departures, simulate_perturbation

if TYPE_CHECKING:
    from anndata import AnnData

#: The genes stand for a tenth of each cell's counts, which are normalised to 10,000.
TARGET_SUM = 1e3
#: Cells from which the true effects are averaged.
N_TRUTH = 12_000
#: Spread of library sizes in the simulator (standard deviation of their logarithm).
_SPREAD = 0.3


@dataclass(frozen=True)
class Regime:
    """One kind of experiment.

    Attributes
    ----------
    simulation
        Arguments of the simulator.
    n_small
        Cells per stratum to which treated arms are cut; ``None`` to leave them.
    donors
        ``""`` for none, ``"across"`` (all donors have all arms), ``"partly"`` (two have only
        controls, and two only treated cells) or ``"nested"`` (one arm each).
    n_donors
        Donors, or donors per arm where they are nested.
    donor_effect, donor_response
        Standard deviations of donors' log-fold differences, and of their responses.
    uneven
        Whether donors differ in size.
    """

    simulation: dict[str, Any] = field(default_factory=dict)
    n_small: int | None = None
    donors: str = ""
    n_donors: int = 8
    donor_effect: float = 0.3
    donor_response: float = 0.2
    uneven: bool = False


_BASE = {"n_cells": 1200, "n_genes": 100, "n_strata": 2, "n_treatments": 3, "depth": 250.0}
_NOTHING = {"effect_size": 0.0, "heterogeneity": 0.0, "stratum_interaction": 0.0}
REGIMES = {
    "confounded": Regime({"confounding": 2.0}),
    "30 treated cells": Regime(n_small=30),
    "effects on variance": Regime({"departures": Departures(variance=0.7, threshold=0.7)}),
    "shallow": Regime({"depth": 40.0}),
    "shallow, 30 treated cells": Regime({"depth": 40.0}, n_small=30),
    "no effect": Regime(_NOTHING),
    "no effect, 30 treated cells": Regime(_NOTHING, n_small=30),
    "donors across arms": Regime(donors="across", donor_response=0.4),
    "donors across arms, uneven": Regime(
        donors="across", n_donors=14, donor_response=0.4, uneven=True
    ),
    "donors partly across arms": Regime(donors="partly", n_donors=6, donor_response=0.4),
    "donors nested in arms": Regime(donors="nested", n_donors=6),
    "donors nested in arms, shallow": Regime({"depth": 40.0}, donors="nested", n_donors=6),
    "donors, no effect": Regime(_NOTHING, donors="nested", n_donors=6, donor_response=0.0),
}
ROBUST = {
    "default noise": Regime({"confounding": 2.0}),
    "little noise": Regime({"depth": 50_000.0, "inverse_dispersion": 50.0}),
}


# -- the truth ----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def mean_log1p(depth: float, inverse_dispersion: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean of log1p of normalised counts on a grid of log-rates, exactly."""
    log_rate = np.linspace(np.log(1e-7), np.log(0.7), 160)
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    values = np.zeros(len(log_rate))
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        size = depth * np.exp(_SPREAD * node)
        mean = size * np.exp(log_rate)
        p = inverse_dispersion / (inverse_dispersion + mean)
        for i in range(len(log_rate)):
            low, high = stats.nbinom.ppf([1e-12, 1 - 1e-12], inverse_dispersion, p[i])
            y = np.arange(low, high + 1)
            pmf = stats.nbinom.pmf(y, inverse_dispersion, p[i])
            values[i] += weight * (pmf @ np.log1p(TARGET_SUM * y / size))
    return log_rate, values


def expected_outcome(log_rate: np.ndarray, parameters: dict[str, Any], scale: str) -> np.ndarray:
    """Mean outcome of cells with these log-rates."""
    if scale != "log1p":
        return TARGET_SUM * np.exp(log_rate)
    depth, dispersion = parameters["depth"], parameters["inverse_dispersion"]
    return np.interp(log_rate, *mean_log1p(float(depth), float(dispersion)))


@dataclass(frozen=True)
class Truth:
    """Log-rates of many cells in every world, with effects of donors if there are any."""

    regime: Regime
    parameters: dict[str, Any]
    stratum: np.ndarray
    log_rates: list[np.ndarray]
    silent: np.ndarray

    def means(self, scale: str) -> np.ndarray:
        """Mean outcome, ``(n_strata, n_treatments, n_genes)``."""
        rng = np.random.default_rng(0)
        shape = self.log_rates[0].shape
        donor = rng.normal(size=shape) * self.regime.donor_effect
        means = []
        for t, log_rate in enumerate(self.log_rates):
            if self.regime.donors:
                response = rng.normal(size=shape) * self.regime.donor_response * ~self.silent
                log_rate = log_rate + donor + (response if t else 0)
            outcome = expected_outcome(log_rate, self.parameters, scale)
            means.append([outcome[self.stratum == x].mean(axis=0) for x in range(self.n_strata)])
        return np.array(means).swapaxes(0, 1)

    @property
    def n_strata(self) -> int:
        """Number of strata."""
        return len(self.parameters["strata"])


# -- one experiment -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """Cells of an experiment and what is known about them."""

    outcomes: sparse.csr_matrix
    treatment: np.ndarray
    stratum: np.ndarray
    donor: np.ndarray | None
    log_rates: list[np.ndarray]
    truth: Truth

    @property
    def names(self) -> dict[str, list[str]]:
        """Names in the form that the estimator asks for."""
        parameters = self.truth.parameters
        return {
            "treatments": list(parameters["treatments"]),
            "strata": list(parameters["strata"]),
            "genes": [f"gene{i}" for i in range(self.outcomes.shape[1])],
        }


def _log_rates(adata: AnnData, silent: np.ndarray) -> list[np.ndarray]:
    """Log-rates in every world; silent genes have the reference's in all of them."""
    size = adata.obs["library_size"].to_numpy()[:, None]
    names = adata.uns["simulation"]["treatments"]
    log_rates = [np.log(adata.layers[f"true_{name}"] / size + 1e-12) for name in names]
    for log_rate in log_rates[1:]:
        log_rate[:, silent] = log_rates[0][:, silent]
    return log_rates


def run_experiment(regime: Regime, seed: int) -> Experiment:
    """Draw an experiment and the population that it is a sample of.

    Half of the genes do not respond at all. With one seed the simulator draws one mechanism,
    however many cells are asked for.
    """
    arguments = {**_BASE, **regime.simulation, "seed": seed}
    rng = np.random.default_rng([seed, 1])
    silent = rng.random(arguments["n_genes"]) < 0.5
    many = simulate_perturbation(**{**arguments, "n_cells": N_TRUTH})
    parameters = many.uns["simulation"]
    stratum = many.obs["cell_type"].cat.codes.to_numpy().astype(int)
    truth = Truth(regime, parameters, stratum, _log_rates(many, silent), silent)
    adata = simulate_perturbation(**arguments)
    rows = _cut_arms(adata, regime.n_small, rng)
    adata = adata[rows]
    treatment = adata.obs["treatment"].cat.codes.to_numpy().astype(int)
    size = adata.obs["library_size"].to_numpy()[:, None]
    log_rates = _log_rates(adata, silent)
    donor, effect = _draw_donors(regime, treatment, silent, rng)
    own = np.choose(treatment[:, None], log_rates) + effect
    theta = parameters["inverse_dispersion"]
    counts = rng.poisson(np.exp(own) * size * rng.gamma(theta, 1 / theta, own.shape))
    return Experiment(
        outcomes=sparse.csr_matrix(counts / size * TARGET_SUM),
        treatment=treatment,
        stratum=adata.obs["cell_type"].cat.codes.to_numpy().astype(int),
        donor=donor,
        log_rates=log_rates,
        truth=truth,
    )


def _cut_arms(adata: AnnData, n_small: int | None, rng: np.random.Generator) -> np.ndarray:
    """Rows that stay when every treated arm of a stratum is cut to a number of cells."""
    order = rng.permutation(adata.n_obs)
    if n_small is None:
        return np.sort(order)
    obs = adata.obs.iloc[order]
    rank = obs.groupby(["cell_type", "treatment"], observed=True).cumcount().to_numpy()
    return np.sort(order[(rank < n_small) | (obs["treatment"] == "control").to_numpy()])


def _draw_donors(
    regime: Regime, treatment: np.ndarray, silent: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray | None, np.ndarray]:
    """Donor of each cell, and what it adds to its log-rates."""
    n_cells, n_arms, n_genes = len(treatment), treatment.max() + 1, len(silent)
    if not regime.donors:
        return None, np.zeros((n_cells, n_genes))
    share = np.ones(regime.n_donors)
    if regime.uneven:
        share = np.linspace(0.3, 1.7, regime.n_donors)
    donor = rng.choice(regime.n_donors, n_cells, p=share / share.sum())
    if regime.donors == "partly":
        donor = donor + 2 * (treatment > 0)
    if regime.donors == "nested":
        donor = donor + regime.n_donors * treatment
    n_donors = donor.max() + 1
    effect = rng.normal(size=(n_donors, n_genes)) * regime.donor_effect
    response = rng.normal(size=(n_arms, n_donors, n_genes)) * regime.donor_response
    response[0] = 0
    response[:, :, silent] = 0
    return donor, effect[donor] + response[treatment, donor]
