"""Models."""

from ._vci import VCI

__all__ = ["VCI"]
