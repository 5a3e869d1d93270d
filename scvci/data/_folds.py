"""Which (treatment, stratum) pairs are held out together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A (stratum, treatment) by index.
Pair = tuple[int, int]


def pair_folds(counts: np.ndarray, min_cells: int = 20) -> list[list[Pair]]:
    """Every pair once, so that each fold still shows the model every treatment and stratum.

    One treatment is held out of one stratum at a time. Several go by a Latin square: treatment
    ``(fold + i) mod n`` leaves stratum i, so a fold holds out one pair of each stratum.

    Parameters
    ----------
    counts
        Cells of each (stratum, treatment), shape ``(n_strata, n_treatments)``. The control has
        index 0 and is never held out.
    min_cells
        Fewest cells of a pair that is held out, and fewest controls of its stratum.

    Returns
    -------
    Folds of (stratum, treatment) indices; none where no treatment has cells in two strata.
    """
    counts = np.asarray(counts)
    treatments = range(1, counts.shape[1])
    square = [
        (x, treatments[(fold + x) % len(treatments)])
        for fold in range(len(treatments))
        for x in range(counts.shape[0])
    ]
    several = (counts > 0).sum(axis=0) > 1
    large = (counts >= max(min_cells, 1)) & (counts[:, :1] >= min_cells)
    held = [(x, t) for x, t in square if several[t] and large[x, t]]
    return choose_folds(counts, held)


def choose_folds(counts: np.ndarray, pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Put pairs into the first fold that has room for them.

    A fold holds out at most one pair of a stratum, no treatment more often than a Latin square
    would, and leaves every treatment a stratum with cells.

    Parameters
    ----------
    counts
        Cells of each (stratum, treatment); the control has index 0.
    pairs
        (stratum, treatment) indices in the order in which they are placed.

    Returns
    -------
    Folds.

    Raises
    ------
    ValueError
        If a pair is the only one of its treatment: no model could predict it.
    """
    folds: list[list[Pair]] = []
    n_treatments = int((counts[:, 1:] > 0).any(axis=0).sum())
    most = 1 if n_treatments == 1 else -(-counts.shape[0] // n_treatments)
    for x, t in pairs:
        strata = set(np.flatnonzero(counts[:, t]).tolist())
        if not strata - {x}:
            raise ValueError(
                f"Treatment {t} has cells in stratum {x} only; held out, nothing is left of it."
            )
        for fold in folds:
            held = {s for s, u in fold if u == t} | {x}
            if all(s != x for s, _ in fold) and len(held) <= most and strata - held:
                fold.append((x, t))
                break
        else:
            folds.append([(x, t)])
    return folds
