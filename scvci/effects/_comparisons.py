"""Which treatments are compared with the reference in which strata, and why some are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ._contrasts import Contrast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._design import Design
    from ._validation import Estimand, Estimator

    Used = Literal["observed", "robust", "plugin", "extrapolation", "skipped"]

#: Arm of the reference; targets are 1, 2, …, and cells with other treatments come last.
REFERENCE = 0
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
    contrast
        The difference of means, if measured cells are compared.
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


@dataclass(frozen=True)
class Rules:
    """What a unit needs to be used, and what is estimated; see :func:`estimate_effects`."""

    estimand: Estimand
    estimator: Estimator | None
    has_predictions: bool
    min_cells: int
    min_propensity: float


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
        What a unit needs to be used.
    """
    counts = design.counts
    share = counts / counts.sum(axis=1, keepdims=True)
    enough = (counts >= rules.min_cells) & (share >= rules.min_propensity)
    if design.n_clusters is not None:
        enough &= design.n_clusters >= 2
    units = [np.flatnonzero(design.group == group) for group in range(n_groups)]
    return [
        _compare(design, arm, group, units[group], enough, strata, rules)
        for arm in range(1, n_targets + 1)
        for group in range(n_groups)
    ]


def _compare(
    design: Design,
    arm: int,
    group: int,
    units: np.ndarray,
    enough: np.ndarray,
    strata: Sequence[str],
    rules: Rules,
) -> Comparison:
    if rules.estimator == "plugin":
        return _model_based("plugin", design, arm, group, units, rules, "model-based")
    supported = enough[units, arm] & enough[units, REFERENCE]
    kept, dropped = units[supported], units[~supported]
    reasons = _reasons(design, dropped, arm, strata, rules)
    if not len(kept):
        why = _why_none(len(units), reasons)
        if rules.has_predictions and rules.estimator != "observed":
            return _model_based("extrapolation", design, arm, group, units, rules, why)
        return _make(design, arm, group, units, "skipped", why)
    size = _size(design, arm, rules.estimand)
    weights = size[kept] / size[kept].sum()
    estimator = rules.estimator or "observed"
    contrast = Contrast.difference(
        design, arm, REFERENCE, kept, weights, with_everyone=estimator == "robust"
    )
    note = ""
    if (size[dropped] > 0).any():
        share = size[dropped].sum() / size[units].sum()
        named = _listed(r for r, n in zip(reasons, size[dropped], strict=True) if n)
        note = f"without {share:.0%} of cells ({named})"
    return _make(design, arm, group, kept, estimator, note, contrast)


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
    )


def _reasons(
    design: Design, units: np.ndarray, arm: int, strata: Sequence[str], rules: Rules
) -> list[tuple[str, str]]:
    """Names of the strata of units that cannot be used, and why."""
    return [(strata[design.stratum[u]], _reason(design, int(u), arm, rules)) for u in units]


def _reason(design: Design, unit: int, arm: int, rules: Rules) -> str:
    counts = design.counts[unit]
    for which, name in ((arm, "treated"), (REFERENCE, "reference")):
        n = counts[which]
        if n < rules.min_cells:
            return f"{n} {name} cells (min_cells={rules.min_cells})" if n else f"no {name} cells"
        share = n / counts.sum()
        if share < rules.min_propensity:
            return f"{share:.2g} of cells are {name} (min_propensity={rules.min_propensity:g})"
        if design.n_clusters is not None and design.n_clusters[unit, which] < 2:
            return f"one cluster of {name} cells"
    return ""


def _why_none(n_units: int, reasons: list[tuple[str, str]]) -> str:
    if not n_units:
        return "no cells"
    if n_units == 1:
        return reasons[0][1]
    return f"no stratum with enough cells ({_listed(reasons)})"


def _listed(reasons: Iterable[tuple[str, str]]) -> str:
    """Name the first few strata with their reasons, and count the others."""
    named = [f"{name}: {reason}" for name, reason in reasons]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return ", ".join(named[:_MAX_NAMED]) + more
