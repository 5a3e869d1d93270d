"""Conformal intervals of counterfactual expression, calibrated on held-out cells."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci._numbers import batch_size_or_default, whole_number
from scvci.data._cells import resolve_indices
from scvci.data._labels import is_one_name
from scvci.data._requests import measured_names
from scvci.effects import conformal_threshold
from scvci.effects._conformal import conformal_rank, least_calibration_cells
from scvci.model._layers import layer_names

from ._comparison import column_codes, warn_about_clusters
from ._predictive import Predictive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvci.model import VCI

_OWN, _OTHERS, _MODEL, _NONE = "own stratum", "other strata", "model", "none"


@dataclass(frozen=True)
class _Bounds:
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
    n_samples: int
    seed: int
    #: Calibration cells are "test" or "validation" cells.
    kind: str


def predict_interval(
    model: VCI,
    treatment: str | Sequence[str] | None = None,
    *,
    level: float = 0.9,
    adata: AnnData | None = None,
    indices: Any = None,
    layer_added: str | None = None,
    calibration_indices: Any = None,
    cluster_key: str | None = None,
    n_samples: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[str]:
    r"""Write bounds of each cell's expression under another treatment into two layers.

    A predictive distribution of each gene in the cell's stratum (draws at the cell's own library
    size, from the latent states of the stratum's training cells) is widened or narrowed until it
    is right for cells that training did not see: an outcome y of a held-out cell of (x, t) scores
    its distance from the centre, :math:`|F(y \mid x, t) - 1/2|`, and the interval holds all values
    that score no higher than the :math:`(n + 1) \, level`-th smallest of n such scores. Where that
    rank is between two whole numbers, one of them is drawn for each gene, so that coverage is
    right over genes. Each gene, stratum and treatment is calibrated by itself. Where a
    cell's latent state is farther from the centre of its stratum than those of four fifths of its
    training cells, the interval is extended to the quantiles of the cell's own draws.

    Parameters
    ----------
    model
        A trained model that holds its cells.
    treatment
        A treatment, several, or ``None`` for all, the control included.
    level
        Share of the cells whose counterfactual the interval is to hold, for each gene.
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
        validation cells. Cells are known by name: none that any training saw is used.
    cluster_key
        Column of ``obs`` with the donor, animal or well of each cell of the model. With it the
        interval is for a cell of a new donor: those that training saw no cell of calibrate,
        each with the same weight.
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
    layer the level and draws, and under ``"calibration"`` for each stratum the number
    of calibration cells, their ``basis`` and whether there is a ``guarantee``.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the level is not in (0, 1), a treatment is unknown, there are no cells to calibrate
        on, training saw them, or a layer holds something else.

    Warns
    -----
    UserWarning
        If the intervals of a stratum have no guarantee, and why; if ``obs`` has a column that
        looks like donors and ``cluster_key`` is not given.

    Notes
    -----
    *What the guarantee says.* If treatment is unconfounded given the stratum x, then the
    counterfactual Y(t) of a cell of x, whatever it received, is distributed like the outcomes
    of cells of x that received t (Lei and Candès, 2021). Held-out cells of (x, t) and a new
    cell of x are then exchangeable, and so are scores that depend on a cell through x, its
    library size and its outcome. Each interval holds Y(t) with a probability of at least
    ``level``, however wrong the model is, and one that is extended no less. That is an average
    over cells, calibration sets and drawn ranks: for one given cell, or those of an unusual state,
    nothing is promised. Extended intervals make up for what would be lost at the edge (by
    Mahalanobis' distance of latent means, with the covariance within strata that all share) if
    the model reads states and their effects rightly. Where hardly a cell has a count of a gene, an
    interval of a single zero covers more than asked for, and no interval covers less.

    *What it assumes.* No confounding within strata, continuous covariates included; cells
    neither lost nor gained by the treatment; a library size that the treatment leaves alone
    (with few or dominant genes a cell's total is partly outcome; a size factor measured before
    treatment is not). For the model's training cells it holds up to the trace that a single
    cell leaves in the weights.

    *Donors.* Cells of a donor resemble each other, and what is exchangeable is the donor. Without
    ``cluster_key`` the guarantee is for further cells of the same donors, in the shares that
    they have among the calibration cells. With it, held-out donors calibrate: at least 9 of
    them are needed at a level of 0.9, and few of them are paid for by wide intervals: that of 10
    covers 0.99 where donors are alike, that of 20 0.95, since how donors differ is not assumed
    to be known. With fewer, or with donors that training saw, each donor still counts the same,
    and the record says that there is no guarantee.

    *When there is none.* With too few held-out cells, :math:`(n + 1) \, level > n` (fewer than
    9 at 0.9), the treatment's cells of all strata calibrate (basis ``"other strata"``), and
    without these the interval is the model's own quantiles (``"model"``). Validation cells
    chose when training stopped and what means are calibrated to, so that they give no strict
    guarantee either.

    *What it is not.* Away from the edge, the predictive distribution is the stratum's: it is the
    same for all its cells but for the library size. No interval for what one given cell would have
    been can be checked, as no cell is seen under both treatments; quantiles of a cell's own draws
    (``predict_counterfactual(quantiles=)``) are the model's.

    References
    ----------
    Lei and Candès, "Conformal inference of counterfactuals and individual treatment effects",
    JRSS-B 2021. Chernozhukov, Wüthrich and Zhu, "Distributional conformal prediction", PNAS
    2021.

    Examples
    --------
    >>> model = scvci.model.VCI(adata)
    >>> model.train(train_size=0.7, validation_size=0.1)
    >>> scvci.tl.predict_interval(model, "IFNb")
    ['counterfactual_IFNb_low', 'counterfactual_IFNb_high']
    """
    model.require_trained("predict intervals")
    conformal_rank(1, level)
    whole_number("n_samples", n_samples, least=2)
    targets = measured_names(model.arms, treatment)
    single = treatment is not None and is_one_name(treatment)
    layers = layer_names(targets, layer_added, single, ("_low", "_high"))
    held, kind = _calibration_cells(model, calibration_indices)
    clusters = _clusters(model, cluster_key)
    request = _Request(level, n_samples, seed, kind)
    own, cells = model.cells(), model.cells(adata, indices)
    results = model.results(cells.adata)
    for target, names in layers.items():
        for name in names:
            results.check("layers", name, "interval", target)
    model.warn_about_cells(cells)
    if kind == "validation":
        warnings.warn(
            "Intervals are calibrated on validation cells, which chose when training stopped: "
            "their coverage is not guaranteed. Train with train_size=0.7, validation_size=0.1 to "
            "keep cells for calibration.",
            UserWarning,
            stacklevel=2,
        )
    predictive = Predictive.of(
        model, own, level, n_samples, seed, batch_size_or_default(batch_size)
    )
    written: dict[str, tuple[Any, dict[str, Any]]] = {}
    for target, names in layers.items():
        [condition] = model.conditions(target)
        arm, code = model.arm(condition), model.arms.name_index[target]
        chosen = held[own.treatment[held] == code]
        scores = predictive.scores(own, chosen, arm)
        of_chosen = None if clusters is None else clusters.take(chosen)
        bounds = _calibrate(model, scores, own.stratum[chosen], of_chosen, predictive, request)
        _warn_without_guarantee(model, bounds, cells.stratum[cells.rows], target, request)
        ends = predictive.bounds(cells, arm, bounds.threshold)
        for end, name, values in zip(("low", "high"), names, ends, strict=True):
            record = {
                **model.describe_arm(condition, arm),
                **_describe(model, end, bounds, request),
            }
            written[name] = values, model.describe(**record)
    # An interrupted call writes nothing.
    for name, (values, described) in written.items():
        results.write("layers", name, values, described)
    return list(written)


def _calibration_cells(model: VCI, indices: Any) -> tuple[np.ndarray, str]:
    """Rows of the calibration cells, and what kind of cells they are."""
    if model.adata is None:
        raise ValueError(
            "Intervals are calibrated on the model's held-out cells, but it was loaded "
            "without cells; load it with adata=."
        )
    seen = np.asarray(model.adata.obs_names.isin(pd.Index(model.trained_cells_, dtype=object)))
    test, validation = model.test_indices, model.validation_indices
    if indices is None:
        rows = test if len(test) else validation
        rows = rows[~seen[rows]]
    else:
        rows = np.unique(resolve_indices(model.adata, indices))
        if n_seen := int(seen[rows].sum()):
            raise ValueError(
                f"calibration_indices hold {n_seen} cells that the model was trained on; their "
                "scores are too good. Take cells of model.test_indices."
            )
    if not len(rows):
        seen_earlier = indices is None and len(test) + len(validation) > 0
        cure = "an earlier training saw all of them; build a new model, " if seen_earlier else ""
        raise ValueError(
            f"There are no held-out cells to calibrate intervals on; {cure}train with "
            "train_size=0.7, validation_size=0.1, or use predict_counterfactual(quantiles=) "
            "for the model's own quantiles."
        )
    if not len(model.train_indices):
        raise ValueError(
            "The model holds none of the cells that it was trained on, from whose latent states "
            "outcomes are drawn. Load it with its training cells, or, after load_query_data, "
            "call train(train_size=0.7, validation_size=0.1): until then all cells calibrate."
        )
    return rows, "validation" if np.isin(rows, validation).any() else "test"


@dataclass(frozen=True)
class _Clusters:
    """Cluster of each cell, and whether training saw no cell of it; shape ``(n_cells,)``."""

    code: np.ndarray
    is_new: np.ndarray

    def take(self, rows: np.ndarray) -> _Clusters:
        return _Clusters(self.code[rows], self.is_new[rows])

    def threshold(self, scores: np.ndarray, level: float) -> tuple[np.ndarray, bool]:
        """Bound on scores of a cell of a new cluster, and whether it is guaranteed."""
        new = self.is_new
        bound = conformal_threshold(scores[new], level, clusters=self.code[new])
        if new.any() and np.isfinite(bound).all():
            return bound, True
        n = len(np.unique(self.code))
        # No cluster is kept for the new one: what K of them say, each with the same weight.
        return conformal_threshold(scores, level * n / (n + 1), clusters=self.code), False


def _clusters(model: VCI, key: str | None) -> _Clusters | None:
    """Read clusters of the model's cells."""
    adata = model.own_cells("calibrate intervals").adata
    if key is None:
        warn_about_clusters(adata, model.setup_args, "the guarantee is for cells of these groups")
        return None
    code, _ = column_codes(adata, key, "cluster_key")
    seen = adata.obs_names.isin(pd.Index(model.seen_cells(), dtype=object))
    return _Clusters(code, ~np.isin(code, np.unique(code[seen])))


def _calibrate(
    model: VCI,
    scores: np.ndarray,
    stratum: np.ndarray,
    clusters: _Clusters | None,
    predictive: Predictive,
    request: _Request,
) -> _Bounds:
    """Read each stratum's threshold off the scores of cells that received the treatment."""
    n_rows, least = len(model.strata) + 1, least_calibration_cells(request.level)
    threshold = np.full((n_rows, len(model.genes)), request.level / 2)
    basis = np.full(n_rows, _MODEL, dtype=object)
    n_cells = np.bincount(stratum, minlength=n_rows)
    guarantee = np.zeros(n_rows, dtype=bool)
    rng = np.random.default_rng(request.seed)

    def bound(rows: np.ndarray) -> tuple[np.ndarray, bool]:
        if clusters is not None:
            return clusters.take(rows).threshold(scores[rows], request.level)
        return conformal_threshold(scores[rows], request.level, rng), True

    for x in range(n_rows):
        if n_cells[x] >= least:
            basis[x] = _OWN
            threshold[x], guarantee[x] = bound(np.flatnonzero(stratum == x))
        elif len(scores) >= least:
            basis[x] = _OTHERS
            threshold[x], _ = bound(np.arange(len(scores)))
    # A stratum without training cells has no predictive distribution.
    empty = np.array([*predictive.is_empty, True])
    threshold[empty], basis[empty], guarantee[empty] = np.nan, _NONE, False
    return _Bounds(threshold, n_cells, basis, guarantee & (request.kind == "test"))


def _warn_without_guarantee(
    model: VCI, bounds: _Bounds, stratum: np.ndarray, target: str, request: _Request
) -> None:
    present = [x for x in np.unique(stratum) if x >= 0 and bounds.basis[x] != _OWN]
    few = [
        model.strata[x]
        for x in np.unique(stratum)
        if x >= 0 and bounds.basis[x] == _OWN and not bounds.guarantee[x]
    ]
    if few and request.kind == "test":
        warnings.warn(
            f"Intervals under {target!r} have no guarantee in {', '.join(few)}: a level of "
            f"{request.level:g} needs {least_calibration_cells(request.level)} clusters of "
            "cluster_key= of which training saw no cell. Each cluster counts the same.",
            UserWarning,
            stacklevel=3,
        )
    if present:
        strata = model.strata
        listed = ", ".join(f"{strata[x]} ({bounds.n_cells[x]})" for x in present)
        warnings.warn(
            f"Intervals under {target!r} have no guarantee in {listed}: a level of "
            f"{request.level:g} needs {least_calibration_cells(request.level)} held-out cells "
            "of the stratum with the treatment. They rest on the treatment's cells of all "
            "strata, or on the model's own quantiles, or are missing where training saw no cell "
            "of the stratum; uns['scvci'] says which.",
            UserWarning,
            stacklevel=3,
        )


def _describe(model: VCI, end: str, bounds: _Bounds, request: _Request) -> dict[str, Any]:
    return {
        "kind": "interval",
        "scale": f"{end} end of an interval of counts at own library size"
        if model.is_count
        else f"{end} end of an interval on the scale of the training data",
        "calibrated": True,
        "n_samples": request.n_samples,
        "draw_seed": request.seed,
        "level": request.level,
        "calibration": {
            "cells": request.kind,
            "stratum": np.asarray(model.strata, dtype=object),
            "n_cells": bounds.n_cells[:-1],
            "basis": bounds.basis[:-1],
            "guarantee": bounds.guarantee[:-1],
        },
    }
