"""Effects of treatments on populations of cells, with intervals."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci.data import CellReader

from ._layers import Scale
from ._registry import RegistryMixin
from ._study import TARGET_SUM, Study, column_codes
from ._training import Seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from ._crossfit import CrossFit

    Predict = Callable[[str], np.ndarray]

#: Words in names of columns whose levels are usually not independent cells.
_CLUSTER_WORDS = frozenset(
    "animal donor embryo guide individual mouse patient replicate sample subject well".split()
)


class EffectsMixin(RegistryMixin):
    """What a treatment does to a population, and how sure that is."""

    _cells_of: Callable[[AnnData | None], AnnData]
    _cross_fit: Callable[..., CrossFit]
    _arm: Callable[[str], Any]
    _predict: Callable[..., list[Any]]
    _require_trained: Callable[[str], None]
    _strata_of: Callable[[CellReader, np.ndarray], tuple[np.ndarray, list[str]]]
    _targets: Callable[[str | Sequence[str] | None], list[str]]

    def estimate_effects(
        self,
        treatment: str | Sequence[str] | None = None,
        reference: str | None = None,
        groupby: str | None = None,
        estimand: str = "ate",
        estimator: str | None = None,
        scale: str = "log1p",
        cluster_key: str | None = None,
        adata: AnnData | None = None,
        level: float = 0.95,
        min_cells: int = 30,
        moderated: bool = False,
        n_folds: int = 5,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> pd.DataFrame:
        r"""Estimate the effect of treatments on every gene, with intervals and p-values.

        Treated cells and cells of the reference are compared within the strata of the model, in
        which treatment is taken to be unconfounded, and strata are averaged. With continuous
        covariates they are compared within bins of a stratum's cells that have like fitted
        propensities (fifths; Rosenbaum and Rubin, 1984). By default the effect
        is a difference of *measured* means wherever both were measured; the model speaks only
        where they were not, and says so. Counts are per 10,000 of a cell (or over its registered
        size factor).

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all but the reference.
        reference
            What they are compared with, by default the control.
        groupby
            Column of ``obs``; effects are reported for each of its levels. By default one effect
            of all cells.
        estimand
            ``"ate"``: the effect on all cells of a group; ``"att"``: on those that were treated.
        estimator
            ``None`` (measured means, and the mean of predictions where a group has no stratum in
            which both treatments were measured, without an interval), ``"observed"`` (measured
            means only), ``"robust"`` (the paper's one-step estimator, from models that have not
            seen the cell; refused gene by gene where the treatment leaks into predictions) or
            ``"plugin"`` (the mean of predictions, without an interval).
        scale
            ``"log1p"``: difference of means of log-normalised counts; ``"counts"``: of normalised
            counts; ``"lfc"``: log2 of the ratio of means of normalised counts.
        cluster_key
            Column of ``obs`` with the donor, animal, well or guide of each cell. Cells of one are
            not independent: without it, errors are too small.
        adata
            Cells to estimate from, by default the model's. ``"robust"`` works on these only.
        level
            Coverage of the intervals.
        min_cells
            Fewest cells of both treatments with which a stratum takes part.
        moderated
            Whether the errors of a gene borrow from those of the others (empirical Bayes; Smyth,
            2004). For two or three clusters, of which a gene's own error is hardly known.
        n_folds
            Models that are trained for ``"robust"``. They are kept for a second call.
        show_progress
            Whether to show the progress of that training.
        **train_kwargs
            Passed to :meth:`train` for these models; give those that this model was trained with.

        Returns
        -------
        One row per treatment, group and gene; columns as in
        :func:`scvci.effects.estimate_effects`. ``attrs["scale"]``, ``["estimand"]`` and
        ``["level"]`` say what was estimated.

        Raises
        ------
        KeyError, ValueError
            If a name is unknown, an option makes no sense for the data, or a label is missing.
        RuntimeError
            If predictions are asked for and the model is not trained.

        Warns
        -----
        UserWarning
            If ``obs`` has a column that looks like donors, animals or wells and ``cluster_key`` is
            not given.

        Notes
        -----
        A difference of measured means is unbiased under unconfoundedness, and its interval is
        that of the design. With categorical covariates only, no estimator is better unless
        predictions rest on a state of the cell that treatment has not touched; VCI's rest on the
        outcome itself, and are safe only where its latent state is free of the treatment
        (:meth:`test_leakage`). See the user guide on effects.

        References
        ----------
        Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
        Inference", ICLR 2025, on the robust estimator.

        Examples
        --------
        >>> table = model.estimate_effects("IFNb", groupby="cell_type", cluster_key="donor")
        >>> table.query("q_value < 0.1")
        """
        targets, reference = self._effect_targets(treatment, reference)
        study = self._study(adata, groupby, cluster_key, scale)
        options: dict[str, Any] = {
            "estimand": estimand,
            "level": level,
            "min_cells": min_cells,
            "moderated": moderated,
        }
        if estimator in (None, "observed"):
            table = study.estimate(targets, reference, estimator="observed", **options)
            if estimator is None and self.is_trained_:
                table = self._extrapolate(table, study, options)
        else:
            if estimator == "robust":
                predict = self._cross_fitted(study, n_folds, show_progress, train_kwargs)
            else:
                predict = self._own_predictions(study)
            table = _by_target(
                targets,
                lambda t: study.estimate(
                    [t], reference, estimator=estimator, predict=predict, **options
                ),
            )
        table.attrs |= {"scale": scale, "estimand": estimand, "level": level}
        return table

    def test_leakage(
        self,
        treatment: str | Sequence[str] | None = None,
        scale: str = "log1p",
        cluster_key: str | None = None,
        n_folds: int = 5,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> pd.DataFrame:
        r"""Test, gene by gene, whether predictions depend on the treatment that a cell received.

        The one-step estimator is the measured mean plus
        :math:`\hat b = \bar m(t)_{\text{all}} - \bar m(t)_{T = t}`, the mean prediction of all
        cells less that of the treated. Without leakage its expectation is zero; with it, that is
        the bias of the estimator. Predictions come from models that have not seen the cell.

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all, the control included.
        scale, cluster_key, n_folds, show_progress, **train_kwargs
            See :meth:`estimate_effects`.

        Returns
        -------
        One row per treatment, stratum and gene, see :func:`scvci.effects.leakage_test`;
        ``attrs["scale"]`` is the scale.

        Raises
        ------
        KeyError, ValueError, RuntimeError
            As :meth:`estimate_effects`.
        """
        targets = self._targets(treatment)
        study = self._study(None, None, cluster_key, scale)
        predict = self._cross_fitted(study, n_folds, show_progress, train_kwargs)
        table = study.test_leakage(targets, predict)
        table.attrs["scale"] = scale
        return table

    # -- cells and names ------------------------------------------------------------------------

    def _effect_targets(
        self, treatment: str | Sequence[str] | None, reference: str | None
    ) -> tuple[list[str], str]:
        reference = self._targets(self.control if reference is None else reference)[0]
        if treatment is None:
            return [t for t in self.treatments if t != reference], reference
        return self._targets(treatment), reference

    def _study(
        self, adata: AnnData | None, groupby: str | None, cluster_key: str | None, scale: str
    ) -> Study:
        """Cells as arrays, on a scale that they can be on."""
        is_count = self.module.likelihood.is_count
        if not is_count and scale != "log1p":
            raise ValueError(
                f"scale={scale!r} needs counts, but likelihood='normal' has log-normalised data; "
                "use scale='log1p'."
            )
        cells = self._cells_of(adata)
        if cluster_key is None:
            self._warn_about_clusters(cells)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        stratum, strata = self._strata_of(reader, np.arange(cells.n_obs))
        groups, group_names = column_codes(cells, groupby, "groupby")
        clusters, _ = column_codes(cells, cluster_key, "cluster_key")
        return Study(
            reader=reader,
            stratum=stratum,
            treatments=self.treatments,
            strata=strata,
            genes=self.gene_names_.tolist(),
            is_count=is_count,
            scale=scale,
            groups=groups,
            group_names=group_names,
            clusters=clusters,
        )

    def _warn_about_clusters(self, cells: AnnData) -> None:
        """Warn of a column that looks like clusters of cells that are not independent."""
        setup = self.registry["setup_args"]
        used = {
            *[setup["treatment_key"], self._setup_arg("dose_key")],
            *(setup["categorical_covariate_keys"] or []),
        }
        for name in cells.obs.columns.difference([key for key in used if key], sort=False):
            words = set(re.split(r"[^a-z]+", str(name).lower()))
            if words & _CLUSTER_WORDS and 1 < cells.obs[name].nunique() < cells.n_obs / 2:
                warnings.warn(
                    f"obs[{name!r}] looks like groups of cells that are not independent. Without "
                    f"cluster_key={name!r} each cell counts as a replicate, and errors are too "
                    "small if such groups differ.",
                    UserWarning,
                    stacklevel=4,
                )
                return

    # -- predictions ----------------------------------------------------------------------------

    def _extrapolate(
        self, table: pd.DataFrame, study: Study, options: dict[str, Any]
    ) -> pd.DataFrame:
        """Put means of predictions where nothing could be compared."""
        lacking = set(table.loc[table["estimator"] == "skipped", "treatment"])
        if not lacking:
            return table
        predict = self._own_predictions(study)
        reference = table["reference"].iloc[0]
        return _by_target(
            table["treatment"].unique().tolist(),
            lambda t: (
                study.estimate([t], reference, predict=predict, **options)
                if t in lacking
                else table[table["treatment"] == t]
            ),
        )

    def _own_predictions(self, study: Study) -> Predict:
        """Predictions by this model, as measured cells are normalised.

        The mean of logarithms is not the logarithm of the mean: on ``"log1p"`` outcomes are drawn
        and normalised like measured counts.
        """
        self._require_trained("average its predictions")
        drawn = study.is_count and study.scale == "log1p"
        size = self._target_size() if study.is_count and not drawn else None
        how = Scale(library_size=size, log1p=False, n_samples=1 if drawn else None)
        reader = study.reader
        columns = slice(None) if reader.columns is None else reader.columns

        @lru_cache(maxsize=2)
        def predict(treatment: str) -> np.ndarray:
            with Seeded(self.seed_):
                arm, n = self._arm(treatment), reader.adata.n_obs
                each = np.zeros(n, dtype=np.int64)
                values = self._predict(reader, np.arange(n), [arm], each, how, True, None)[0]
            values = values if isinstance(values, np.ndarray) else values.toarray()
            values = values[:, columns]
            return np.log1p(study.normalise(values)) if drawn else values

        return predict

    def _cross_fitted(
        self,
        study: Study,
        n_folds: int,
        show_progress: bool,
        train_kwargs: dict[str, Any],
    ) -> Predict:
        """Expect outcomes by models that have not seen the cell."""
        if study.reader.adata is not self.adata:
            raise ValueError(
                "estimator='robust' trains models on the model's own cells; leave adata out."
            )
        fit = self._cross_fit(n_folds, study.clusters, show_progress, **train_kwargs)
        log1p = study.is_count and study.scale == "log1p"
        size = self._target_size() if study.is_count else None

        @lru_cache(maxsize=2)
        def predict(treatment: str) -> np.ndarray:
            return fit.predict(treatment, size, log1p)

        return predict

    def _target_size(self) -> float:
        """Library size or size factor that cells are normalised to."""
        return TARGET_SUM if self._setup_arg("size_factor_key") is None else 1.0


def _by_target(targets: list[str], estimate: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """Tables of single targets in one: matrices of predictions of two are held at a time."""
    return pd.concat([estimate(t) for t in targets], ignore_index=True)
