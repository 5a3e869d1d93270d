"""Named settings, and how a user's are put on top of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ._config import Architecture, ImageArchitecture, ImageConfig, ModuleConfig, Objective
from ._kinds import get_kind
from ._paper import PAPER

if TYPE_CHECKING:
    from ._config import PresetName

#: Named settings.
PRESETS: dict[str, ModuleConfig] = {"default": ModuleConfig(), "paper": PAPER}


def build_config[C: (ModuleConfig, ImageConfig)](
    config: C,
    likelihood: str | None = None,
    architecture: dict[str, Any] | None = None,
    weights: dict[str, float] | None = None,
    objective: dict[str, Any] | None = None,
) -> C:
    """Replace what is given in settings.

    Parameters
    ----------
    config
        Settings to start from.
    likelihood
        Name of the likelihood.
    architecture, objective
        Settings of the groups by name; ``None`` keeps those of ``config``.
    weights
        Weights of the three terms by name.

    Raises
    ------
    ValueError
        If the name of a setting is unknown.
    """
    terms = ("individual", "covariate", "divergence")
    if unknown := set(weights or {}) - set(terms):
        raise ValueError(f"Unknown weights {sorted(unknown)}; the terms are {list(terms)}.")
    changes: dict[str, Any] = {"likelihood": likelihood or config.likelihood}
    return replace(
        config,
        **changes,
        architecture=_updated(config.architecture, architecture, "architecture"),
        objective=_updated(
            config.objective, {**(objective or {}), **(weights or {})}, "objective"
        ),
    )


def get_preset(name: PresetName) -> ModuleConfig:
    """Look up settings by name.

    Parameters
    ----------
    name
        Name of the preset.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    return get_kind(PRESETS, name, "preset")


def _updated[T: (Architecture, ImageArchitecture, Objective)](
    group: T, changes: dict[str, Any] | None, name: str
) -> T:
    """Return ``group`` with the given (not ``None``) settings replaced."""
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    known = {f.name for f in fields(group)}
    if unknown := set(changes) - known:
        raise ValueError(f"Unknown {name} settings {sorted(unknown)}; known are {sorted(known)}.")
    return replace(group, **changes)
