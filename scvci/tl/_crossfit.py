"""Predictions of cells by models that have not seen them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi.utils import track
from sklearn.model_selection import StratifiedGroupKFold

from ._refit import check_refit, fresh_params, plain_copy, refitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

    from scvci.data import Cells
    from scvci.model import VCI

#: Where a model keeps the models of its folds.
_CACHE = "cross_fit"


@dataclass(frozen=True)
class CrossFit:
    """Models of K folds, each of which has not seen the cells of its fold.

    Attributes
    ----------
    fold
        Fold of each of the model's cells, shape ``(n_cells,)``.
    models
        The model of each fold. They hold no cells.
    source
        Gives a plain copy of the cells in given rows.
    counts
        Counts that cells are encoded from in place of their own, shape ``(n_cells, n_genes)``.
    share
        Factor of registered size factors that goes with ``counts``.
    """

    fold: np.ndarray
    models: tuple[VCI, ...]
    source: Callable[[np.ndarray], AnnData]
    counts: Any = None
    share: float = 1.0

    def with_counts(self, counts: Any, share: float = 1.0) -> CrossFit:
        """Encode each cell from other counts, such as a part of its own.

        Parameters
        ----------
        counts
            Array or sparse matrix in the order of the model's cells and genes. Library sizes are
            theirs.
        share
            What to multiply registered size factors by.

        Raises
        ------
        ValueError
            If the shape is not that of the model's cells and genes.
        """
        expected = (len(self.fold), len(self.models[0].genes))
        if counts.shape != expected:
            raise ValueError(f"counts of shape {counts.shape} must have shape {expected}.")
        return replace(self, counts=counts, share=share)

    def predict(
        self,
        treatment: str,
        library_size: float | None = None,
        log1p: bool = False,
    ) -> np.ndarray:
        """Predict every cell under a treatment.

        Parameters
        ----------
        treatment
            Name of the treatment.
        library_size, log1p
            See :meth:`scvci.model.VCI.predict_counterfactual`.

        Returns
        -------
        Expected counts in the order of the model's cells, shape ``(n_cells, n_genes)``, float32.
        """
        result = np.empty((len(self.fold), len(self.models[0].genes)), dtype=np.float32)
        for model, rows, cells in self._parts():
            [layer] = model.predict_counterfactual(
                treatment, adata=cells, library_size=library_size, log1p=log1p, keep="state"
            )
            result[rows] = cells.layers[layer]
        return result

    def _parts(self) -> Iterator[tuple[VCI, np.ndarray, AnnData]]:
        """Model, rows and cells of each fold."""
        for k, model in enumerate(self.models):
            rows = np.flatnonzero(self.fold == k)
            cells = self.source(rows)
            if self.counts is not None:
                cells.X = self.counts[rows]
                if key := model.setup_args["size_factor_key"]:
                    cells.obs[key] *= self.share
            yield model, rows, cells


@dataclass(frozen=True)
class _Fitted:
    """Fold models on a model instance, and what they were made for."""

    fold: np.ndarray
    train_kwargs: dict[str, Any]
    cells: tuple[str, int]
    models: tuple[VCI, ...]

    def serves(self, fold: np.ndarray, train_kwargs: dict[str, Any], cells: tuple) -> bool:
        same = np.array_equal(self.fold, fold) and self.cells == cells
        return same and self.train_kwargs == train_kwargs


def cross_fit(
    model: VCI,
    n_folds: int = 5,
    clusters: np.ndarray | None = None,
    show_progress: bool = True,
    **train_kwargs: Any,
) -> CrossFit:
    """Train a model for each fold without the fold's cells.

    These enter no training, validation or calibration. The models have the settings and seed of
    ``model``, which keeps them until it is trained again. Neither it nor its AnnData is changed.

    Parameters
    ----------
    model
        A trained model that holds its cells.
    n_folds
        Number of folds. Each (stratum, treatment) gives about the same share of its cells to
        each.
    clusters
        Code of each cell's cluster, shape ``(n_cells,)``; whole clusters are in a fold then.
    show_progress
        Whether to show a progress bar over folds.
    **train_kwargs
        Passed to :meth:`scvci.model.VCI.train`; give those that the model was trained with.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If there are fewer cells or clusters than folds, or the model holds no cells.

    Warns
    -----
    UserWarning
        If all cells of a treatment are in a fold, whose model then has no effect of it.
    """
    model.require_trained("cross-fit it")
    cells = model.own_cells("cross-fit it")
    check_refit(train_kwargs)
    fold = _assign_folds(cells, n_folds, clusters, model.seed_)
    identity = (model.adata_manager.adata_uuid, model.n_trainings_)
    fitted: _Fitted | None = model.cache.get(_CACHE)
    if fitted is None or not fitted.serves(fold, train_kwargs, identity):
        _warn_about_folds(cells, fold)
        bar = track(range(n_folds), description="Cross-fitting", disable=not show_progress)
        models = tuple(_fit_without(model, fold == k, train_kwargs) for k in bar)
        fitted = model.cache[_CACHE] = _Fitted(fold, dict(train_kwargs), identity, models)
    return CrossFit(fold, fitted.models, partial(plain_copy, model))


def _assign_folds(
    cells: Cells, n_folds: int, clusters: np.ndarray | None, seed: int
) -> np.ndarray:
    group = cells.stratum * cells.n_treatments + cells.treatment
    what, units = ("cells", np.arange(len(group)))
    if clusters is not None:
        what, units = "clusters", np.unique(clusters, return_inverse=True)[1]
        if len(units) != len(group):
            raise ValueError(f"{len(units)} codes of clusters for {len(group)} cells.")
    n_units = int(units.max()) + 1
    if not 2 <= n_folds <= n_units:
        raise ValueError(
            f"n_folds={n_folds} must lie between 2 and the number of {what}, {n_units}."
        )
    if clusters is not None:
        return _fold_clusters(group, units, n_folds, seed)
    fold = np.empty(len(group), dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(group))
    fold[np.lexsort((shuffled, group))] = np.arange(len(group)) % n_folds
    return fold


def _warn_about_folds(cells: Cells, fold: np.ndarray) -> None:
    n_folds = int(fold.max()) + 1
    table = np.zeros((cells.n_treatments, n_folds), dtype=bool)
    table[cells.treatment, fold] = True
    lonely = [cells.treatments.names[t] for t in np.flatnonzero(table.sum(axis=1) == 1)]
    if lonely:
        warnings.warn(
            f"All cells of {', '.join(lonely)} are in one fold, so the model that predicts "
            "them has no effect of it. Use more cells or clusters, or leave it out.",
            UserWarning,
            stacklevel=3,
        )


def _fit_without(model: VCI, held: np.ndarray, train_kwargs: dict[str, Any]) -> VCI:
    """Model trained on the other cells, which does not keep them."""
    train = plain_copy(model, np.flatnonzero(~held))
    with refitted(model, train, train_kwargs, same_names=True) as fitted:
        alone = type(model)(registry=fitted.registry, **fresh_params(model))
        alone.module.load_state_dict(fitted.module.state_dict())
        alone.calibration = fitted.calibration
        alone.module.eval()
        alone.is_trained_ = True
        alone.to_device(fitted.device)
    return alone


def _fold_clusters(group: np.ndarray, cluster: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Folds of whole clusters in which the groups have about equal shares."""
    fold = np.empty(len(group), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Small groups are no obstacle here.
        warnings.filterwarnings("ignore", message="The least populated class")
        for k, (_, held) in enumerate(splitter.split(group, group, cluster)):
            fold[held] = k
    return fold
