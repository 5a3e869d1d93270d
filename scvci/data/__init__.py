"""How cells become tensors: treatments and cells, registry fields, splits, the sampler."""

from ._cells import Cells
from ._conditions import Condition
from ._embeddings import morgan_fingerprints
from ._treatments import Treatments

__all__ = ["Cells", "Condition", "Treatments", "morgan_fingerprints"]
