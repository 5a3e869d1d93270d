"""Should I trust this model on my data? Retrain without some cells and predict them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.utils import track

from scvci._names import unknown_name_message
from scvci.data import (
    choose_folds,
    pair_counts,
    pair_folds,
    split_cells,
)
from scvci.metrics import evaluate, verdict

from ._crossfit import RefitMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

#: Number of folds of a split by cells: each holds out a fifth of every pair.
_N_CELL_FOLDS = 5


class EvaluationMixin(RefitMixin):
    """Cross-validation on the model's own cells, beside the trivial baselines."""

    _codes: Callable[[], tuple[np.ndarray, np.ndarray]]

    def evaluate(
        self,
        split: str | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        max_folds: int | None = None,
        min_cells: int = 20,
        n_samples: int | None = None,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> pd.DataFrame:
        """Predict cells that a fresh model has not seen, and score it beside the baselines.

        For each fold a model with the same settings and seed is trained without the held-out
        cells. It predicts, from the controls of a stratum, what those cells are under the
        treatment; the real cells judge (:func:`scvci.metrics.evaluate`). Held-out cells enter no
        training, stopping, calibration, baseline or choice of genes. Neither this model nor its
        AnnData is changed.

        Parameters
        ----------
        split
            ``"pairs"`` holds out all cells of (treatment, stratum) pairs: can the model carry an
            effect over to a stratum where it was not measured? ``"cells"`` holds out a fifth of
            the treated cells of every pair. By default pairs, where some treatment was measured in
            two strata, and else cells.
        pairs
            (treatment, stratum) pairs to hold out, strata by their names in ``model.strata``; by
            default all that can be (:func:`scvci.data.pair_folds`).
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
            Passed to :meth:`train`; give those that this model was trained with.

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
        >>> table = model.evaluate(max_epochs=50)
        >>> print(table.attrs["verdict"])
        """
        self._check_evaluation(split, pairs, max_folds, n_samples, train_kwargs)
        split = split or self._choose_split(pairs, min_cells)
        cells = self._plain_copy()
        treatment, stratum = self._codes()
        folds = self._folds(split, pairs, treatment, stratum, min_cells)[:max_folds]
        tables = []
        bar = track(folds, description="Held-out folds", disable=not show_progress)
        for i, (held, targets) in enumerate(bar):
            controls = cells[(treatment == 0) & ~held].copy()
            train = cells[~held].copy()
            layers = self._predict_fold(train, controls, targets, n_samples, train_kwargs)
            table = self._score_fold(cells, controls, layers, held, min_cells)
            table.insert(0, "fold", i)
            tables.append(table)
        result = pd.concat(tables, ignore_index=True)
        result.attrs["split"] = split
        result.attrs["folds"] = [
            self._describe_fold(held, treatment, stratum) for held, _ in folds
        ]
        result.attrs["verdict"] = verdict(result)
        return result

    # -- arguments ------------------------------------------------------------------------------

    def _check_evaluation(
        self,
        split: str | None,
        pairs: Sequence[tuple[str, str]] | None,
        max_folds: int | None,
        n_samples: int | None,
        train_kwargs: dict[str, Any],
    ) -> None:
        if self.adata is None:
            raise ValueError(
                "The model was loaded without cells; load it with adata= to evaluate it."
            )
        if split not in (None, "pairs", "cells"):
            raise ValueError(f"split={split!r} is neither 'pairs' nor 'cells'.")
        if split == "cells" and pairs is not None:
            raise ValueError("pairs= names what split='pairs' holds out; split='cells' takes all.")
        if max_folds is not None and max_folds < 1:
            raise ValueError(f"max_folds={max_folds} must be at least 1, or None for all folds.")
        if n_samples not in (None, 1):
            raise ValueError(f"n_samples={n_samples!r} must be None or 1: one layer is scored.")
        if not self.module.likelihood.is_count:
            raise ValueError(
                f"likelihood={self.config.likelihood!r} predicts on the scale of the data, but "
                "evaluation compares sums of counts. Score predictions with the functions of "
                "scvci.metrics, or use a likelihood of counts."
            )
        self._check_refit(train_kwargs)

    def _choose_split(self, pairs: Sequence[tuple[str, str]] | None, min_cells: int) -> str:
        treatment, stratum = self._codes()
        if pairs is not None or pair_folds(self._pair_counts(treatment, stratum), min_cells):
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

    def _pair_counts(self, treatment: np.ndarray, stratum: np.ndarray) -> np.ndarray:
        return pair_counts(treatment, stratum, len(self.treatments), len(self.strata))

    # -- folds ----------------------------------------------------------------------------------

    def _folds(
        self,
        split: str,
        pairs: Sequence[tuple[str, str]] | None,
        treatment: np.ndarray,
        stratum: np.ndarray,
        min_cells: int,
    ) -> list[tuple[np.ndarray, list[str]]]:
        """Masks of held-out cells, and the treatments to predict."""
        counts = self._pair_counts(treatment, stratum)
        if split == "cells":
            return self._cell_folds(counts, treatment, stratum, min_cells)
        if pairs is None:
            chosen = pair_folds(counts, min_cells)
        else:
            chosen = choose_folds(counts, self._pair_indices(pairs, counts, min_cells))
        if not chosen:
            raise ValueError(
                f"There is no pair to hold out: of no treatment are there {min_cells} cells "
                "(min_cells) in one stratum and cells in another. Use split='cells' or a lower "
                "min_cells."
            )
        folds = []
        for fold in chosen:
            held = np.zeros(len(treatment), dtype=bool)
            for x, t in fold:
                held |= (stratum == x) & (treatment == t)
            folds.append((held, [self.treatments[t] for t in sorted({t for _, t in fold})]))
        return folds

    def _cell_folds(
        self, counts: np.ndarray, treatment: np.ndarray, stratum: np.ndarray, min_cells: int
    ) -> list[tuple[np.ndarray, list[str]]]:
        """Split the treated cells of each pair; pairs too small to judge by are not held out."""
        large = counts >= max(min_cells, 2) * _N_CELL_FOLDS
        large &= counts[:, :1] >= min_cells
        rows = np.flatnonzero((treatment != 0) & large[stratum, treatment])
        if not len(rows):
            raise ValueError(
                f"A fifth of no pair's cells reaches min_cells={min_cells}; lower min_cells."
            )
        group = stratum[rows] * len(self.treatments) + treatment[rows]
        rng = np.random.default_rng(self.seed_)
        targets = [self.treatments[t] for t in np.unique(treatment[rows])]
        folds = []
        for i in range(_N_CELL_FOLDS, 0, -1):
            held = np.zeros(len(treatment), dtype=bool)
            part = split_cells(group, 1 / i, None, rng)[0]
            held[rows[part]] = True
            rows, group = np.delete(rows, part), np.delete(group, part)
            folds.append((held, targets))
        return folds

    def _pair_indices(
        self, pairs: Sequence[tuple[str, str]], counts: np.ndarray, min_cells: int
    ) -> list[tuple[int, int]]:
        indices = []
        for treatment, stratum in pairs:
            for kind, name, known in (
                ("Treatment", treatment, self.treatments[1:]),
                ("Stratum", stratum, self.strata),
            ):
                if name not in known:
                    raise ValueError(
                        unknown_name_message(kind, str(name), known)
                        + " pairs= takes (treatment, stratum), the control left out."
                    )
            x, t = self.strata.index(stratum), self.treatments.index(treatment)
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

    def _describe_fold(
        self, held: np.ndarray, treatment: np.ndarray, stratum: np.ndarray
    ) -> list[tuple[str, str]]:
        found = np.unique(np.stack([treatment[held], stratum[held]], axis=1), axis=0)
        return [(self.treatments[t], self.strata[x]) for t, x in found]

    # -- one fold -------------------------------------------------------------------------------

    def _predict_fold(
        self,
        train: AnnData,
        controls: AnnData,
        targets: list[str],
        n_samples: int | None,
        train_kwargs: dict[str, Any],
    ) -> dict[str, str]:
        """Train a fresh model and write its predictions for the controls."""
        names = [self.control, *targets]
        with self._refitted(train, train_kwargs) as model:
            layers = model.predict_counterfactual(names, adata=controls, n_samples=n_samples)
        return dict(zip(names, layers, strict=True))

    def _score_fold(
        self,
        cells: AnnData,
        controls: AnnData,
        layers: dict[str, str],
        held: np.ndarray,
        min_cells: int,
    ) -> pd.DataFrame:
        setup = self.registry["setup_args"]
        return evaluate(
            cells,
            layers,
            predicted=controls,
            treatment_key=setup["treatment_key"],
            dose_key=self._setup_arg("dose_key"),
            separator=self._setup_arg("separator"),
            control=self.control,
            covariate_keys=setup["categorical_covariate_keys"] or (),
            test=held,
            min_cells=min_cells,
            seed=self.seed_,
        )
