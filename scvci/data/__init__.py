"""How cells become tensors: treatments and cells, registry fields, splits, the sampler."""

from ._cells import Cells
from ._conditions import Condition, TreatmentKeys
from ._embeddings import gene_loadings, morgan_fingerprints
from ._fields import CovariateField, TreatmentField
from ._folds import choose_folds, pair_folds
from ._sampler import CounterfactualDataset, CounterfactualSampler
from ._splitter import CounterfactualSplitter, split_cells
from ._statistics import Statistics, compute_statistics
from ._treatments import Treatments

__all__ = [
    "Cells",
    "Condition",
    "CounterfactualDataset",
    "CounterfactualSampler",
    "CounterfactualSplitter",
    "CovariateField",
    "Statistics",
    "TreatmentField",
    "TreatmentKeys",
    "Treatments",
    "choose_folds",
    "compute_statistics",
    "gene_loadings",
    "morgan_fingerprints",
    "pair_folds",
    "split_cells",
]
