"""Treatments that a user asks for, in whatever form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ._labels import as_names

if TYPE_CHECKING:
    from collections.abc import Collection

    from ._conditions import Condition
    from ._treatments import Treatments


def read_requests(
    arms: Treatments,
    treatment: Any = None,
    dose: Any = None,
    known: Collection[str] | None = None,
) -> list[Condition]:
    """Read the conditions that are asked for, measured or not.

    Parameters
    ----------
    arms
        The measured arms.
    treatment
        A name, several in any sequence, a data frame with the columns ``treatment`` and,
        perhaps, ``dose``, or ``None`` for all that were measured.
    dose
        Dose of the treatments.
    known
        Members that can be answered for, by default those that were measured.

    Raises
    ------
    ValueError
        If a name is unknown or asked for twice, or doses make no sense.
    """
    if dose is not None and not arms.dosed:
        raise ValueError(f"dose={dose!r}, but the data were set up without doses (dose_key).")
    if treatment is None:
        if dose is not None:
            raise ValueError("dose= needs a treatment to go with it.")
        return list(arms.conditions)
    if isinstance(treatment, pd.DataFrame):
        requests = _read_table(treatment, dose)
        if not arms.dosed and any(d is not None for _, d in requests):
            raise ValueError(
                "The table has doses, but the data were set up without (dose_key). Leave the "
                "column 'dose' out."
            )
    else:
        requests = [(label, dose) for label in as_names(treatment)]
    if not requests:
        raise ValueError("treatment= is empty; name at least one, or leave it out for all.")
    found = [arms.request(label, d, known) for label, d in requests]
    if len(set(found)) < len(found):
        names = [arms.name(condition) for condition in found]
        raise ValueError(f"Treatments are asked for more than once: {names}.")
    return found


def measured_names(arms: Treatments, treatment: Any = None) -> list[str]:
    """Names of measured arms.

    Parameters
    ----------
    arms, treatment
        See :func:`read_requests`.

    Raises
    ------
    ValueError
        If one was not measured.
    """
    names = []
    for condition in read_requests(arms, treatment):
        names.append(arms.name(condition))
        if arms.find(condition) is None:
            raise ValueError(
                f"Treatment {names[-1]!r} was not measured. It can be predicted "
                "(predict_counterfactual), but there are no cells to estimate from."
            )
    return names


def contrast_names(
    arms: Treatments, treatment: Any, reference: str | None
) -> tuple[list[str], str]:
    """Names of the targets, by default all but the reference, and of the reference.

    Parameters
    ----------
    arms, treatment
        See :func:`read_requests`.
    reference
        What they are compared with; ``None`` for the control.

    Raises
    ------
    ValueError
        If one was not measured, or is compared with itself.
    """
    [base] = measured_names(arms, arms.control if reference is None else reference)
    if treatment is None:
        return [name for name in arms.names if name != base], base
    targets = measured_names(arms, treatment)
    if base in targets:
        raise ValueError(f"{base!r} is compared with itself; name another reference.")
    return targets, base


def _read_table(table: pd.DataFrame, dose: Any) -> list[tuple[str, Any]]:
    """Rows of a data frame of requests."""
    if "treatment" not in table or dose is not None:
        raise ValueError(
            f"A data frame of requests has the columns 'treatment' and, perhaps, 'dose' (found "
            f"{[str(c) for c in table.columns]}), and no dose= beside it."
        )
    doses = table["dose"] if "dose" in table else [None] * len(table)
    return [
        (str(t), None if pd.isna(d) else d) for t, d in zip(table["treatment"], doses, strict=True)
    ]
