"""Predictions of cells by models that have not seen them: fresh models and cross-fitting."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.utils import track
from sklearn.model_selection import StratifiedGroupKFold

from scvci.data import _constants as keys
from scvci.data import get_matrix

from ._registry import RegistryMixin
from ._training import Seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class RefitMixin(RegistryMixin):
    """Train a fresh model with the same settings on other rows of the cells."""

    init_params_: dict[str, Any]

    def _plain_copy(self, rows: np.ndarray | slice = slice(None)) -> AnnData:
        """Copy registered counts, into ``X``, and registered columns; nothing of this model."""
        setup = self.registry["setup_args"]
        treatment_key = setup["treatment_key"]
        columns = [
            *[treatment_key, self._setup_arg("dose_key")],
            *(setup["categorical_covariate_keys"] or []),
            *(setup["continuous_covariate_keys"] or []),
            setup["size_factor_key"],
            self._setup_arg("batch_key"),
        ]
        obs = self.adata.obs[[key for key in columns if key in self.adata.obs]]
        is_matrix = treatment_key not in obs
        members = {treatment_key: self.adata.obsm[treatment_key]} if is_matrix else {}
        matrix = get_matrix(self.adata, setup["layer"])[rows]
        names = pd.DataFrame(index=self.adata.var_names)
        return AnnData(
            matrix,
            obs=obs.iloc[rows].copy(),
            var=names,
            obsm={key: table.iloc[rows] for key, table in members.items()},
        )

    def _refit_params(self) -> dict[str, Any]:
        return {**self.init_params_["non_kwargs"], "seed": self.seed_}

    @contextmanager
    def _refitted(
        self, train: AnnData, train_kwargs: dict[str, Any], same_names: bool = False
    ) -> Iterator[Any]:
        """Fresh model with this one's settings and seed, trained on a plain copy of cells.

        ``same_names`` gives it this model's treatments and strata, also those that ``train``
        lacks; otherwise it knows those of ``train``.
        """
        model_class: Any = type(self)
        options = {"enable_progress_bar": False, "enable_model_summary": False, **train_kwargs}
        setup = {**self.registry["setup_args"], "layer": None}
        features = self._state(keys.TREATMENT_KEY)["embeddings"]
        if features is not None:
            table = pd.DataFrame(features["values"], index=features["names"])
            setup["treatment_embeddings"] = table
        if same_names:
            setup["source_registry"] = self.registry
        with warnings.catch_warnings():
            # Held-out pairs have no cells; that is the point.
            warnings.filterwarnings("ignore", message=r".*\(treatment, stratum\) pairs have no")
            model_class.setup_anndata(train, **setup)
        model = model_class(train, **self._refit_params())
        try:
            model.train(**options)
            yield model
        finally:
            # scvi-tools keeps the cells of every registered AnnData alive otherwise.
            model.deregister_manager(train)

    @staticmethod
    def _check_refit(train_kwargs: dict[str, Any]) -> None:
        if "datasplitter_kwargs" in train_kwargs:
            raise ValueError(
                "datasplitter_kwargs names rows of this model's cells, but each fold trains on "
                "others. Use train_size and validation_size."
            )


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
    seed
        Seed of drawn outcomes.
    counts
        Counts that cells are encoded from in place of their own, shape ``(n_cells, n_genes)``.
    share
        Factor of registered size factors that goes with ``counts``.
    """

    fold: np.ndarray
    models: tuple[Any, ...]
    source: Callable[[np.ndarray], AnnData]
    seed: int
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
        expected = (len(self.fold), len(self.models[0].gene_names_))
        if counts.shape != expected:
            raise ValueError(f"counts of shape {counts.shape} must have shape {expected}.")
        return replace(self, counts=counts, share=share)

    def predict(
        self,
        treatment: str,
        library_size: float | None = None,
        log1p: bool = False,
        n_samples: int | None = None,
    ) -> np.ndarray:
        """Predict every cell under a treatment.

        Parameters
        ----------
        treatment
            Name of the treatment.
        library_size, log1p, n_samples
            See :meth:`scvci.model.VCI.predict_counterfactual`.

        Returns
        -------
        Expected counts in the order of the model's cells, shape ``(n_cells, n_genes)``, float32.
        With ``n_samples`` drawn counts, the same at each call; several have shape
        ``(n_samples, n_cells, n_genes)``.
        """
        n_draws = n_samples or 1
        result: np.ndarray | None = None
        for i, (model, rows, cells) in enumerate(self._parts()):
            with Seeded(self.seed + i):
                layers = model.predict_counterfactual(
                    treatment,
                    adata=cells,
                    library_size=library_size,
                    log1p=log1p,
                    n_samples=n_samples,
                )
            if result is None:
                result = np.empty((n_draws, len(self.fold), cells.n_vars), dtype=np.float32)
            for draw, name in enumerate(layers):
                values = cells.layers[name]
                result[draw, rows] = values if isinstance(values, np.ndarray) else values.toarray()
        assert result is not None
        return result[0] if n_draws == 1 else result

    def latent(self) -> np.ndarray:
        """Means of q(z | y, x, t), shape ``(n_cells, n_latent)``.

        Axes of different folds have nothing to do with each other.
        """
        parts = [(rows, m.get_latent_representation(cells)) for m, rows, cells in self._parts()]
        latent = np.empty((len(self.fold), parts[0][1].shape[1]), dtype=np.float32)
        for rows, values in parts:
            latent[rows] = values
        return latent

    def _parts(self) -> Iterator[tuple[Any, np.ndarray, AnnData]]:
        """Model, rows and cells of each fold."""
        for k, model in enumerate(self.models):
            rows = np.flatnonzero(self.fold == k)
            cells = self.source(rows)
            if self.counts is not None:
                cells.X = self.counts[rows]
                if key := model._setup_arg("size_factor_key"):
                    cells.obs[key] *= self.share
            yield model, rows, cells


