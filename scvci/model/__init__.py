"""Models."""

from ._counterfactuals import Block
from ._vci import VCI

__all__ = ["VCI", "Block"]
