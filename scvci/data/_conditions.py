"""What a cell was treated with: read once from labels, doses or a matrix, then an object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._labels import as_names, encode, missing_key_message, read_labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData

#: Between a member and its dose in the name of an arm.
AT = "@"
#: Joins members where the data do not say how, as in a matrix of members.
DEFAULT_SEPARATOR = "+"
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Condition:
    """Members and their doses; without members, the control.

    Attributes
    ----------
    members
        Names in sorted order.
    doses
        Their doses, all positive; 1 in data without doses.
    """

    members: tuple[str, ...] = ()
    doses: tuple[float, ...] = ()

    @classmethod
    def of(cls, doses: Mapping[str, float]) -> Condition:
        """Collect members with their doses; a dose of 0 is no member.

        Parameters
        ----------
        doses
            Dose of each member.
        """
        given = sorted((name, float(dose)) for name, dose in doses.items() if dose > 0)
        return cls(tuple(name for name, _ in given), tuple(dose for _, dose in given))

    def items(self) -> Iterator[tuple[str, float]]:
        """Yield members with their doses."""
        return zip(self.members, self.doses, strict=True)


#: No treatment.
CONTROL = Condition()


@dataclass(frozen=True)
class TreatmentKeys:
    """Where the treatment of a cell is written, and how.

    Attributes
    ----------
    key
        Column of ``obs`` with labels, or entry of ``obsm`` with a data frame of members.
    controls
        Labels of untreated cells; the first names the control.
    dose_key
        Column of ``obs`` with doses, or the ``key`` of a matrix of doses, or ``None``.
    separator
        Between the members of a combination, or ``None`` where a label is one treatment.
    """

    key: str
    controls: tuple[str, ...]
    dose_key: str | None = None
    separator: str | None = None

    @property
    def control(self) -> str:
        """Name of the control."""
        return self.controls[0]

    @cached_property
    def joint(self) -> str:
        """What joins members in names."""
        return self.separator or DEFAULT_SEPARATOR

    def name(self, condition: Condition) -> str:
        """Name a condition: its members, with doses where there are doses.

        Parameters
        ----------
        condition
            Members and doses.
        """
        if not condition.members:
            return self.control
        if self.dose_key is None:
            return self.joint.join(condition.members)
        return self.joint.join(f"{m}{AT}{format_dose(d)}" for m, d in condition.items())


def format_dose(dose: float) -> str:
    """Shortest text of a number that reads back as the same number, without ``+``."""
    if 1e-9 < dose < 1e15:
        return np.format_float_positional(dose, trim="-")
    return np.format_float_scientific(dose, trim="-", exp_digits=1).replace("e+", "e")


def parse_label(label: str, dose: Any, keys: TreatmentKeys) -> Condition:
    """Read a label of the data and its dose.

    Parameters
    ----------
    label
        Treatment, or several with the separator between them.
    dose
        One dose for each member, as a number or a text with the separator; ignored without
        ``dose_key`` and for the control.
    keys
        How treatments are written.

    Raises
    ------
    ValueError
        If a member has no name or occurs twice, or a dose cannot be read; with the label.
    """
    if label in keys.controls:
        return CONTROL
    parts = [label]
    if keys.separator is not None:
        parts = [part.strip() for part in label.split(keys.separator)]
    if not all(parts):
        raise ValueError(
            f"Treatment {label!r} has a member without a name: its name holds the separator "
            f"{keys.separator!r}. Choose a separator= that is in no name, or rename the treatment."
        )
    doses = [1.0] * len(parts)
    if keys.dose_key is not None:
        treated = [part for part in parts if part not in keys.controls]
        try:
            doses = parse_doses(label, dose, len(parts), keys.joint)
        except ValueError:
            # A control among the members needs no dose.
            if len(treated) == len(parts):
                raise
            parts, doses = treated, parse_doses(label, dose, len(treated), keys.joint)
    return condition_of(label, parts, doses, keys)


def condition_of(
    label: str, members: Sequence[str], doses: Sequence[float], keys: TreatmentKeys
) -> Condition:
    """Put members and doses together; controls among the members are left out.

    Parameters
    ----------
    label
        What they were read from, for the message.
    members, doses
        Names and doses.
    keys
        How treatments are written.

    Raises
    ------
    ValueError
        If a member occurs twice.
    """
    given = {}
    for member, dose in zip(members, doses, strict=True):
        if member in keys.controls:
            continue
        if member in given:
            raise ValueError(
                f"Treatment {label!r} names a member twice; give it once, with its dose."
            )
        given[member] = dose
    return Condition.of(given)


def parse_doses(label: str, dose: Any, n: int, separator: str) -> list[float]:
    """Read the doses of a treatment's members.

    Parameters
    ----------
    label
        The treatment, for the message.
    dose
        A number, or a text with one number for each member.
    n
        Number of members.
    separator
        Between the numbers; an exponent such as that of ``1e+06`` is part of its number.

    Raises
    ------
    ValueError
        If there are not ``n`` numbers of at least 0.
    """
    text = str(dose).strip()
    joint = separator.strip() or separator
    readings = _split_doses(text.split(joint), n, joint)
    if len(readings) > 1:
        shown = " or ".join(map(str, readings))
        raise ValueError(
            f"The doses {dose!r} of treatment {label!r} can be read in more than one way "
            f"({shown}), as the separator {separator!r} occurs in numbers. Choose another."
        )
    texts = readings[0] if readings else [part.strip() for part in text.split(separator)]
    if len(texts) != n:
        raise ValueError(
            f"Treatment {label!r} has {n} members and {len(texts)} doses ({dose!r}). Give one "
            f"dose for each member, such as {separator.join(['1.0'] * n)!r}."
        )
    return [_dose(part, label) for part in texts]


def _split_doses(pieces: list[str], n: int, joint: str) -> list[list[str]]:
    """All ways to join neighbouring pieces into ``n`` numbers."""
    if n == 0:
        return [] if pieces else [[]]
    found = []
    # A number that holds the separator falls into few pieces.
    for k in range(1, min(len(pieces), 3) + 1):
        number = joint.join(pieces[:k]).strip()
        if re.fullmatch(_NUMBER, number):
            found += [[number, *rest] for rest in _split_doses(pieces[k:], n - 1, joint)]
    return found


def _dose(text: str, label: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(
            f"Dose {text!r} of treatment {label!r} is not a number of at least 0 (dose_key). Give "
            "every treated cell a dose in numbers, without its unit."
        )
    return value


def find_keys(
    adata: AnnData, key: str, control: Any, dose_key: str | None, separator: str | None
) -> TreatmentKeys:
    """Complete what a user says about treatments by what the data show.

    A matrix of members that holds more than zeros and ones holds doses.

    Parameters
    ----------
    adata
        The cells.
    key, dose_key, separator
        See :class:`TreatmentKeys`.
    control
        One label of untreated cells, or several.

    Raises
    ------
    ValueError
        If the separator is empty or in the name of a control, there is no control label, or a
        matrix comes with a column of doses.
    """
    controls = tuple(dict.fromkeys(as_names(control)))
    if not controls:
        raise ValueError("control= is empty; pass the label of the untreated cells.")
    if separator is not None and (not separator or any(separator in c for c in controls)):
        raise ValueError(
            f"separator={separator!r} is empty or part of the control's name "
            f"{controls[0] if len(controls) == 1 else list(controls)!r}; choose one that is in no "
            "name."
        )
    if key in adata.obs or key not in adata.obsm:
        return TreatmentKeys(key, controls, dose_key, separator)
    if dose_key is not None:
        raise ValueError(
            f"dose_key={dose_key!r} is for labels; the entries of obsm[{key!r}] are the doses."
        )
    table = adata.obsm[key]
    if isinstance(table, pd.DataFrame):
        treated = [str(name) not in controls for name in table.columns]
        if not table.loc[:, treated].isin([0, 1]).all(axis=None):
            dose_key = key
    return TreatmentKeys(key, controls, dose_key, separator)


def read_conditions(
    adata: AnnData, keys: TreatmentKeys, rows: np.ndarray | None = None
) -> tuple[np.ndarray, list[Condition]]:
    """Read the condition of every cell.

    Parameters
    ----------
    adata
        The cells.
    keys
        Where and how treatments are written.
    rows
        Cells that need a treatment; ``None`` for all.

    Returns
    -------
    Code of each cell, shape ``(n_cells,)``, −1 where its label is missing, and the distinct
    conditions by code.

    Raises
    ------
    KeyError, ValueError
        With the column, label or dose at fault.
    """
    if keys.key not in adata.obs and keys.key in adata.obsm:
        codes, read = _read_matrix(adata, keys, rows)
    else:
        codes, read = _read_columns(adata, keys, rows)
    conditions = list(dict.fromkeys(read))
    index = {condition: i for i, condition in enumerate(conditions)}
    lookup = np.array([index[condition] for condition in read] + [-1], dtype=np.int64)
    return lookup[codes], conditions


def _read_columns(
    adata: AnnData, keys: TreatmentKeys, rows: np.ndarray | None
) -> tuple[np.ndarray, list[Condition]]:
    if keys.key not in adata.obs:
        cure = (
            f"If these cells are untreated, add obs[{keys.key!r}] = {keys.control!r}; nothing is "
            "taken for the control unasked. If the column has another name, rename it, or set up "
            "with treatment_key=."
        )
        raise KeyError(missing_key_message(adata, keys.key, "treatment_key", cure))
    codes, labels = read_labels(adata.obs[keys.key], keys.key, rows)
    if keys.dose_key is None:
        judged = _judged(codes, rows)
        return encode(codes, judged), [parse_label(labels[i], None, keys) for i in judged]
    treated = np.array([label not in keys.controls for label in labels] + [False])[codes]
    if keys.dose_key not in adata.obs:
        if (treated if rows is None else treated[rows]).any():
            cure = (
                f"Treated cells need their dose: add obs[{keys.dose_key!r}], or set up with "
                "dose_key=. Untreated cells need none."
            )
            raise KeyError(missing_key_message(adata, keys.dose_key, "dose_key", cure))
        return np.where(treated, -1, codes), [
            parse_label(label, 0, keys) if label in keys.controls else CONTROL for label in labels
        ]
    column = adata.obs[keys.dose_key]
    if column.dtype == np.float16:
        column = pd.Series(exact_doses(column), index=column.index)
    dose_codes, doses = pd.factorize(column, use_na_sentinel=False)
    # The control has no dose, whatever its column says.
    pair = np.where(codes < 0, -1, codes * len(doses) + np.where(treated, dose_codes, 0))
    judged = _judged(pair, rows)
    conditions = [
        parse_label(labels[code // len(doses)], doses[code % len(doses)], keys) for code in judged
    ]
    return encode(pair, judged), conditions


def _judged(codes: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Codes of the cells in question; the other cells may have what cannot be read."""
    judged = np.unique(codes if rows is None else codes[rows])
    return judged[judged >= 0]


