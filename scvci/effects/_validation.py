"""Checks of arguments; each error says what is wrong and what is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Estimand = Literal["ate", "att"]
Estimator = Literal["observed", "robust", "plugin"]
Scale = Literal["lfc", "log1p", "counts"]
ClusterWeighting = Literal["equal", "cells"]
Normalisation = Literal["ratios", "given"]


def check_options(
    estimand: str,
    estimator: str | None,
    scale: str,
    cluster_weights: str,
    normalisation: str | None,
    predictions: Callable[[int, slice], np.ndarray] | None,
) -> None:
    """Raise if an option is unknown, or predictions are needed but missing.

    Parameters
    ----------
    estimand, estimator, scale, cluster_weights, normalisation
        Options by name.
    predictions
        The predictions, or ``None``.
    """
    for name, value, known in (
        ("estimand", estimand, get_args(Estimand)),
        ("estimator", estimator, (None, *get_args(Estimator))),
        ("scale", scale, get_args(Scale)),
        ("cluster_weights", cluster_weights, get_args(ClusterWeighting)),
        ("normalisation", normalisation, (None, *get_args(Normalisation))),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {known}.")
    if estimator in ("robust", "plugin") and predictions is None:
        raise ValueError(f"estimator={estimator!r} needs predictions; pass predictions=.")


def check_numbers(**numbers: float | None) -> None:
    """Raise if a number is out of its range.

    Parameters
    ----------
    numbers
        Numbers by name; ``None`` is skipped.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if name in ("level", "leakage_level") and not 0 < value < 1:
            raise ValueError(f"{name}={value} must be in (0, 1).")
        if name == "min_propensity" and not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1).")
        if name == "prediction_weight" and not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be in [0, 1].")
        if name == "min_cells" and value < 2:
            raise ValueError(f"{name}={value} must be at least 2: one cell has no variance.")
        if name == "chunk_size" and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
        if name == "min_expressing" and not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0.")


def check_codes(n_cells: int, **codes: tuple[np.ndarray | None, int | None]) -> None:
    """Raise if codes are not one integer per cell, or exceed the names.

    Parameters
    ----------
    n_cells
        Number of cells.
    codes
        Codes and the number of names they refer to (``None`` if they have no names), by argument.
    """
    for name, (values, n_names) in codes.items():
        if values is None:
            continue
        values = np.asarray(values)
        if values.shape != (n_cells,):
            raise ValueError(
                f"{name} has shape {values.shape}, but must have one code per cell: ({n_cells},)."
            )
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} holds {values.dtype} values; codes must be integers.")
        if n_cells and values.min() < 0:
            raise ValueError(f"{name} has negative codes; leave out cells without a label.")
        if n_names is not None and n_cells and values.max() >= n_names:
            raise ValueError(f"{name} has the code {values.max()}, but {n_names} names are given.")


def check_shape(outcomes: Any, genes: Sequence[str]) -> None:
    """Raise if outcomes are not a matrix of cells times genes.

    Parameters
    ----------
    outcomes
        Sparse or dense, shape ``(n_cells, n_genes)``.
    genes
        Names of the columns.
    """
    if outcomes.ndim != 2 or outcomes.shape[1] != len(genes):
        raise ValueError(
            f"outcomes has shape {outcomes.shape}, but must have one column per gene: "
            f"(n_cells, {len(genes)})."
        )


def check_values(block: Any, genes: Sequence[str], signed: bool, logged: bool = False) -> None:
    """Raise if outcomes are not finite, or are negative where they must not be.

    Parameters
    ----------
    block
        Outcomes of some genes, sparse or dense, shape ``(n_cells, n_genes)``.
    genes
        Names of the columns.
    signed
        Whether outcomes may be negative.
    logged
        Whether outcomes should be log-normalised.
    """
    entries = sparse.coo_matrix(block) if sparse.issparse(block) else None
    values = np.asarray(block) if entries is None else entries.data
    wrong, what = ~np.isfinite(values), "NaN or infinite"
    if not signed and not wrong.any():
        wrong, what = values < 0, "negative"
    if wrong.any():
        column = np.nonzero(wrong)[-1][0] if entries is None else entries.col[np.argmax(wrong)]
        expected = "normalised counts, neither log-transformed nor scaled"
        if logged:
            expected = "log-normalised expression without missing values"
        raise ValueError(
            f"outcomes of gene {genes[int(column)]!r} are {what} in some cells; pass {expected}."
        )


def find_codes(names: Sequence[str], treatments: Sequence[str]) -> list[int]:
    """Look up the codes of treatments by name.

    Parameters
    ----------
    names
        Names to look up.
    treatments
        Known names, by code.

    Raises
    ------
    ValueError
        If a name is unknown or occurs twice, or there is none.
    """
    known, wanted = list(treatments), list(names)
    if not wanted:
        raise ValueError(
            "No treatment is named; pass at least one name, or None for all treatments."
        )
    for name in wanted:
        if name not in known:
            raise ValueError(unknown_name_message("Treatment", str(name), known, "unknown"))
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"Treatments are named more than once: {wanted}.")
    return [known.index(t) for t in wanted]


def find_names(
    targets: Sequence[str] | None, reference: str, treatments: Sequence[str]
) -> tuple[list[int], int]:
    """Look up the codes of the targets and of the reference.

    Parameters
    ----------
    targets
        Names; ``None`` for all treatments but the reference.
    reference
        Name.
    treatments
        Known names, by code.
    """
    [reference_code] = find_codes([reference], treatments)
    wanted = [t for t in treatments if t != reference] if targets is None else list(targets)
    if reference in wanted:
        raise ValueError(
            f"Treatment {reference!r} is both a target and the reference; leave it out of the "
            "targets."
        )
    if not wanted:
        raise ValueError("There is no treatment to compare with the reference.")
    return find_codes(wanted, treatments), reference_code
