"""Intervals for single cells: bounds of what a cell's expression would have been."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import settings

from scvci.data import CellReader, resolve_indices
from scvci.effects import (
    conformal_rank,
    conformal_threshold,
    least_calibration_cells,
)

from ._layers import Scale
from ._predictive import Predictive
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

_OWN, _OTHERS, _MODEL = "own stratum", "other strata", "model"
#: Why cells that training did not see give no strict guarantee.
_REASONS = {
    "validation": "validation cells, which chose when training stopped",
    "retrained": "cells that an earlier training may have seen",
}


@dataclass(frozen=True)
class _Calibration:
    """How far the intervals of one treatment reach, and why.

    Rows are the strata, and one more for cells of a combination that training did not see.
    """

    threshold: np.ndarray
    n_cells: np.ndarray
    basis: np.ndarray
    guarantee: np.ndarray


@dataclass(frozen=True)
class _Request:
    """What is asked for, apart from cells and treatments."""

    level: float
    method: str
    n_samples: int
    seed: int
    #: Calibration cells are "test" cells, "validation" cells, or those of a model "retrained".
    kind: str


class IntervalsMixin(RegistryMixin):
    """Conformal intervals of counterfactual expression, calibrated on held-out cells."""

    train_indices: np.ndarray
    _require_trained: Callable[[str], None]
    _cells_of: Callable[[AnnData | None], AnnData]
    _targets: Callable[..., list[str]]
    _layer_names: Callable[..., dict[str, list[str]]]
    _warn_about_cells: Callable[..., None]
    _describe_arm: Callable[..., dict[str, Any]]
    _record: Callable[..., None]

    def predict_interval(
        self,
        treatment: str | Sequence[str] | None = None,
        level: float = 0.9,
        method: str = "stratum",
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        layer_added: str | None = None,
        calibration_indices: Sequence[int] | np.ndarray | None = None,
        n_samples: int = 100,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> list[str]:
        r"""Write bounds of each cell's expression under another treatment into two layers.

        A predictive distribution of each cell and gene (draws at the cell's own library size) is
        widened or narrowed until it is right for cells that training did not see: an outcome y of
        a held-out cell of (x, t) scores its distance from the centre,
        :math:`|F(y \mid x, t) - 1/2|`, and the interval holds all values that score no higher than
        the :math:`(n + 1) \, level`-th smallest of n such scores. Where that rank is between two
        whole numbers, one of them is drawn for each gene, so that coverage is right over genes.
        Each gene, stratum and treatment is calibrated by itself.

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all, the control included.
        level
            Share of the cells whose counterfactual the interval is to hold, for each gene.
        method
            ``"stratum"``: the predictive distribution is the stratum's, that of its training
            cells' latent states. It is the same for all cells of a stratum but for the library
            size, and its coverage is guaranteed (see the notes). ``"individual"``: the predictive
            distribution rests on the cell's own latent state, so that cells differ. It is
            calibrated by a detour: each held-out cell of (x, t) is translated by the model to a
            draw of its counts under another treatment of the stratum, predicted back from that
            draw alone, and compared with its real counts. Its coverage rests on the model.
        adata
            Cells to predict for, by default the model's.
        indices
            Rows, mask or names of the cells; rows outside are NaN.
        layer_added
            Name in place of ``"counterfactual_<treatment>"``, to which ``_low`` and ``_high`` are
            added. With several treatments it is the prefix.
        calibration_indices
            Rows, mask or names of the model's cells to calibrate on; by default its test cells,
            those that ``train(train_size=0.7, validation_size=0.1)`` leaves out, or else its
            validation cells.
        n_samples
            Draws per predictive distribution. Time and the memory of a batch grow with it: 5,000
            cells × 2,000 genes take some four minutes on one core at the default.
        seed
            Seed of the draws. The caller's generators are left as they were.
        batch_size
            Cells per step.

        Returns
        -------
        Names of the layers, low before high. Both ends belong to the interval; for counts they
        are whole numbers at each cell's own library size. ``adata.uns["scvci"]`` records for each
        layer the level, method and draws, and under ``"calibration"`` for each stratum the number
        of calibration cells, their ``basis`` and whether there is a ``guarantee``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the level does not lie in (0, 1), the method or a treatment is unknown, or there
            are no cells to calibrate on, or training saw them.

        Warns
        -----
        UserWarning
            If the intervals of a stratum have no guarantee, and why.

        Notes
        -----
        *What the guarantee says.* If treatment is unconfounded given the stratum x, then the
        counterfactual Y(t) of a cell of x, whatever it received, is distributed like the outcomes
        of cells of x that received t (Lei and Candès, 2021). Held-out cells of (x, t) and a new
        cell of x are then exchangeable, and so are scores that depend on a cell through x, its
        library size and its outcome. Each interval holds Y(t) with a probability of at least
        ``level``, however wrong the model is. That is an average over cells, calibration sets and
        drawn ranks: among cells of an unusual state coverage can be lower, and for one given cell
        nothing is promised. Where hardly a cell has a count of a gene, an interval of a single
        zero covers more than asked for, and no interval covers less.

        *What it assumes.* No confounding within strata, continuous covariates included; cells
        neither lost nor gained by the treatment; a library size that the treatment leaves alone
        (with few or dominant genes a cell's total is partly outcome; a size factor measured before
        treatment is not). For the model's training cells it holds up to the trace that a single
        cell leaves in the weights.

        *When there is none.* With too few held-out cells, :math:`(n + 1) \, level > n` (fewer than
        9 at 0.9), the treatment's cells of all strata calibrate (basis ``"other strata"``), and
        without these the interval is the model's own quantiles (``"model"``). Validation cells
        chose when training stopped and what means are calibrated to, so that they give no strict
        guarantee either.

        *Individuals.* An individual counterfactual is identified only under assumptions: data
        determine the distribution of Y(t) in a stratum, but not which cell would have been which.
        A model that rotates the latent state of the treated cells fits equally well and disagrees
        about every cell. ``"stratum"`` needs no such assumption; ``"individual"`` assumes that the
        model's law of Y(t) given a cell's factual counts is right, and no held-out cell can check
        that, as none shows both. Even with the right latent state its coverage depends on whether
        the noise of a cell's two worlds is shared.

        References
        ----------
        Lei and Candès, "Conformal inference of counterfactuals and individual treatment effects",
        JRSS-B 2021. Chernozhukov, Wüthrich and Zhu, "Distributional conformal prediction", PNAS
        2021.

        Examples
        --------
        >>> model.train(train_size=0.7, validation_size=0.1)
        >>> model.predict_interval("IFNb")
        ['counterfactual_IFNb_low', 'counterfactual_IFNb_high']
        """
        self._require_trained("predict intervals")
        _check_request(level, method, n_samples)
        targets = self._targets(treatment)
        single = isinstance(treatment, str)
        names = self._layer_names(targets, layer_added, single, Scale(None, False, None))
        held, kind = self._calibration_cells(calibration_indices)
        request = _Request(level, method, n_samples, seed, kind)
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)
        self._warn_about_cells(reader, rows)
        if kind in _REASONS:
            _warn_about_calibration(kind)
        predictive = Predictive.of(
            self, method == "stratum", n_samples, seed, batch_size or settings.batch_size
        )
        own = CellReader.from_registry(self.adata, self.registry, self.gene_names_)
        written = []
        for target, (base,) in names.items():
            code = self.treatments.index(target)
            chosen = held[own.treatment[held] == code]
            scores = predictive.scores(own, chosen, code)
            calibration = self._calibrate(scores, own.stratum[chosen], predictive, request)
            self._warn_without_guarantee(calibration, reader.stratum[rows], target, request)
            layers = predictive.bounds(reader, rows, code, calibration.threshold)
            for end, values in zip(("low", "high"), layers, strict=True):
                cells.layers[f"{base}_{end}"] = values
                entry = {**self._describe_arm(target), **self._describe(end, calibration, request)}
                self._record(cells, f"{base}_{end}", entry)
                written.append(f"{base}_{end}")
        return written

    def _calibration_cells(
        self, indices: Sequence[int] | np.ndarray | None
    ) -> tuple[np.ndarray, str]:
        """Rows of the calibration cells, and what kind of cells they are."""
        if self.adata is None:
            raise ValueError(
                "Intervals are calibrated on the model's held-out cells, but it was loaded "
                "without cells; load it with adata=."
            )
        test, validation = self._part("test"), self._part("validation")
        rows = test if len(test) else validation
        if indices is not None:
            rows = resolve_indices(self.adata, indices)
        n_seen = int(np.isin(rows, self.train_indices).sum())
        if n_seen:
            raise ValueError(
                f"calibration_indices hold {n_seen} cells that the model was trained on; their "
                "scores are too good. Take cells of model.test_indices."
            )
        if not len(rows):
            raise ValueError(
                "There are no held-out cells to calibrate intervals on; train with "
                "train_size=0.7, validation_size=0.1, or use predict_counterfactual(quantiles=) "
                "for the model's own quantiles."
            )
        if self.n_trainings_ > 1:
            return rows, "retrained"
        return rows, "validation" if np.isin(rows, validation).any() else "test"

    def _part(self, name: str) -> np.ndarray:
        rows = getattr(self, f"{name}_indices")
        return np.asarray([] if rows is None else rows, dtype=np.int64)

    def _calibrate(
        self, scores: np.ndarray, stratum: np.ndarray, predictive: Predictive, request: _Request
    ) -> _Calibration:
        """Read each stratum's threshold off the scores of cells that received the treatment."""
        n_rows, least = len(self.strata) + 1, least_calibration_cells(request.level)
        threshold = np.full((n_rows, len(self.gene_names_)), request.level / 2)
        basis = np.full(n_rows, _MODEL, dtype=object)
        n_cells = np.bincount(stratum, minlength=n_rows)
        rng = np.random.default_rng(request.seed)
        for x in range(n_rows):
            if n_cells[x] >= least:
                basis[x] = _OWN
                threshold[x] = conformal_threshold(scores[stratum == x], request.level, rng)
            elif len(scores) >= least:
                basis[x] = _OTHERS
                threshold[x] = conformal_threshold(scores, request.level, rng)
        if predictive.donors is not None:
            empty = [not len(mean) for mean, _ in predictive.donors]
            threshold[[*empty, True]] = np.nan
        exact = predictive.donors is not None and request.kind == "test"
        return _Calibration(threshold, n_cells, basis, (basis == _OWN) & exact)

    def _warn_without_guarantee(
        self, calibration: _Calibration, stratum: np.ndarray, target: str, request: _Request
    ) -> None:
        present = [x for x in np.unique(stratum) if x >= 0 and calibration.basis[x] != _OWN]
        if present:
            listed = ", ".join(f"{self.strata[x]} ({calibration.n_cells[x]})" for x in present)
            warnings.warn(
                f"Intervals under {target!r} have no guarantee in {listed}: a level of "
                f"{request.level:g} needs {least_calibration_cells(request.level)} held-out cells "
                "of the stratum with the treatment. They rest on the treatment's cells of all "
                "strata, or on the model's own quantiles; uns['scvci'] says which.",
                UserWarning,
                stacklevel=3,
            )

    def _describe(self, end: str, calibration: _Calibration, request: _Request) -> dict[str, Any]:
        return {
            "scale": f"{end} end of an interval of counts at own library size",
            "calibrated": True,
            "n_samples": request.n_samples,
            "draw_seed": request.seed,
            "level": request.level,
            "method": request.method,
            "calibration": {
                "cells": request.kind,
                "stratum": np.asarray(self.strata, dtype=object),
                "n_cells": calibration.n_cells[:-1],
                "basis": calibration.basis[:-1],
                "guarantee": calibration.guarantee[:-1],
            },
        }


def _check_request(level: float, method: str, n_samples: int) -> None:
    conformal_rank(1, level)
    if method not in ("stratum", "individual"):
        raise ValueError(f"method={method!r} is neither 'stratum' nor 'individual'.")
    if n_samples < 2:
        raise ValueError(f"n_samples={n_samples} must be at least 2; 100 or more are sensible.")


def _warn_about_calibration(kind: str) -> None:
    warnings.warn(
        f"Intervals are calibrated on {_REASONS[kind]}: their coverage is not guaranteed. Train a "
        "model once with train_size=0.7, validation_size=0.1 to keep cells for calibration.",
        UserWarning,
        stacklevel=3,
    )
