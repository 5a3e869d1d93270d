"""Backbones by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._effect import EffectBackbone
from ._kinds import get_kind
from ._paper import PaperBackbone

if TYPE_CHECKING:
    from ._backbone import Backbone

BACKBONES: dict[str, type[Backbone]] = {cls.name: cls for cls in (EffectBackbone, PaperBackbone)}


def get_backbone(name: str) -> type[Backbone]:
    """Look a backbone up by name.

    Parameters
    ----------
    name
        Its name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    return get_kind(BACKBONES, name, "kind")