@dataclass(frozen=True)
class _Fitted:
    """Fold models on a model instance, and what they were made for."""

    fold: np.ndarray
    train_kwargs: dict[str, Any]
    cells: tuple[str, int]
    models: tuple[Any, ...]

    def serves(self, fold: np.ndarray, train_kwargs: dict[str, Any], cells: tuple) -> bool:
        same = np.array_equal(self.fold, fold) and self.cells == cells
        return same and self.train_kwargs == train_kwargs


class CrossFitMixin(RefitMixin):
    """K-fold models of the model's own cells."""

    _codes: Callable[[], tuple[np.ndarray, np.ndarray]]
    _require_trained: Callable[[str], None]
    _fitted_folds: _Fitted | None = None

    def _cross_fit(
        self,
        n_folds: int = 5,
        clusters: np.ndarray | None = None,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> CrossFit:
        """Train a model for each fold without the fold's cells.

        These enter no training, validation or calibration. The models have this one's settings
        and seed and are kept until this model is trained again. Neither this model nor its
        AnnData is changed.

        Parameters
        ----------
        n_folds
            Number of folds. Each (stratum, treatment) gives about the same share of its cells to
            each.
        clusters
            Code of each cell's cluster, shape ``(n_cells,)``; whole clusters are in a fold then.
        show_progress
            Whether to show a progress bar over folds.
        **train_kwargs
            Passed to :meth:`train`; give those that this model was trained with.

        Raises
        ------
        RuntimeError
            If this model is not trained.
        ValueError
            If there are fewer cells or clusters than folds, or this model holds no cells.

        Warns
        -----
        UserWarning
            If all cells of a treatment are in a fold, whose model then knows no effect of it.
        """
        self._require_trained("cross-fit it")
        if self.adata is None:
            raise ValueError(
                "The model was loaded without cells; load it with adata= to cross-fit it."
            )
        self._check_refit(train_kwargs)
        fold = self._assign_folds(n_folds, clusters)
        cells = (self.adata_manager.adata_uuid, self.n_trainings_)
        fitted = self._fitted_folds
        if fitted is None or not fitted.serves(fold, train_kwargs, cells):
            self._warn_about_folds(fold)
            bar = track(range(n_folds), description="Cross-fitting", disable=not show_progress)
            models = tuple(self._fit_without(fold == k, train_kwargs) for k in bar)
            fitted = self._fitted_folds = _Fitted(fold, dict(train_kwargs), cells, models)
        return CrossFit(fold, fitted.models, self._plain_copy, self.seed_)

    def _assign_folds(self, n_folds: int, clusters: np.ndarray | None) -> np.ndarray:
        treatment, stratum = self._codes()
        group = stratum * len(self.treatments) + treatment
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
            return _fold_clusters(group, units, n_folds, self.seed_)
        fold = np.empty(len(group), dtype=np.int64)
        shuffled = np.random.default_rng(self.seed_).permutation(len(group))
        fold[np.lexsort((shuffled, group))] = np.arange(len(group)) % n_folds
        return fold

    def _warn_about_folds(self, fold: np.ndarray) -> None:
        treatment, _ = self._codes()
        lonely = [
            name
            for code, name in enumerate(self.treatments)
            if len(np.unique(fold[treatment == code])) == 1
        ]
        if lonely:
            warnings.warn(
                f"All cells of {', '.join(lonely)} are in one fold, so the model that predicts "
                "them knows no effect of it. Use more cells or clusters, or leave it out.",
                UserWarning,
                stacklevel=3,
            )

    def _fit_without(self, held: np.ndarray, train_kwargs: dict[str, Any]) -> Any:
        """Model trained on the other cells, which does not keep them."""
        train = self._plain_copy(np.flatnonzero(~held))
        with self._refitted(train, train_kwargs, same_names=True) as fitted:
            model_class: Any = type(self)
            model = model_class(registry=fitted.registry, **self._refit_params())
            model.module.load_state_dict(fitted.module.state_dict())
            model.module.eval()
            model.is_trained_ = True
            model.to_device(fitted.device)
        return model


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
