"""A simulated screen: doses, combinations and features of agents, with known counterfactuals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci._names import unknown_name_message

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

_CONTROL = "control"
#: Share of genes in which the members of a combination interact.
_EPISTATIC = 0.25


@dataclass(frozen=True)
class _Arm:
    """A condition; members by index from 1, as in the effects, and none for the control."""

    name: str
    treatment: str
    dose: str
    members: tuple[int, ...] = ()
    scale: float = 1.0
    epistasis: np.ndarray | float = 0.0


def simulate_screen(
    n_cells: int = 6000,
    n_genes: int = 300,
    *,
    n_strata: int = 2,
    n_members: int = 6,
    doses: Sequence[float] = (1.0,),
    n_combinations: int = 0,
    interaction: float = 0.3,
    n_features: int = 0,
    feature_share: float = 0.8,
    held_out: Sequence[str] | None = None,
    n_latent: int = 4,
    n_batches: int = 1,
    batch_effect: float = 0.3,
    effect_size: float = 1.0,
    heterogeneity: float = 1.0,
    stratum_interaction: float = 0.25,
    depth: float = 5000.0,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate a screen of agents at several doses, alone and in pairs.

    Cells and counts are as in :func:`simulate_perturbation`. In an arm with members m at doses
    :math:`d_m`, a cell of stratum x has the log-rates

    .. math::

        \eta &= b + c_x + W z + \tfrac12 V (z^2 - 1) + \epsilon
            + \sum_m r_m(d_m) \left( (1 + g_m^\top z)\, \delta_m + A_m z + e_{x, m} \right) \\
        r_m(d) &= \frac{h_m(d)}{h_m(d_\mathrm{max})},
            \quad h_m(d) = \frac{d^{s_m}}{d^{s_m} + k_m^{s_m}}

    Slopes :math:`s_m` are log-normal about 1.5, and half-maximal doses :math:`k_m` log-normal
    about the middle of the doses on the log scale. ε is the epistasis of a combination, 0 in most
    genes.
    Arms have equal numbers of cells, and the control :math:`\sqrt{n}` times as many where there
    are n others, which is best for comparisons with one control (Dunnett 1955). Treatment is
    random.

    Parameters
    ----------
    n_cells, n_genes, n_strata
        Sizes.
    n_members
        Number of agents, beside the control.
    doses
        Doses of every agent.
    n_combinations
        Number of pairs of agents, both at the largest dose; chosen at random.
    interaction
        Standard deviation of ε over genes, as a share of that of the additive effects of the
        agents.
    n_features
        Number of features of an agent that its additive effect depends on.
    feature_share
        Share of the variance of additive effects that is linear in the features; the rest is an
        agent's own.
    held_out
        Arms without a single cell, by name (``"drug_1"``, ``"drug_1+drug_3"``; ``"drug_1@0.3"``
        with more than one dose). A name without doses stands for all doses. Truth of all arms is
        the same whatever is held out.
    n_latent
        Dimensions of z.
    n_batches, batch_effect
        Technical batches (``obs["batch"]``), independent of the arm, and the standard deviation
        of their log-fold changes. A counterfactual stays in the cell's batch.
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
    seed
        Seed of everything.

    Returns
    -------
    Counts in ``X`` and ``layers["counts"]``. In ``obs``: ``treatment`` (``"drug_1"``,
    ``"drug_1+drug_3"`` or ``"control"``), ``dose`` (text, ``"1"`` or ``"1+1"``; ``"0"`` for the
    control), ``cell_type`` and ``library_size``. ``layers["true_<arm>"]``: expected counts of each
    cell in every arm, also in held-out ones. ``obsm["latent"]``: z. ``uns["simulation"]``:
    arguments, ``arms`` (a data frame with ``arm``, ``treatment`` and ``dose``), ``held_out``
    (names of arms), ``members``, ``curves`` (half-maximal dose ``ec50`` and ``slope`` of each
    member) and ``features`` (members × ``f0``, ``f1``, …; if there are any).

    Raises
    ------
    ValueError
        If a size, a dose, a share or the name of a held-out arm makes no sense.

    References
    ----------
    Dunnett (1955), A multiple comparison procedure for comparing several treatments with a
    control, Journal of the American Statistical Association 50.

    Examples
    --------
    >>> adata = scvci.datasets.simulate_screen(
    ...     doses=(0.1, 0.3, 1.0), n_combinations=3, held_out=["drug_1@0.3"]
    ... )
    >>> adata.layers["true_drug_1@0.3"].shape
    (6000, 300)
    """
    parameters = {k: v for k, v in locals().items() if k not in ("held_out", "doses")}
    _check(parameters)
    doses = _check_doses(doses)
    members = numbered((), n_members, "drug")
    strata = numbered(STRATA, n_strata, "type")
    # Sources of their own, so that what is held out and what is combined leave the rest as it is.
    design_rng, pair_rng, cell_rng = np.random.default_rng(seed).spawn(3)
    sizes = (n_genes, n_strata, n_members + 1, n_latent)
    effects = draw_effects(design_rng, sizes, effect_size, heterogeneity, stratum_interaction)
    baseline = draw_baseline(design_rng, n_genes, n_strata, n_latent)
    curves = _draw_curves(design_rng, members, doses)
    features = None
    if n_features:
        features = _draw_features(design_rng, members, n_features)
        _let_features_matter(design_rng, effects, features, feature_share)
    arms = [
        _Arm(_CONTROL, _CONTROL, "0"),
        *_single_arms(members, doses, curves),
        *_combined_arms(pair_rng, members, doses, n_combinations, effects, interaction),
    ]
    absent = _find_held_out(arms, held_out)
    adata = _draw_cells(cell_rng, parameters, strata, baseline, effects, arms, absent)
    adata.uns["simulation"] = {
        **parameters,
        "doses": doses,
        "members": members,
        "strata": strata,
        "control": _CONTROL,
        "arms": _table(arms),
        "held_out": [arm.name for arm in arms if arm.name in absent],
        "curves": curves,
        **({} if features is None else {"features": features}),
    }
    return adata


