"""Should I trust this model on my data? Retrain without some cells and predict them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scvi.utils import track

from scvci._names import unknown_name_message
from scvci.data._folds import choose_folds, pair_folds
from scvci.data._splitter import split_cells
from scvci.metrics import evaluate as score_layers
from scvci.metrics import verdict

from ._refit import check_refit, plain_copy, refitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvci.data import Cells
    from scvci.model import VCI

#: Number of folds of a split by cells: each holds out a fifth of every pair.
_N_CELL_FOLDS = 5


@dataclass(frozen=True)
class _Fold:
    """Cells that a fresh model does not see, shape ``(n_cells,)``, and treatments to predict."""

    held: np.ndarray
    targets: list[str]


def evaluate(
    model: VCI,
    split: Literal["pairs", "cells"] | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    max_folds: int | None = None,
    min_cells: int = 20,
    n_samples: Literal[1] | None = None,
    show_progress: bool = True,
    **train_kwargs: Any,
) -> pd.DataFrame:
    """Predict cells that a fresh model has not seen, and score it beside the baselines.

    For each fold a model with the same settings and seed is trained without the held-out
    cells. It predicts, from the controls of a stratum, what those cells are under the
    treatment; the real cells judge (:func:`scvci.metrics.evaluate`). Held-out cells enter no
    training, stopping, calibration, baseline or choice of genes. Neither the model nor its
    AnnData is changed.

    Parameters
    ----------
    model
        A model that holds its cells; it need not be trained.
    split
        ``"pairs"`` holds out all cells of (treatment, stratum) pairs: can the model carry an
        effect over to a stratum where it was not measured? ``"cells"`` holds out a fifth of
        the treated cells of every pair. By default pairs, where some treatment was measured in
        two strata, and else cells.
    pairs
        (treatment, stratum) pairs to hold out, strata by their names in ``model.strata``; by
        default all whose treatment was measured in another stratum, too.
    max_folds
        Most folds, that is trainings; by default all: as many as there are treatments, or
        strata if there is one treatment. With fewer, the first ones.
    min_cells
        Fewest cells of a pair that is held out, and fewest controls of its stratum.
    n_samples
        ``1`` predicts sampled counts in place of expectations, which adds the metrics of the
        spread of cells.
    show_progress
        Whether to show a progress bar over folds.
    **train_kwargs
        Passed to :meth:`scvci.model.VCI.train`; give those that the model was trained with.

    Returns
    -------
    Table of :func:`scvci.metrics.evaluate` with the ``fold`` in the first column.
    ``attrs["verdict"]`` says in sentences where a baseline wins
    (:func:`scvci.metrics.verdict`), ``attrs["folds"]`` lists the held-out pairs of each fold.

    Raises
    ------
    ValueError
        If nothing can be held out, a pair is unknown or the only one of its treatment, or the
        likelihood is not one of counts.

    Warns
    -----
    UserWarning
        If there is no pair to hold out and cells are held out instead.

    Examples
    --------
    >>> table = scvci.tl.evaluate(model, max_epochs=50)
    >>> print(table.attrs["verdict"])
    """
    _check(model, split, pairs, max_folds, n_samples, train_kwargs)
    cells = model.own_cells("evaluate it")
    split = split or _choose_split(cells, pairs, min_cells)
    folds = _folds(cells, split, pairs, min_cells, model.seed_)[:max_folds]
    copy = plain_copy(model)
    tables = []
    bar = track(folds, description="Held-out folds", disable=not show_progress)
    for i, fold in enumerate(bar):
        controls = copy[(cells.treatment == 0) & ~fold.held].copy()
        names = [model.control, *fold.targets]
        with refitted(model, copy[~fold.held].copy(), train_kwargs) as fitted:
            layers = fitted.predict_counterfactual(names, controls, n_samples=n_samples)
        table = _score(
            model, copy, controls, dict(zip(names, layers, strict=True)), fold.held, min_cells
        )
        table.insert(0, "fold", i)
        tables.append(table)
    result = pd.concat(tables, ignore_index=True)
    result.attrs["split"] = split
    result.attrs["folds"] = [_describe(cells, fold.held) for fold in folds]
    result.attrs["verdict"] = verdict(result)
    return result


# -- arguments --------------------------------------------------------------------------------


def _check(
    model: VCI,
    split: str | None,
    pairs: Sequence[tuple[str, str]] | None,
    max_folds: int | None,
    n_samples: int | None,
    train_kwargs: dict[str, Any],
) -> None:
    if split not in (None, "pairs", "cells"):
        raise ValueError(f"split={split!r} must be 'pairs' or 'cells'.")
    if split == "cells" and pairs is not None:
        raise ValueError("pairs= names what split='pairs' holds out; split='cells' takes all.")
    if max_folds is not None and max_folds < 1:
        raise ValueError(f"max_folds={max_folds} must be at least 1, or None for all folds.")
    if n_samples not in (None, 1):
        raise ValueError(f"n_samples={n_samples!r} must be None or 1: one layer is scored.")
    if not model.is_count:
        raise ValueError(
            f"likelihood={model.config.likelihood!r} predicts on the scale of the data, but "
            "evaluation compares sums of counts. Score predictions with the functions of "
            "scvci.metrics, or use a likelihood of counts."
        )
    check_refit(train_kwargs)


def _choose_split(
    cells: Cells, pairs: Sequence[tuple[str, str]] | None, min_cells: int
) -> Literal["pairs", "cells"]:
    if pairs is not None or pair_folds(_count_pairs(cells), min_cells):
        return "pairs"
    warnings.warn(
        "No treatment has min_cells in one stratum and cells in another, so no (treatment, "
        "stratum) pair can be held out. Random cells of each pair are held out instead "
        "(split='cells'): the scores say nothing about strata where a treatment was not "
        "measured.",
        UserWarning,
        stacklevel=3,
    )
    return "cells"


def _count_pairs(cells: Cells) -> np.ndarray:
    """Cells of each (stratum, treatment), shape ``(n_strata, n_treatments)``."""
    shape = (cells.n_strata, cells.n_treatments)
    flat = np.ravel_multi_index((cells.stratum, cells.treatment), shape)
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)


# -- folds --------------------------------------------------------------------------------------


def _folds(
    cells: Cells,
    split: Literal["pairs", "cells"],
    pairs: Sequence[tuple[str, str]] | None,
    min_cells: int,
    seed: int,
) -> list[_Fold]:
    counts = _count_pairs(cells)
    if split == "cells":
        return _cell_folds(cells, counts, min_cells, seed)
    if pairs is None:
        chosen = pair_folds(counts, min_cells)
    else:
        chosen = choose_folds(counts, _pair_indices(cells, pairs, counts, min_cells))
    if not chosen:
        raise ValueError(
            f"There is no pair to hold out: of no treatment are there {min_cells} cells "
            "(min_cells) in one stratum and cells in another. Use split='cells' or a lower "
            "min_cells."
        )
    names, folds = cells.treatments.names, []
    for fold in chosen:
        held = np.zeros(counts.shape, dtype=bool)
        held[tuple(np.array(fold).T)] = True
        targets = [names[t] for t in sorted({t for _, t in fold})]
        folds.append(_Fold(held[cells.stratum, cells.treatment], targets))
    return folds


def _cell_folds(cells: Cells, counts: np.ndarray, min_cells: int, seed: int) -> list[_Fold]:
    """Split the treated cells of each pair; pairs too small to judge by are not held out."""
    treatment, stratum = cells.treatment, cells.stratum
    large = counts >= max(min_cells, 2) * _N_CELL_FOLDS
    large &= counts[:, :1] >= min_cells
    rows = np.flatnonzero((treatment != 0) & large[stratum, treatment])
    if not len(rows):
        raise ValueError(
            f"A fifth of no pair's cells reaches min_cells={min_cells}; lower min_cells."
        )
    group = stratum[rows] * cells.n_treatments + treatment[rows]
    rng = np.random.default_rng(seed)
    targets = [cells.treatments.names[t] for t in np.unique(treatment[rows])]
    folds = []
    for i in range(_N_CELL_FOLDS, 0, -1):
        held = np.zeros(len(treatment), dtype=bool)
        part = split_cells(group, 1 / i, None, rng)[0]
        held[rows[part]] = True
        rows, group = np.delete(rows, part), np.delete(group, part)
        folds.append(_Fold(held, targets))
    return folds


def _pair_indices(
    cells: Cells, pairs: Sequence[tuple[str, str]], counts: np.ndarray, min_cells: int
) -> list[tuple[int, int]]:
    indices = []
    for treatment, stratum in pairs:
        for kind, name, known in (
            ("Treatment", treatment, cells.treatments.names[1:]),
            ("Stratum", stratum, cells.strata),
        ):
            if name not in known:
                raise ValueError(
                    unknown_name_message(kind, str(name), known)
                    + " pairs= takes (treatment, stratum), the control left out."
                )
        x, t = cells.strata.index(stratum), cells.treatments.name_index[treatment]
        if min(counts[x, t], counts[x, 0]) < max(min_cells, 2):
            raise ValueError(
                f"Pair ({treatment}, {stratum}) has {counts[x, t]} cells beside "
                f"{counts[x, 0]} controls; fewer than min_cells={min_cells} are too few to "
                "judge by."
            )
        if (counts[:, t] > 0).sum() < 2:
            raise ValueError(
                f"Pair ({treatment}, {stratum}) is the only one of {treatment!r}: held out, "
                "nothing of the treatment is left to learn from."
            )
        indices.append((x, t))
    return indices


def _describe(cells: Cells, held: np.ndarray) -> list[tuple[str, str]]:
    """Names of the pairs with held-out cells."""
    found = np.unique(np.stack([cells.treatment[held], cells.stratum[held]], axis=1), axis=0)
    return [(cells.treatments.names[t], cells.strata[x]) for t, x in found]


def _score(
    model: VCI,
    cells: AnnData,
    controls: AnnData,
    layers: dict[str, str],
    held: np.ndarray,
    min_cells: int,
) -> pd.DataFrame:
    setup = model.setup_args
    return score_layers(
        cells,
        layers,
        predicted=controls,
        treatment_key=setup["treatment_key"],
        dose_key=setup["dose_key"],
        separator=setup["separator"],
        control=setup["control"],
        covariate_keys=setup["categorical_covariate_keys"] or (),
        test=held,
        min_cells=min_cells,
        seed=model.seed_,
    )
