"""Numbers that users pass, refused by name where they make no sense; shared by all folders."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from scvi import settings

#: Networks compute in single precision, in which the squares of much larger numbers are infinite.
LARGEST = 1e15
#: No seed is larger: not every library takes more than 32 bits.
_LARGEST_SEED = 2**32 - 1


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number.

    Parameters
    ----------
    name
        Argument, for the message.
    value
        What was passed.
    least, most
        Smallest and largest number allowed; ``None`` for no upper limit.

    Raises
    ------
    TypeError
        If it is no whole number.
    ValueError
        If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be a whole number.")
    number = int(value)
    if number < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
    if most is not None and number > most:
        raise ValueError(f"{name}={value} must be at most {most}.")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return a positive number with which networks can compute.

    Parameters
    ----------
    name, value
        See :func:`whole_number`.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is zero, negative, too large or not finite.
    """
    if not is_number(value):
        raise TypeError(f"{name}={value!r} must be a positive number.")
    if not 1 / LARGEST <= value <= LARGEST:
        raise ValueError(
            f"{name}={value} must be positive and finite, from {1 / LARGEST:g} to {LARGEST:g}."
        )
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, truth values aside; NaN is one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def seed_number(value: Any) -> int:
    """Return a seed, see :func:`whole_number`."""
    return whole_number("seed", value, least=0, most=_LARGEST_SEED)


def batch_size_or_default(given: Any, default: int | None = None) -> int:
    """Cells per batch: what was given, or else a default, or else scvi-tools' setting.

    Parameters
    ----------
    given
        What a user passed; ``None`` for the default. Zero is no default.
    default
        Default; ``None`` for ``scvi.settings.batch_size``.
    """
    if given is not None:
        return whole_number("batch_size", given)
    return settings.batch_size if default is None else default