def _check(given: dict[str, Any]) -> None:
    least = {"n_cells": 1, "n_genes": 2, "n_strata": 1, "n_members": 1, "n_combinations": 0}
    check_sizes(given, {**least, "n_features": 0, "n_latent": 1, "n_batches": 1})
    for name in ("interaction", "batch_effect"):
        if not given[name] >= 0:
            raise ValueError(f"{name}={given[name]} is a standard deviation: at least 0.")
    if not 0 <= given["feature_share"] <= 1:
        raise ValueError(f"feature_share={given['feature_share']} must be from 0 to 1.")
    n_pairs = given["n_members"] * (given["n_members"] - 1) // 2
    if given["n_combinations"] > n_pairs:
        raise ValueError(
            f"n_combinations={given['n_combinations']}, but {given['n_members']} members make "
            f"{n_pairs} pairs. Ask for at most so many, or raise n_members."
        )


def _check_doses(doses: Sequence[float]) -> list[float]:
    """Doses in increasing order."""
    values = sorted(float(d) for d in doses)
    if not values:
        raise ValueError("doses is empty; give at least one, such as (1.0,).")
    for d in values:
        if not 0 < d < np.inf:
            raise ValueError(f"doses has {d:g}; give positive ones, the control is added anyway.")
    texts = [f"{d:g}" for d in values]
    for first, second in zip(texts, texts[1:], strict=False):
        if first == second:
            raise ValueError(f"doses has {first} twice in six digits; arms are named by them.")
    return values


def _draw_curves(rng: np.random.Generator, members: list[str], doses: list[float]) -> pd.DataFrame:
    """Half-maximal dose and slope of each member; nine in ten of the former among the doses."""
    low, high = np.log(doses[0]), np.log(doses[-1])
    noise = rng.normal(size=(2, len(members)))
    ec50 = np.exp((low + high) / 2 + 0.3 * (high - low) * noise[0])
    slope = 1.5 * np.exp(0.3 * noise[1])
    return pd.DataFrame({"ec50": ec50, "slope": slope}, index=members)


def _response(curve: pd.Series, dose: float, largest: float) -> float:
    def hill(d: float) -> float:
        return float(1 / (1 + (curve["ec50"] / d) ** curve["slope"]))

    return hill(dose) / hill(largest)


def _draw_features(rng: np.random.Generator, members: list[str], n_features: int) -> pd.DataFrame:
    values = rng.normal(size=(len(members), n_features))
    return pd.DataFrame(values, index=members, columns=[f"f{i}" for i in range(n_features)])


def _let_features_matter(
    rng: np.random.Generator, effects: Effects, features: pd.DataFrame, share: float
) -> None:
    """Mix into the additive effects, in place, a linear map of the features."""
    own = effects.additive[1:]
    n_features = features.shape[1]
    weights = rng.normal(0, n_features**-0.5, size=(n_features, own.shape[1]))
    linear = features.to_numpy() @ weights * own.std()
    effects.additive[1:] = np.sqrt(share) * linear + np.sqrt(1 - share) * own


def _single_arms(members: list[str], doses: list[float], curves: pd.DataFrame) -> list[_Arm]:
    arms = []
    for i, member in enumerate(members):
        for dose in doses:
            text = f"{dose:g}"
            name = f"{member}@{text}" if len(doses) > 1 else member
            scale = _response(curves.loc[member], dose, doses[-1])
            arms.append(_Arm(name, member, text, (i + 1,), scale))
    return arms


