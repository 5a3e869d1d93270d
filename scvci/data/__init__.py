"""How AnnData becomes tensors: registry fields, validation, splits, the counterfactual sampler."""

from ._conditions import TreatmentKeys, find_keys, read_arms
from ._embeddings import gene_loadings, morgan_fingerprints, read_embeddings
from ._fields import (
    CovariateField,
    TreatmentField,
    encode_covariates,
    encode_treatments,
    stratum_codes,
    stratum_names,
)
from ._folds import choose_folds, pair_folds
from ._names import as_labels, missing_key_message
from ._query import align_genes, extend_registry
from ._reader import CellReader, control_index, resolve_indices
from ._sampler import CounterfactualDataset, CounterfactualSampler
from ._splitter import CounterfactualSplitter, split_cells
from ._statistics import Cohort, Statistics, compute_statistics
from ._treatments import Treatments
from ._validation import (
    check_pairs,
    get_matrix,
    pair_counts,
    validate_expression,
    validate_setup,
)

__all__ = [
    "Cohort",
    "CellReader",
    "CounterfactualDataset",
    "CounterfactualSampler",
    "CounterfactualSplitter",
    "CovariateField",
    "Statistics",
    "TreatmentField",
    "TreatmentKeys",
    "Treatments",
    "align_genes",
    "as_labels",
    "check_pairs",
    "choose_folds",
    "compute_statistics",
    "control_index",
    "encode_covariates",
    "encode_treatments",
    "extend_registry",
    "find_keys",
    "gene_loadings",
    "get_matrix",
    "missing_key_message",
    "pair_counts",
    "morgan_fingerprints",
    "pair_folds",
    "read_arms",
    "read_embeddings",
    "resolve_indices",
    "split_cells",
    "stratum_codes",
    "stratum_names",
    "validate_expression",
    "validate_setup",
]