def _read_matrix(
    adata: AnnData, keys: TreatmentKeys, rows: np.ndarray | None
) -> tuple[np.ndarray, list[Condition]]:
    """Conditions from a data frame of members, a row of zeros being the control."""
    table = adata.obsm[keys.key]
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"obsm[{keys.key!r}] must be a data frame whose columns are the treatments; got "
            f"{type(table).__name__}, which has no names."
        )
    names = [str(name) for name in table.columns]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(
            f"obsm[{keys.key!r}] has several columns named {twice!r}, and all but one would be "
            "lost; join or rename them."
        )
    values = np.empty(table.shape)
    for i in range(len(names)):
        values[:, i] = exact_doses(table.iloc[:, i])
    bad = ~np.isfinite(values) | (values < 0)
    judged = bad if rows is None else bad[rows]
    if judged.any():
        row, column = (int(i[0]) for i in np.nonzero(judged))
        row = row if rows is None else int(rows[row])
        raise ValueError(
            f"obsm[{keys.key!r}] has {values[row, column]} for cell {adata.obs_names[row]!r}, "
            f"treatment {table.columns[column]!r}; doses are numbers of at least 0."
        )
    unlabelled = bad.any(axis=1)
    # A control beside other treatments means no further treatment.
    values = np.where(bad | np.isin(names, keys.controls), 0, values)
    found, inverse = np.unique(values, axis=0, return_inverse=True)
    conditions = [Condition.of({names[i]: row[i] for i in np.flatnonzero(row)}) for row in found]
    return np.where(unlabelled, -1, inverse.ravel()), conditions


def exact_doses(column: pd.Series) -> np.ndarray:
    """Doses in double precision, as they were written: 0.1 in fewer digits is 0.1.

    Parameters
    ----------
    column
        Numbers of any type.
    """
    if column.dtype in (np.float16, np.float32):
        found, inverse = np.unique(column.to_numpy(), return_inverse=True)
        return np.array([float(str(value)) for value in found])[inverse.ravel()]
    return column.to_numpy(dtype=float, na_value=np.nan)
