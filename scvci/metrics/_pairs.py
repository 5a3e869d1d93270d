"""Walk over (stratum, treatment) pairs: what each is held to, and every method's scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ._de import differential_expression
from ._individual import top_genes
from ._population import pearson_delta, pseudobulk
from ._scoring import (
    ALPHA,
    PairReference,
    score_cells,
    score_distributions,
    score_means,
    score_significance,
)
from ._tables import baseline_tables, log_normalise, pair_pseudobulks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ._experiment import Experiment, Predictions

_N_TOP = 50
#: Baseline of pairs that were measured: the mean of their own other cells.
PAIR_MEAN = "mean of the pair"
#: What no prediction can be expected to exceed.
CEILING = "half of the real cells"


@dataclass(frozen=True)
class _Stratum:
    """One stratum: its query cells and what is known of all treatments in it."""

    name: str
    rows: np.ndarray
    control_cells: np.ndarray
    control: np.ndarray
    centroids: dict[str, np.ndarray]


class PairScorer:
    """Score predictions and baselines for every pair that there is a reference for.

    Parameters
    ----------
    real, guess
        Real cells and predictions.
    baselines
        Names of the baselines to score.
    min_cells
        Fewest cells a side.
    max_cells
        Most cells a side for distances between cells.
    rng
        Choice of these.
    """

    def __init__(
        self,
        real: Experiment,
        guess: Predictions,
        baselines: Collection[str],
        min_cells: int,
        max_cells: int,
        rng: np.random.Generator,
    ) -> None:
        self.real, self.guess = real, guess
        self.baselines = baselines
        self.min_cells, self.max_cells = max(min_cells, 2), max_cells
        self.rng = rng
        self.strata = sorted(set(guess.stratum) & set(real.stratum))
        others = (set(real.treatment) | set(guess.targets)) - {real.control}
        self.treatments = [real.control, *sorted(others)]
        self._statistic_of: dict[tuple[str, str], np.ndarray] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per pair, method and metric."""
        for name in self.strata:
            stratum = self._read(name)
            if stratum is None:
                continue
            for target in self.guess.targets:
                if target in stratum.centroids and self._n_cells(stratum, target) is not None:
                    yield from self._pair_rows(stratum, target)

    def _pair_rows(self, stratum: _Stratum, target: str) -> Iterator[dict[str, Any]]:
        seen = self._training_cells(target, stratum.name).any()
        scores = self._scores(stratum, target)
        for (method, kind), values in scores.items():
            for metric, value in values.items():
                yield {
                    "treatment": target,
                    "stratum": stratum.name,
                    "pair": "seen" if seen else "held out",
                    "method": method,
                    "kind": kind,
                    "metric": metric,
                    "value": value,
                    "n_cells": self._n_cells(stratum, target),
                }

    # -- what there is ----------------------------------------------------------------------------

    def _read(self, name: str) -> _Stratum | None:
        rows = self.guess.controls(name)
        if not self._is_scored(name, rows):
            return None
        if self.guess.truth:
            control_cells = self.guess.known(self.real.control, rows)
        else:
            control_cells = self.real.dense(self.real.controls(name))
        centroids = {t: self._centroid(t, name, rows) for t in self.treatments[1:]}
        return _Stratum(
            name=name,
            rows=rows,
            control_cells=log_normalise(control_cells),
            control=self._control(name, rows),
            centroids={t: c for t, c in centroids.items() if c is not None},
        )

    def _is_scored(self, stratum: str, rows: np.ndarray) -> bool:
        """Whether there are enough control cells, to predict for and to measure from."""
        return min(len(rows), int(self.real.controls(stratum).sum())) >= self.min_cells

    def _control(self, stratum: str, rows: np.ndarray) -> np.ndarray:
        """Pseudobulk that changes are measured from."""
        if self.guess.truth:
            return pseudobulk(self.guess.known(self.real.control, rows))
        return pseudobulk(self.real.counts[np.flatnonzero(self.real.controls(stratum))])

    def _centroid(self, treatment: str, stratum: str, rows: np.ndarray) -> np.ndarray | None:
        """Pseudobulk of a treatment: the truth, real test cells, or else other real cells."""
        if self.guess.truth:
            known = treatment in self.guess.truth
            return pseudobulk(self.guess.known(treatment, rows)) if known else None
        cells = self._reference_cells(treatment, stratum)
        if cells.sum() < self.min_cells:
            cells = self._training_cells(treatment, stratum)
        counts = self.real.counts[np.flatnonzero(cells)]
        return pseudobulk(counts) if cells.any() and counts.sum() > 0 else None

    def _reference_cells(self, treatment: str, stratum: str) -> np.ndarray:
        """Mask of the real cells to compare with: test cells where a test is given."""
        test = self.real.test
        return self.real.where(treatment, stratum, test if test.any() else None)

    def _training_cells(self, treatment: str, stratum: str) -> np.ndarray:
        """Mask of the real cells outside the test."""
        return self.real.where(treatment, stratum, ~self.real.test)

    def _n_cells(self, stratum: _Stratum, target: str) -> int | None:
        """How many cells there are to compare with; ``None`` if too few."""
        if self.guess.truth:
            return len(stratum.rows)
        n = int(self._reference_cells(target, stratum.name).sum())
        return n if n >= self.min_cells else None

    # -- scores -----------------------------------------------------------------------------------

    def _scores(self, stratum: _Stratum, target: str) -> dict[tuple[str, str], dict[str, float]]:
        """Scores by (method, kind)."""
        known = self.guess.known(target, stratum.rows) if self.guess.truth else None
        true_counts = (
            self.real.dense(self._reference_cells(target, stratum.name))
            if known is None
            else known
        )
        true = log_normalise(true_counts)
        reference = self._reference(stratum, target, true)
        scores = self._model_scores(stratum, target, true, reference)
        if self.baselines:
            scores |= self._baseline_scores(stratum, target, true, reference)
            if known is None:
                scores |= self._ceiling(stratum, true_counts, reference)
        return scores

    def _ceiling(
        self, stratum: _Stratum, counts: np.ndarray, reference: PairReference
    ) -> dict[tuple[str, str], dict[str, float]]:
        """Scores of one random half of the real cells as a prediction of the other."""
        controls = self.real.counts[np.flatnonzero(self.real.controls(stratum.name))]
        halves = [*self._halves(counts), *self._halves(controls)]
        if not all(half.shape[0] >= 2 and half.sum() > 0 for half in halves):
            return {}
        first, second, *own_controls = halves
        treatments = reference.treatments.copy()
        treatments[reference.index] = pseudobulk(second)
        other = replace(reference, mean=treatments[reference.index], treatments=treatments)
        scores = score_means(other, pseudobulk(first))
        cells = (log_normalise(second), log_normalise(first))
        scores |= score_distributions(other, *cells, self.rng, self.max_cells)
        # Effects of disjoint cells, controls too: their errors have nothing in common.
        one, two = (
            pseudobulk(treated) - pseudobulk(control)
            for treated, control in zip((first, second), own_controls, strict=True)
        )
        scores["agreement"] = pearson_delta(one, two, np.zeros_like(one))
        return {(CEILING, "ceiling"): scores}

    def _halves(self, counts: Any) -> list[Any]:
        order = self.rng.permutation(counts.shape[0])
        return [counts[np.sort(part)] for part in np.array_split(order, 2)]

    def _reference(self, stratum: _Stratum, target: str, true: np.ndarray) -> PairReference:
        names = list(stratum.centroids)
        significant = None
        if self.guess.truth:
            top = top_genes(true - stratum.control_cells, _N_TOP)
        else:
            q = differential_expression(true, stratum.control_cells)["q_value"].to_numpy()
            significant = q < ALPHA
            top = self._top_genes(target, stratum.name)
        return PairReference(
            mean=stratum.centroids[target],
            control=stratum.control,
            treatments=np.stack([stratum.centroids[t] for t in names]),
            index=names.index(target),
            top=top,
            significant=significant,
        )

    def _model_scores(
        self, stratum: _Stratum, target: str, true: np.ndarray, reference: PairReference
    ) -> dict[tuple[str, str], dict[str, float]]:
        guess, method = self.guess, self.guess.method
        values = guess.values(target, stratum.rows)
        cells = log_normalise(values)
        scores = score_means(reference, pseudobulk(values))
        sampled = guess.is_sampled(target, values)
        if sampled == (not guess.truth):
            scores |= score_distributions(reference, true, cells, self.rng, self.max_cells)
        if sampled and reference.significant is not None:
            scores |= score_significance(reference.significant, cells, stratum.control_cells)
        if guess.control not in guess.layers:
            return {(method, "model"): scores}
        control = guess.values(guess.control, stratum.rows)
        if guess.truth:
            scores |= score_cells(true, cells, stratum.control_cells, log_normalise(control))
        changed = stratum.control + pseudobulk(values) - pseudobulk(control)
        return {
            (method, "model"): scores,
            (f"{method} (change)", "model"): score_means(reference, changed),
        }

    def _baseline_scores(
        self, stratum: _Stratum, target: str, true: np.ndarray, reference: PairReference
    ) -> dict[tuple[str, str], dict[str, float]]:
        x, t = self.strata.index(stratum.name), self.treatments.index(target)
        scores = {}
        for name, table in self._baseline_tables.items():
            guess = table[x, t]
            if not np.isfinite(guess).all():
                continue
            scores[name, "baseline"] = score_means(reference, guess)
            if self.guess.truth:
                # Every cell gets the mean: baselines do not tell cells apart.
                flat, base = np.broadcast_to(guess, true.shape), stratum.control
                control = stratum.control_cells
                individual = score_cells(true, flat, control, np.broadcast_to(base, true.shape))
                scores[name, "baseline"] |= individual
                continue
            cells = self._baseline_cells(stratum, target, name, guess)
            scores[name, "baseline"] |= score_distributions(
                reference, true, cells, self.rng, self.max_cells
            )
        return scores

    def _baseline_cells(
        self, stratum: _Stratum, target: str, name: str, guess: np.ndarray
    ) -> np.ndarray:
        """Cells whose distribution a baseline predicts, log-normalised.

        Real cells, where its mean is theirs, and else control cells, shifted by the change.
        """
        if name == PAIR_MEAN:
            return log_normalise(self.real.dense(self._training_cells(target, stratum.name)))
        others = [x for x in self.strata if x != stratum.name]
        own = [self._training_cells(target, x) for x in others]
        if name == "treatment mean" and sum(cells.sum() for cells in own) > 0:
            return log_normalise(self.real.dense(np.any(own, axis=0)))
        return np.maximum(stratum.control_cells + guess - stratum.control, 0)

    @cached_property
    def _baseline_tables(self) -> dict[str, np.ndarray]:
        """Baselines' predictions from the cells outside the test, by name."""
        real = self.real
        known = ~real.test & np.isin(real.stratum, self.strata)
        counts = real.counts[np.flatnonzero(known)]
        treatment = _codes(real.treatment[known], self.treatments)
        stratum = _codes(real.stratum[known], self.strata)
        means = pair_pseudobulks(
            counts, treatment, stratum, (len(self.strata), len(self.treatments))
        )
        for x, name in enumerate(self.strata):
            # The control that changes are measured from is the one they are added to.
            rows = self.guess.controls(name)
            if self._is_scored(name, rows):
                means[x, 0] = self._control(name, rows)
        pair = means.copy()
        if not (real.test.any() or self.guess.truth):
            # A treatment of one stratum would be predicted by the cells it is compared with.
            single = np.isfinite(means).all(axis=2).sum(axis=0) == 1
            means[:, np.flatnonzero(single[1:]) + 1] = np.nan
            tables = baseline_tables(means)
        else:
            tables = {**baseline_tables(means), PAIR_MEAN: pair}
        return {name: table for name, table in tables.items() if name in self.baselines}

    def _top_genes(self, target: str, stratum: str) -> np.ndarray:
        """Genes with the largest absolute t in the pair's own cells outside the test.

        A pair without any borrows the mean over the other strata.
        """
        own = self._training_cells(target, stratum).sum() >= 2
        strata = [stratum] if own else self.strata
        statistics = [self._statistic(target, x) for x in strata]
        found = [s for s in statistics if len(s)]
        if not found:
            return np.array([], dtype=int)
        return np.argsort(-np.mean(found, axis=0), kind="stable")[:_N_TOP]

    def _statistic(self, target: str, stratum: str) -> np.ndarray:
        """Absolute t of each gene, treated against control, outside the test; may be empty."""
        key = (target, stratum)
        if key not in self._statistic_of:
            real = self.real
            treated = self._training_cells(target, stratum)
            control = self._training_cells(real.control, stratum)
            if min(treated.sum(), control.sum()) < 2:
                self._statistic_of[key] = np.array([])
            else:
                table = differential_expression(
                    log_normalise(real.dense(treated)), log_normalise(real.dense(control))
                )
                self._statistic_of[key] = np.abs(table["score"].to_numpy())
        return self._statistic_of[key]


def _codes(labels: np.ndarray, names: list[str]) -> np.ndarray:
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[label] for label in labels], dtype=np.int64)
