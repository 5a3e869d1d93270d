"""Means of the arms of a contrast, where cells or clusters are independent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._cells import correction_by_cells, means_by_cells
from ._clusters import correction_by_clusters, means_by_clusters

if TYPE_CHECKING:
    from ._contrasts import Contrast
    from ._design import Design
    from ._intervals import Means
    from ._moments import BothPredictions, OutcomeSums, PredictionSums
    from ._validation import Estimand


def means_of(
    contrast: Contrast,
    design: Design,
    outcomes: OutcomeSums,
    predictions: BothPredictions | None = None,
    estimand: Estimand = "ate",
) -> Means:
    """Means of the arms, in order, then the corrections by predictions, if there are any.

    Parameters
    ----------
    contrast
        Arms and units.
    design
        Cells by unit and arm.
    outcomes
        Sums of a chunk of genes.
    predictions
        Predictions under the treatment and the reference of a difference, which add a correction
        to each of the two means.
    estimand
        ``"att"`` corrects the reference's mean only, to the treated cells.
    """
    if contrast.clusters is not None:
        return means_by_clusters(contrast.clusters, outcomes, predictions, estimand)
    return means_by_cells(contrast, design, outcomes, predictions, estimand)


def correction_of(contrast: Contrast, design: Design, predictions: PredictionSums) -> Means:
    """Mean over all cells less that over the first arm's, of predictions under its treatment.

    Parameters
    ----------
    contrast
        Arms and units.
    design
        Cells by unit and arm.
    predictions
        Sums of a chunk of genes.
    """
    if contrast.clusters is not None:
        return correction_by_clusters(contrast.clusters, predictions)
    return correction_by_cells(contrast, design, predictions)
