"""Named settings, and how a user's are put on top of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ._config import Architecture, ModuleConfig, Objective
from ._kinds import get_kind
from ._paper import PAPER

if TYPE_CHECKING:
    from ._config import LikelihoodName, PresetName

#: Named settings.
PRESETS: dict[str, ModuleConfig] = {"default": ModuleConfig(), "paper": PAPER}


def build_config(
    preset: PresetName,
    likelihood: LikelihoodName | None = None,
    architecture: dict[str, Any] | None = None,
    weights: dict[str, float] | None = None,
    objective: dict[str, Any] | None = None,
) -> ModuleConfig:
    """Start from a preset and replace what is given.

    Parameters
    ----------
    preset
        Name of the preset.
    likelihood
        Name of the likelihood.
    architecture, objective
        Settings of :class:`Architecture` and :class:`Objective` by name; ``None`` keeps the
        preset's.
    weights
        Weights of the three terms by name.

    Raises
    ------
    ValueError
        If the preset or the name of a setting is unknown.
    """
    config = get_kind(PRESETS, preset, "preset")
    terms = ("individual", "covariate", "divergence")
    if unknown := set(weights or {}) - set(terms):
        raise ValueError(f"Unknown weights {sorted(unknown)}; the terms are {list(terms)}.")
    return replace(
        config,
        likelihood=likelihood or config.likelihood,
        architecture=_updated(config.architecture, architecture, "architecture"),
        objective=_updated(
            config.objective, {**(objective or {}), **(weights or {})}, "objective"
        ),
    )


def _updated[T: (Architecture, Objective)](
    group: T, changes: dict[str, Any] | None, name: str
) -> T:
    """Return ``group`` with the given (not ``None``) settings replaced."""
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    known = {f.name for f in fields(group)}
    if unknown := set(changes) - known:
        raise ValueError(f"Unknown {name} settings {sorted(unknown)}; known are {sorted(known)}.")
    return replace(group, **changes)
