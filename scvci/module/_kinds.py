"""Kinds that users choose by name."""

from __future__ import annotations


def get_kind[T](kinds: dict[str, T], name: str, argument: str) -> T:
    """Look a kind up by name.

    Parameters
    ----------
    kinds
        Kinds by name.
    name
        The name.
    argument
        Setting that the name was given for.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in kinds:
        raise ValueError(f"{argument}={name!r} is unknown; choose one of {sorted(kinds)}.")
    return kinds[name]
