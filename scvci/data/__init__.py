"""How AnnData becomes tensors: registry fields, validation, splits, the counterfactual sampler."""

from ._fields import (
    CovariateField,
    TreatmentField,
    encode_covariates,
    encode_treatments,
    missing_key_message,
    stratum_codes,
    stratum_names,
)
from ._folds import choose_folds, pair_folds
from ._names import as_labels, unknown_name_message
from ._reader import CellReader, control_index, resolve_indices
from ._sampler import CounterfactualDataset, CounterfactualSampler
from ._splitter import CounterfactualSplitter, split_cells
from ._statistics import Cohort, Statistics, compute_statistics
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
    "as_labels",
    "check_pairs",
    "choose_folds",
    "compute_statistics",
    "control_index",
    "encode_covariates",
    "encode_treatments",
    "get_matrix",
    "missing_key_message",
    "pair_counts",
    "pair_folds",
    "resolve_indices",
    "split_cells",
    "stratum_codes",
    "stratum_names",
    "unknown_name_message",
    "validate_expression",
    "validate_setup",
]
