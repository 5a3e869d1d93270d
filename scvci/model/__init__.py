"""Models."""

from ._prediction import Block
from ._vci import VCI

__all__ = ["VCI", "Block"]