def _combined_arms(
    rng: np.random.Generator,
    members: list[str],
    doses: list[float],
    n_combinations: int,
    effects: Effects,
    interaction: float,
) -> list[_Arm]:
    """Arms of two members at the largest dose, where every member's response is 1."""
    # In an order that does not depend on their number: more combinations are the same and others.
    pairs = rng.permutation(list(combinations(range(1, len(members) + 1), 2)))
    n_genes = effects.additive.shape[1]
    size = interaction * effects.additive[1:].std() / np.sqrt(_EPISTATIC)
    text = f"{doses[-1]:g}"
    arms = []
    for i, j in pairs[:n_combinations].tolist():
        # As text: "drug_10" comes before "drug_2".
        names = sorted((members[i - 1], members[j - 1]))
        dosed = [f"{name}@{text}" for name in names] if len(doses) > 1 else names
        present = rng.random(n_genes) < _EPISTATIC
        epistasis = present * rng.normal(0, size, size=n_genes)
        arms.append(
            _Arm("+".join(dosed), "+".join(names), f"{text}+{text}", (i, j), 1.0, epistasis)
        )
    return arms


def _find_held_out(arms: list[_Arm], held_out: Sequence[str] | None) -> set[str]:
    """Names of arms without cells."""
    if isinstance(held_out, str):
        raise ValueError(f"held_out={held_out!r} is one name; give a list: [{held_out!r}].")
    absent: set[str] = set()
    known = {arm.name for arm in arms[1:]} | {arm.treatment for arm in arms[1:]}
    for name in held_out or ():
        if name not in known:
            raise ValueError(
                unknown_name_message("held_out", name, sorted(known), "no arm of this screen")
                + " Name one as in uns['simulation']['arms'] of the screen without held_out."
            )
        absent |= {arm.name for arm in arms if name in (arm.name, arm.treatment)}
    if len(absent) == len(arms) - 1:
        raise ValueError("held_out leaves no arm beside the control; hold out fewer.")
    return absent


def _allocate(
    rng: np.random.Generator, n_cells: int, arms: list[_Arm], absent: set[str]
) -> np.ndarray:
    """Index of the arm of each cell."""
    present = [i for i, arm in enumerate(arms) if arm.name not in absent][1:]
    n = len(present)
    if n_cells <= n:
        raise ValueError(f"n_cells={n_cells} must be at least {n + 1}, one for each arm.")
    n_control = int(np.clip(round(n_cells / (1 + n**0.5)), 1, n_cells - n))
    arm = np.concatenate([np.zeros(n_control, dtype=int), np.resize(present, n_cells - n_control)])
    return arm[rng.permutation(n_cells)]


def _draw_cells(
    rng: np.random.Generator,
    parameters: dict[str, Any],
    strata: list[str],
    baseline: Baseline,
    effects: Effects,
    arms: list[_Arm],
    absent: set[str],
) -> AnnData:
    n_cells, n_batches = parameters["n_cells"], parameters["n_batches"]
    stratum = rng.integers(len(strata), size=n_cells)
    arm = _allocate(rng, n_cells, arms, absent)
    noise = rng.normal(size=(n_cells, parameters["n_latent"]))
    latent = baseline.latent_mean[stratum] + noise
    library = parameters["depth"] * np.exp(rng.normal(0, 0.3, size=n_cells))
    batch = rng.integers(n_batches, size=n_cells)
    technical = rng.normal(size=(n_batches, parameters["n_genes"])) * parameters["batch_effect"]
    base = baseline.log_rate(latent, stratum)
    if n_batches > 1:
        base += technical[batch]
    expected = {}
    for condition in arms:
        log_rate = base + condition.epistasis
        for member in condition.members:
            effects.add_to(log_rate, latent, stratum, member, condition.scale)
        expected[condition.name] = expected_counts(log_rate, library)
    own = received(expected, arm)
    counts, _ = draw_counts(rng, own, parameters["inverse_dispersion"])
    table = _table(arms)
    obs = {}
    for key in ("treatment", "dose"):
        # In the order of the whole screen, whatever is held out.
        labels = pd.Categorical(table[key], pd.unique(table[key]))
        obs[key] = labels[arm].remove_unused_categories()
    obs["cell_type"] = pd.Categorical.from_codes(stratum, strata)
    obs["library_size"] = library
    if n_batches > 1:
        obs["batch"] = pd.Categorical(batch.astype(str))
    return to_anndata(counts, obs, latent, expected)


def _table(arms: list[_Arm]) -> pd.DataFrame:
    rows = [(arm.name, arm.treatment, arm.dose) for arm in arms]
    index = pd.Index([str(i) for i in range(len(arms))])
    return pd.DataFrame(rows, columns=["arm", "treatment", "dose"], index=index)
