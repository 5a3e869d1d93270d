"""How parameters grow with the data, said by a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Blocks of the last axis of a parameter: old columns, and the columns of the longer block, of
#: which those that keep the old weights come first.
type Columns = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Growth:
    """How a parameter grows.

    Attributes
    ----------
    columns
        Its blocks of columns before and after.
    fill
        What new columns start at: the mean of the block's old ones, or zero.
    """

    columns: Columns
    fill: Literal["mean", "zero"] = "mean"


def lay_out(widths: list[tuple[int, int]]) -> Columns:
    """Columns of consecutive blocks, of which each grows at its end.

    Parameters
    ----------
    widths
        Width of each block before and after.
    """
    columns, before, after = [], 0, 0
    for n_old, n_new in widths:
        columns.append((np.arange(before, before + n_old), np.arange(after, after + n_new)))
        before, after = before + n_old, after + n_new
    return columns
