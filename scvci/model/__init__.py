"""Models."""

from ._counterfactuals import Block
from ._image_vci import ImageVCI
from ._vci import VCI

__all__ = ["VCI", "Block", "ImageVCI"]
