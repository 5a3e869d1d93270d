"""Checks of what effects are estimated from: each names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Estimand = Literal["ate", "att"]
Estimator = Literal["observed", "robust", "plugin"]
Scale = Literal["log1p", "counts", "lfc"]


def check_options(
    estimand: str,
    estimator: str | None,
    scale: str,
    predictions: Callable[[int, slice], np.ndarray] | None,
) -> None:
    """Raise if an option is unknown, or predictions are needed and not given.

    Parameters
    ----------
    estimand, estimator, scale
        Options by name.
    predictions
        Predictions, if any.
    """
    for name, value, known in (
        ("estimand", estimand, get_args(Estimand)),
        ("estimator", estimator, (None, *get_args(Estimator))),
        ("scale", scale, get_args(Scale)),
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
        Numbers by name; ``None`` is passed over.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if name in ("level", "leakage_level") and not 0 < value < 1:
            raise ValueError(f"{name}={value} must lie in (0, 1).")
        if name == "min_propensity" and not 0 <= value < 1:
            raise ValueError(f"{name}={value} must lie in [0, 1).")
        if name == "prediction_weight" and not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie in [0, 1].")
        if name == "min_cells" and value < 2:
            raise ValueError(f"{name}={value} must be at least 2: one cell has no variance.")
        if name == "chunk_size" and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
        if name == "min_expressing" and not value >= 0:
            raise ValueError(f"{name}={value} must not be negative.")


def check_codes(n_cells: int, **codes: tuple[np.ndarray | None, int | None]) -> None:
    """Raise if codes are not one integer per cell, or have no name.

    Parameters
    ----------
    n_cells
        Number of cells.
    codes
        Codes and the number of their names (``None`` if they have none), by name.
    """
    for name, (values, n_names) in codes.items():
        if values is None:
            continue
        values = np.asarray(values)
        if values.shape != (n_cells,):
            raise ValueError(
                f"{name} has shape {values.shape}, not ({n_cells},): one code per cell."
            )
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} holds {values.dtype} values, not integer codes.")
        if n_cells and values.min() < 0:
            raise ValueError(f"{name} has negative codes; drop the cells without a label.")
        if n_names is not None and n_cells and values.max() >= n_names:
            raise ValueError(f"{name} has the code {values.max()}, but {n_names} names.")


def check_shape(outcomes: Any, genes: Sequence[str]) -> None:
    """Raise if outcomes are not a matrix of cells and genes.

    Parameters
    ----------
    outcomes
        Sparse or dense, shape ``(n_cells, n_genes)``.
    genes
        Names of the columns.
    """
    if outcomes.ndim != 2 or outcomes.shape[1] != len(genes):
        raise ValueError(
            f"outcomes has shape {outcomes.shape}, not (n_cells, {len(genes)}): one column per "
            "name in genes."
        )


def check_values(block: Any, genes: Sequence[str], signed: bool, logged: bool = False) -> None:
    """Raise if outcomes are not finite, or negative where that makes no sense.

    Parameters
    ----------
    block
        Outcomes of some genes, sparse or dense, shape ``(n_cells, n_genes)``.
    genes
        Names of the columns.
    signed
        Whether negative outcomes make sense.
    """
    entries = sparse.coo_matrix(block) if sparse.issparse(block) else None
    values = np.asarray(block) if entries is None else entries.data
    wrong, what = ~np.isfinite(values), "NaN or infinite"
    if not signed and not wrong.any():
        wrong, what = values < 0, "negative"
    if wrong.any():
        column = np.nonzero(wrong)[-1][0] if entries is None else entries.col[np.argmax(wrong)]
        raise ValueError(
            f"outcomes of gene {genes[int(column)]!r} are {what} in some cells; pass normalised "
            "counts that are not log-transformed or scaled."
        )


def find_codes(names: Sequence[str], treatments: Sequence[str]) -> list[int]:
    """Codes of treatments by name.

    Parameters
    ----------
    names
        Names to look up.
    treatments
        Known names, by code.

    Raises
    ------
    ValueError
        If a name is unknown, or occurs twice; the message says which and what is known.
    """
    known, wanted = list(treatments), list(names)
    if not wanted:
        raise ValueError("No treatment is named; name at least one, or pass None for all.")
    for name in wanted:
        if name not in known:
            raise ValueError(unknown_name_message("Treatment", str(name), known, "unknown"))
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"Treatments are asked for more than once: {wanted}.")
    return [known.index(t) for t in wanted]


def find_names(
    targets: Sequence[str] | None, reference: str, treatments: Sequence[str]
) -> tuple[list[int], int]:
    """Codes of the targets and of the reference.

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
            f"Treatment {reference!r} is both a target and the reference; its effect against "
            "itself is zero."
        )
    if not wanted:
        raise ValueError("There is no treatment to compare with the reference.")
    return find_codes(wanted, treatments), reference_code
