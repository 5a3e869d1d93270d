"""Names that were asked for, beside the names that there are; shared by all folders."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def nearest(name: str, known: Sequence[str], n: int = 3) -> list[str]:
    """Known names most like ``name``, without regard to case."""
    lower = {k.lower(): k for k in known}
    matches = difflib.get_close_matches(name.lower(), list(lower), n=n, cutoff=0.4)
    return [lower[m] for m in matches]


def unknown_name_message(
    kind: str, name: str, known: Sequence[str], what: str = "unknown to the model"
) -> str:
    """Name what is unknown and the nearest known names.

    Parameters
    ----------
    kind
        What kind of name it is, to begin the sentence.
    name
        The unknown name.
    known
        Known names.
    what
        What is wrong with the name, after "is".
    """
    close = nearest(name, known)
    hint = f" Nearest: {', '.join(map(repr, close))}." if close else ""
    shown = ", ".join(map(repr, list(known)[:10])) + (", …" if len(known) > 10 else "")
    return f"{kind} {name!r} is {what}.{hint} Known: {shown}."
