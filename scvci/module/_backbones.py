"""Backbones by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._effect import EffectBackbone
from ._paper import PaperBackbone

if TYPE_CHECKING:
    from ._backbone import Backbone

BACKBONES: dict[str, type[Backbone]] = {cls.name: cls for cls in (EffectBackbone, PaperBackbone)}
