"""Figures of counterfactual images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np


def draw_grid(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Draw a column of images under each title, and write the figure.

    Parameters
    ----------
    path
        File to write.
    columns
        Images on [0, 1] by title, each of shape ``(n_rows, height, width)``; a title that begins
        with ``|`` leaves a gap before its column.
    """
    n_rows = len(next(iter(columns.values())))
    gaps = [0.5 if title.startswith("|") else 0.0 for title in columns]
    widths = [1 + gap for gap in gaps]
    figure, axes = plt.subplots(
        n_rows,
        len(columns),
        figsize=(0.9 * sum(widths), 0.95 * n_rows + 0.5),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    for column, (title, images) in enumerate(columns.items()):
        for row in range(n_rows):
            axis = axes[row, column]
            axis.imshow(images[row], cmap="gray", vmin=0, vmax=1)
            axis.set_anchor("E")
            axis.set_axis_off()
        axes[0, column].set_title(title.lstrip("|"), fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
