"""Which treatments are compared with the reference in which strata, and why some are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ._contrasts import Contrast
from ._overlap import unequal_depth
from ._pseudobulks import Pseudobulks, plan_pseudobulks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._design import Design
    from ._validation import ClusterWeighting, Estimand, Estimator, Scale

    Used = Literal["observed", "robust", "plugin", "extrapolation", "skipped"]

#: Arm of the reference; targets are 1, 2, …, and cells with other treatments come last.
REFERENCE = 0
#: Degrees of freedom below which an error says nothing.
_LEAST_DF = 0.9
#: Most left-out strata that a note names.
_MAX_NAMED = 5


@dataclass(frozen=True)
class Comparison:
    """One treatment against the reference in one group: a row of the table for every gene.

    Attributes
    ----------
    arm, group
        The treatment's arm, and the group.
    estimator
        How the effect is estimated; ``"skipped"`` if it is not.
    units
        Units whose cells are used or, if there is no estimate, all of the group, shape
        ``(n_units,)``.
    n_treated, n_reference, propensity
        Cells of the two arms and the share of cells that received the treatment, in these units.
    note
        Units that were left out, or why there is no estimate.
    contrast, pseudobulks
        What measured cells are compared by, if they are: a difference of means where cells are
        independent or predictions correct it, and weights of pseudobulks where there are clusters.
    depth_ratio
        Mean library size of treated over that of reference cells; NaN if it is not known.
    """

    arm: int
    group: int
    estimator: Used
    units: np.ndarray
    n_treated: int
    n_reference: int
    propensity: float
    note: str
    contrast: Contrast | None = None
    pseudobulks: Pseudobulks | None = None
    depth_ratio: float = float("nan")


@dataclass(frozen=True)
class Rules:
    """What a stratum needs to be used, and what is estimated; see :func:`estimate_effects`."""

    estimand: Estimand
    estimator: Estimator | None
    has_predictions: bool
    min_cells: int
    min_propensity: float
    cluster_weights: ClusterWeighting = "equal"


def make_comparisons(
    design: Design, n_targets: int, n_groups: int, strata: Sequence[str], rules: Rules
) -> list[Comparison]:
    """Choose units, weights and the estimator of every (target, group).

    Parameters
    ----------
    design
        Cells by unit and arm.
    n_targets, n_groups
        Their numbers.
    strata
        Names of the strata, for the notes.
    rules
        What a stratum needs to be used.
    """
    units = [np.flatnonzero(design.group == group) for group in range(n_groups)]
    return [
        _compare(design, arm, group, units[group], strata, rules)
        for arm in range(1, n_targets + 1)
        for group in range(n_groups)
    ]


@dataclass(frozen=True)
class _Part:
    """Units that share an effect: a stratum and its batches, or strata of one cluster each.

    ``size`` counts all of its cells that the estimand is about, ``shared`` the units that have
    both arms, and ``reason`` says why none of it can be used.
    """

    stratum: int
    size: float
    shared: np.ndarray
    reason: str


def _compare(
    design: Design, arm: int, group: int, units: np.ndarray, strata: Sequence[str], rules: Rules
) -> Comparison:
    if rules.estimator == "plugin":
        return _model_based("plugin", design, arm, group, units, rules, "model-based")
    parts = _parts(design, arm, units, rules)
    kept = [part for part in parts if not part.reason]
    reasons = [(strata[part.stratum], part.reason) for part in parts if part.reason]
    if not kept:
        why = _why_none(len(parts), reasons)
        if rules.has_predictions and rules.estimator != "observed":
            return _model_based("extrapolation", design, arm, group, units, rules, why)
        return _make(design, arm, group, units, "skipped", why)
    size = np.array([part.size for part in kept])
    weights, used = size / size.sum(), np.concatenate([part.shared for part in kept])
    effect_of = np.repeat(np.arange(len(kept)), [len(part.shared) for part in kept])
    estimator: Used = rules.estimator or "observed"
    contrast = pseudobulks = None
    if design.clusters is not None:
        arms = arm, REFERENCE
        pseudobulks = plan_pseudobulks(
            design, *arms, used, effect_of, weights, rules.cluster_weights
        )
        if pseudobulks.df < _LEAST_DF:
            return _make(design, arm, group, used, "skipped", "too few clusters for an error")
    if design.clusters is None or estimator == "robust":
        within = _within(design, arm, used, effect_of, rules)
        contrast = Contrast.difference(
            design,
            arm,
            REFERENCE,
            used,
            weights[effect_of] * within,
            with_everyone=estimator == "robust",
        )
    note = _without(parts, reasons, design, arm, units, used, rules)
    return _make(design, arm, group, used, estimator, note, contrast, pseudobulks)


def _parts(design: Design, arm: int, units: np.ndarray, rules: Rules) -> list[_Part]:
    """Units of a group by the effect that they share, and which of them can be used."""
    strata = list(dict.fromkeys(design.stratum[units].tolist()))
    by_stratum = [units[design.stratum[units] == x] for x in strata]
    nested = [_belongs_to_one_cluster(design, arm, members, rules) for members in by_stratum]
    parts = []
    if any(nested):
        together = np.concatenate([u for u, n in zip(by_stratum, nested, strict=True) if n])
        parts.append(_part(design, arm, together, rules))
    alone = [u for u, n in zip(by_stratum, nested, strict=True) if not n]
    return [*parts, *(_part(design, arm, members, rules) for members in alone)]


def _belongs_to_one_cluster(design: Design, arm: int, units: np.ndarray, rules: Rules) -> bool:
    """Whether all cells of a stratum are of one cluster, which has both arms."""
    clusters = design.clusters
    if clusters is None or rules.estimator == "robust":
        return False
    inside = np.isin(clusters.unit, units) & np.isin(clusters.arm, [arm, REFERENCE])
    names = np.unique(clusters.cluster[inside])
    return len(names) == 1 and len(np.unique(clusters.arm[inside])) == 2


def _part(design: Design, arm: int, units: np.ndarray, rules: Rules) -> _Part:
    counts = design.counts[units]
    least = 1 if design.clusters is not None and rules.estimator != "robust" else 2
    both = counts[:, [arm, REFERENCE]]
    # The only batch of a stratum is judged by the numbers of cells that the rules ask for.
    shared = units[both.min(axis=1) >= least] if len(units) > 1 else units
    size = float(_size(design, arm, rules.estimand)[units].sum())
    reason = _reason(design, arm, units, shared, rules)
    return _Part(int(design.stratum[units[0]]), size, shared, reason)


def _within(
    design: Design, arm: int, units: np.ndarray, effect_of: np.ndarray, rules: Rules
) -> np.ndarray:
    """Weights of the batches of a stratum: as precise as their smaller arm lets them be."""
    treated, reference = design.counts[units, arm], design.counts[units, REFERENCE]
    precision = treated if rules.estimand == "att" else treated * reference / (treated + reference)
    return precision / np.bincount(effect_of, weights=precision)[effect_of]


def _without(
    parts: Sequence[_Part],
    reasons: Sequence[tuple[str, str]],
    design: Design,
    arm: int,
    units: np.ndarray,
    used: np.ndarray,
    rules: Rules,
) -> str:
    """Say which share of the cells was left out, and why."""
    size = _size(design, arm, rules.estimand)
    why = [r for r in reasons if any(p.size > 0 and p.reason == r[1] for p in parts)]
    kept = {int(x) for x in design.stratum[used]}
    left = units[~np.isin(units, used)]
    alone = [u for u in left if int(design.stratum[u]) in kept and size[u] > 0]
    share = (size[units].sum() - size[used].sum()) / size[units].sum()
    named = [_listed(why)] if why else []
    if alone:
        named.append(f"{len(alone)} batches that lack one of both treatments")
    return f"without {share:.0%} of cells ({'; '.join(named)})" if named and share > 0 else ""


def with_depth(
    comparisons: Sequence[Comparison], design: Design, library_size: np.ndarray, scale: Scale
) -> list[Comparison]:
    """Add the ratio of the arms' mean library sizes, and say so where they differ.

    Parameters
    ----------
    comparisons
        The comparisons.
    design
        Cells by unit and arm.
    library_size
        Of each cell, shape ``(n_cells,)``.
    scale
        Scale of effects.
    """
    total = (design.cells @ np.asarray(library_size, dtype=float)).reshape(design.counts.shape)
    found = []
    for comparison in comparisons:
        of_arms = total[comparison.units].sum(axis=0)
        n = design.counts[comparison.units].sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = of_arms / n
            ratio = float(mean[comparison.arm] / mean[REFERENCE])
        note = comparison.note
        if unequal_depth(ratio):
            depth = f"treated cells have {ratio:.2g} times the depth of reference cells"
            if scale == "log1p":
                depth += ", which this scale takes for an effect (use 'lfc')"
            note = "; ".join(part for part in (note, depth) if part)
        found.append(replace(comparison, depth_ratio=ratio, note=note))
    return found


def _size(design: Design, arm: int, estimand: Estimand) -> np.ndarray:
    """Cells of each unit that the estimand is about."""
    return design.counts[:, arm] if estimand == "att" else design.counts.sum(axis=1)


def _model_based(
    estimator: Literal["plugin", "extrapolation"],
    design: Design,
    arm: int,
    group: int,
    units: np.ndarray,
    rules: Rules,
    why: str,
) -> Comparison:
    """Average predictions over the cells of the estimand, without an interval."""
    if not _size(design, arm, rules.estimand)[units].sum():
        reason = "no cell received the treatment: there is no effect on the treated"
        note = reason if design.counts[units].sum() else "no cells"
        return _make(design, arm, group, units, "skipped", note)
    what = {"extrapolation": "mean of predictions where too little was measured", "plugin": ""}
    parts = [why, what[estimator], "no design-based interval"]
    note = "; ".join(part for part in parts if part)
    return _make(design, arm, group, units, estimator, note)


def _make(
    design: Design,
    arm: int,
    group: int,
    units: np.ndarray,
    estimator: Used,
    note: str,
    contrast: Contrast | None = None,
    pseudobulks: Pseudobulks | None = None,
) -> Comparison:
    """Count the cells of the units."""
    counts = design.counts[units]
    n = counts.sum()
    return Comparison(
        arm=arm,
        group=group,
        estimator=estimator,
        units=units,
        n_treated=int(counts[:, arm].sum()),
        n_reference=int(counts[:, REFERENCE].sum()),
        propensity=float(counts[:, arm].sum() / n) if n else float("nan"),
        note=note,
        contrast=contrast,
        pseudobulks=pseudobulks,
    )


def _reason(design: Design, arm: int, units: np.ndarray, shared: np.ndarray, rules: Rules) -> str:
    """Say why the cells of a stratum cannot be compared; empty if they can."""
    everyone, counts = design.counts[units].sum(axis=0), design.counts[shared].sum(axis=0)
    for which, name in ((arm, "treated"), (REFERENCE, "reference")):
        n = everyone[which]
        if n < rules.min_cells:
            return f"{n} {name} cells (min_cells={rules.min_cells})" if n else f"no {name} cells"
        if n / everyone.sum() < rules.min_propensity:
            share = f"{n / everyone.sum():.2g} of cells are {name}"
            return f"{share} (min_propensity={rules.min_propensity:g})"
    if not len(shared):
        return "no batch has both treated and reference cells"
    if min(counts[arm], counts[REFERENCE]) < rules.min_cells:
        return f"too few cells in batches with both treatments (min_cells={rules.min_cells})"
    return _too_few_clusters(design, arm, shared, rules)


def _too_few_clusters(design: Design, arm: int, units: np.ndarray, rules: Rules) -> str:
    clusters = design.clusters
    if clusters is None or design.n_clusters is None:
        return ""
    inside = np.isin(clusters.unit, units)
    of_arms = [
        set(clusters.cluster[inside & (clusters.arm == a)].tolist()) for a in (arm, REFERENCE)
    ]
    for found, name in zip(of_arms, ("treated", "reference"), strict=True):
        if len(found) < 2:
            return f"one cluster of {name} cells"
    if rules.estimator == "robust" and design.n_clusters[units][:, [arm, REFERENCE]].min() < 2:
        return "one cluster of treated or reference cells in a batch"
    return ""


def _why_none(n_parts: int, reasons: list[tuple[str, str]]) -> str:
    if not n_parts:
        return "no cells"
    if n_parts == 1:
        return reasons[0][1]
    return f"no stratum with enough cells ({_listed(reasons)})"


def _listed(reasons: Iterable[tuple[str, str]]) -> str:
    """Name the first few strata with their reasons, and count the others."""
    named = [f"{name}: {reason}" for name, reason in reasons]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return ", ".join(named[:_MAX_NAMED]) + more
