"""Kinds that users choose by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def get_kind[T](kinds: Mapping[str, T], name: str, argument: str) -> T:
    """Look up a kind by name.

    Parameters
    ----------
    kinds
        Kinds by name.
    name
        The name.
    argument
        Setting for which the name was given.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in kinds:
        raise ValueError(f"{argument}={name!r} is unknown; choose one of {sorted(kinds)}.")
    return kinds[name]
