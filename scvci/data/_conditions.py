"""How treatments are written: labels with a separator, doses, or a matrix of members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci._names import unknown_name_message

from ._names import as_labels, encode, missing_key_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: Between a member and its dose in the name of an arm.
AT = "@"
#: Joins members where the data do not say how, as in a matrix of members.
DEFAULT_SEPARATOR = "+"

#: Members of a condition and their doses; empty for the control.
type Condition = dict[str, float]


@dataclass(frozen=True)
class TreatmentKeys:
    """Where the treatment of a cell is written, and how.

    Attributes
    ----------
    key
        Column of ``obs`` with labels, or entry of ``obsm`` with a data frame of members.
    control
        Label of the control.
    dose_key
        Column of ``obs`` with doses, or ``None``.
    separator
        Between the members of a combination, or ``None`` where a label is one treatment.
    """

    key: str
    control: str
    dose_key: str | None = None
    separator: str | None = None


def parse_condition(label: str, dose: Any, keys: TreatmentKeys) -> Condition:
    """Read members and doses.

    Parameters
    ----------
    label
        Treatment, or several with the separator between them.
    dose
        One dose for each member, as a number or a text with the separator; ignored without
        ``dose_key``.
    keys
        How treatments are written.

    Raises
    ------
    ValueError
        If a member has no name or occurs twice, or a dose cannot be read; with the label.
    """
    if label == keys.control:
        return {}
    parts = [label]
    if keys.separator is not None:
        parts = [part.strip() for part in label.split(keys.separator)]
    if not all(parts):
        raise ValueError(
            f"Treatment {label!r} has a member without a name: its name holds the separator "
            f"{keys.separator!r}. Choose a separator= that is in no name, or rename the treatment."
        )
    members = [part for part in parts if part != keys.control]
    if len(set(members)) < len(members):
        raise ValueError(f"Treatment {label!r} names a member twice; give it once, with its dose.")
    if keys.dose_key is None:
        return dict.fromkeys(sorted(members), 1.0)
    doses = _parse_doses(label, dose, len(parts), keys)
    condition = dict(zip(parts, doses, strict=True))
    return {name: condition[name] for name in sorted(members) if condition[name] > 0}


def _parse_doses(label: str, dose: Any, n: int, keys: TreatmentKeys) -> list[float]:
    separator = keys.separator or DEFAULT_SEPARATOR
    texts = str(dose).split(separator)
    if len(texts) != n:
        raise ValueError(
            f"Treatment {label!r} has {n} members and {len(texts)} doses ({dose!r}). Give one "
            f"dose for each member, such as {separator.join(['1.0'] * n)!r}."
        )
    values = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(
                f"Dose {text.strip()!r} of treatment {label!r} is not a number of at least 0 "
                "(dose_key). Give every treated cell a dose in numbers, without its unit."
            )
        values.append(value)
    return values


def arm_name(condition: Condition, keys: TreatmentKeys) -> str:
    """Name of a condition: sorted members, with doses where there are doses.

    Parameters
    ----------
    condition
        Members and doses.
    keys
        How treatments are written.
    """
    if not condition:
        return keys.control
    joint = keys.separator or DEFAULT_SEPARATOR
    if keys.dose_key is None:
        return joint.join(sorted(condition))
    return joint.join(f"{m}{AT}{condition[m]:g}" for m in sorted(condition))


def find_keys(
    adata: AnnData, key: str, control: str, dose_key: str | None, separator: str | None
) -> TreatmentKeys:
    """Complete what a user says about treatments by what the data show.

    A matrix of members that holds more than zeros and ones holds doses.

    Parameters
    ----------
    adata
        The cells.
    key, control, dose_key, separator
        See :class:`TreatmentKeys`.

    Raises
    ------
    ValueError
        If the separator is empty or in the name of the control, or a matrix comes with a column
        of doses.
    """
    if separator is not None and (not separator or separator in control):
        raise ValueError(
            f"separator={separator!r} is empty or part of the control's name {control!r}; choose "
            "one that is in no name."
        )
    if key in adata.obs or key not in adata.obsm:
        return TreatmentKeys(key, control, dose_key, separator)
    if dose_key is not None:
        raise ValueError(
            f"dose_key={dose_key!r} is for labels; the entries of obsm[{key!r}] are the doses."
        )
    table = adata.obsm[key]
    if isinstance(table, pd.DataFrame) and not table.isin([0, 1]).all(axis=None):
        dose_key = key
    return TreatmentKeys(key, control, dose_key, separator or DEFAULT_SEPARATOR)


def read_arms(adata: AnnData, keys: TreatmentKeys) -> tuple[np.ndarray, dict[str, Condition]]:
    """Name the arm of every cell.

    Parameters
    ----------
    adata
        The cells.
    keys
        Where and how treatments are written.

    Returns
    -------
    Names, shape ``(n_cells,)``, and the condition of each name.

    Raises
    ------
    KeyError, ValueError
        With the column, label or dose at fault.
    """
    if keys.key not in adata.obs and keys.key in adata.obsm:
        labels, doses = _from_matrix(adata, keys)
    else:
        if keys.key not in adata.obs:
            raise KeyError(missing_key_message(adata, keys.key, "treatment_key"))
        labels = as_labels(adata.obs[keys.key], keys.key)
        doses = np.full(len(labels), "1", dtype=object)
        if keys.dose_key is not None:
            if keys.dose_key not in adata.obs:
                raise KeyError(missing_key_message(adata, keys.dose_key, "dose_key"))
            doses = adata.obs[keys.dose_key].astype(str).to_numpy(dtype=object)
    pairs = pd.MultiIndex.from_arrays([labels, doses])
    codes, unique = pairs.factorize()
    conditions = [parse_condition(label, dose, keys) for label, dose in unique]
    names = np.array([arm_name(c, keys) for c in conditions], dtype=object)
    return names[codes], dict(zip(names, conditions, strict=True))


def _from_matrix(adata: AnnData, keys: TreatmentKeys) -> tuple[np.ndarray, np.ndarray]:
    """Labels and doses from a data frame of members, a row of zeros being the control."""
    table = adata.obsm[keys.key]
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"obsm[{keys.key!r}] must be a data frame whose columns are the treatments; got "
            f"{type(table).__name__}, which has no names."
        )
    values = table.to_numpy(dtype=float)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise ValueError(
            f"obsm[{keys.key!r}] has {values[row, column]} for cell {adata.obs_names[row]!r}, "
            f"treatment {table.columns[column]!r}; doses are numbers of at least 0."
        )
    separator = keys.separator or DEFAULT_SEPARATOR
    names = [str(name) for name in table.columns]
    rows, inverse = np.unique(values, axis=0, return_inverse=True)
    labels, doses = [], []
    for row in rows:
        given = np.flatnonzero(row)
        labels.append(separator.join(names[i] for i in given) or keys.control)
        doses.append(separator.join(f"{row[i]:g}" for i in given) or "0")
    inverse = inverse.ravel()
    return np.array(labels, dtype=object)[inverse], np.array(doses, dtype=object)[inverse]


def encode_arms(names: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """Look up the codes of arms.

    Parameters
    ----------
    names
        Arm of each cell, shape ``(n_cells,)``.
    known
        The model's arms.

    Returns
    -------
    Indices among the model's arms, shape ``(n_cells,)``.

    Raises
    ------
    ValueError
        If an arm is unknown; nothing is replaced by the control.
    """
    codes = encode(names, known)
    if (codes < 0).any():
        name = str(names[int(np.argmax(codes < 0))])
        raise ValueError(
            unknown_name_message("Treatment", name, known)
            + " The model can only read cells under treatments that it was trained on; carry it "
            "over with load_query_data, train it on data with this one, or correct the label."
        )
    return codes
