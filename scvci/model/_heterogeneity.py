"""Who responds? Effects of single cells, and whether their differences are real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import settings

from scvci._names import unknown_name_message
from scvci.data import CellReader, get_matrix, resolve_indices
from scvci.effects import heterogeneity_test

from ._layers import Scale
from ._registry import RegistryMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

    from ._crossfit import CrossFit
    from ._study import Study

#: Predicted counts per cell below which a gene counts as this.
_MIN_EXPRESSION = 1e-9
_TINY = 1e-12


class HeterogeneityMixin(RegistryMixin):
    """Differences between the effects on single cells."""

    _cells_of: Callable[[AnnData | None], AnnData]
    _cross_fit: Callable[..., CrossFit]
    _decode: Callable[..., torch.distributions.Distribution]
    _effect_targets: Callable[..., tuple[list[str], str]]
    _on_device: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    _describe_arm: Callable[..., dict[str, Any]]
    _record: Callable[..., None]
    _require_trained: Callable[[str], None]
    _study: Callable[..., Study]
    _targets: Callable[[str | Sequence[str] | None], list[str]]

    def effect_scores(
        self,
        treatment: str,
        genes: Sequence[str] | Mapping[str, float] | pd.Series | None = None,
        reference: str | None = None,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        key_added: str | None = None,
        batch_size: int | None = None,
    ) -> str:
        r"""Write the predicted effect on each cell, as one number, to ``obs``.

        With :math:`d_{ig}` the predicted log1p expression of cell i and gene g under the treatment
        minus that under the reference, both at the library size of the median training cell, the
        score is the projection on the mean effect,

        .. math::

            s_i = \frac{\sum_g d_{ig} \bar d_g}{\sum_g \bar d_g^2} ,

        in multiples of the mean effect: 1 on average, 0 for a cell that does not respond. With
        ``genes`` it is their (weighted) mean :math:`\sum_g w_g d_{ig} / \sum_g |w_g|`, in units of
        log1p expression.

        Parameters
        ----------
        treatment
            The treatment.
        genes
            Names of genes, or weights by name, as a program of genes has them.
        reference
            What it is compared with, by default the control.
        adata
            Cells, by default the model's.
        indices
            Rows, mask or names of the cells; the mean effect is theirs, and other rows are NaN.
        key_added
            Column of ``obs``, by default ``"effect_<treatment>"``.
        batch_size
            Cells per step.

        Returns
        -------
        Name of the column. ``adata.uns["scvci"]`` records what it holds.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError, KeyError
            If a treatment or gene is unknown, weights are all zero, or treatment and reference are
            the same.

        Notes
        -----
        Scores are predictions. :meth:`test_heterogeneity` says whether their differences within a
        stratum come true.
        """
        self._require_trained("score its cells")
        (target, *_), control = self._effect_targets(treatment, reference)
        self._check_contrast([target], control)
        weights = self._gene_weights(genes)
        cells = self._cells_of(adata)
        reader = CellReader.from_registry(cells, self.registry, self.gene_names_)
        rows = resolve_indices(cells, indices)

        def effects() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return self._effects(reader, rows, target, control, batch_size)

        if weights is None:
            mean = np.zeros(len(self.gene_names_))
            for _, d in effects():
                mean += d.sum(axis=0) / len(rows)
            weights = mean / max(float((mean**2).sum()), _TINY)
        scores = np.full(cells.n_obs, np.nan)
        for batch, d in effects():
            scores[batch] = d @ weights
        key = key_added or f"effect_{target}".replace("/", "_")
        cells.obs[key] = scores
        unit = "multiples of the mean effect" if genes is None else "log1p expression"
        entry = {
            **self._describe_arm(target),
            "reference": control,
            "scale": unit,
            "kind": "effect score",
        }
        self._record(cells, key, entry)
        # The scale of a score is its unit, whatever the likelihood.
        cells.uns["scvci"][key]["scale"] = unit
        return key

    def test_heterogeneity(
        self,
        treatment: str | Sequence[str] | None = None,
        reference: str | None = None,
        groupby: str | None = None,
        cluster_key: str | None = None,
        n_folds: int = 5,
        share: float = 0.5,
        min_cells: int = 30,
        min_counts: int = 20,
        margin: float = 0.1,
        level: float = 0.95,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> pd.DataFrame:
        r"""Test whether cells of a stratum respond differently, and in which genes.

        Each cell's counts are split at random, count by count. One part says, by models that have
        not seen the cell, by how much treatment changes each gene in it; the other part is the
        outcome. If the predictions are right, treated and reference cells differ by more where
        they say so. The null is an effect that multiplies a gene's expression by the same factor
        in all cells of the stratum, whatever their baselines. See
        :func:`scvci.effects.heterogeneity_test` for the regression.

        Parameters
        ----------
        treatment
            A treatment, several, or ``None`` for all but the reference.
        reference
            What they are compared with, by default the control.
        groupby
            Column of ``obs``; cells of each of its levels are tested together, by differences
            within the strata of the model only. By default each stratum.
        cluster_key
            Column of ``obs`` with the donor, animal, well or guide of each cell. Folds hold whole
            clusters then, and errors allow for any dependence within them.
        n_folds
            Models that are trained. They are kept for a second call.
        share
            Share of the counts that predictions are made from.
        min_cells
            Fewest cells of a group in either arm.
        min_counts
            Fewest counts of a gene in either arm, in the part that is the outcome.
        margin
            Standard deviation of log-fold changes between cells, in natural log-fold, that is too
            small to be called heterogeneity.
        level
            Coverage of the intervals.
        show_progress
            Whether to show the progress of training.
        **train_kwargs
            Passed to :meth:`train` for the models; give those that this model was trained with.

        Returns
        -------
        One row per treatment, group and gene, and two for all genes together (``"all"``, and
        ``"signature"``: does the strength of the response differ?). After ``treatment``,
        ``reference`` and ``stratum``, columns are those of
        :func:`scvci.effects.heterogeneity_test`: ``estimate`` is the share of the predicted
        differences that came true (0 none, 1 all), ``confirmed_sd`` their size in natural
        log-fold, ``leakage`` whether predictions depend on the treatment received.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError, ValueError
            If a name is unknown, the likelihood is not one of counts, or ``share`` is no share.

        Warns
        -----
        UserWarning
            If ``obs`` has a column that looks like donors, animals or wells and ``cluster_key`` is
            not given.

        Notes
        -----
        An effect on a single cell is never seen, so the test rests on an assumption: the latent
        state is a state of the cell before treatment and means the same in both arms. Data cannot
        tell such a model from one that numbers the states of treated cells differently; of that
        one, too, the predictions would come true. ``leakage`` sees shifts of the mean only.

        Splitting gives independent parts if counts are Poisson given the cell's state (Neufeld et
        al., 2024). A negative binomial with mean μ and inverse dispersion θ leaves the parts a
        covariance of share · (1 − share) · μ²/θ. Overdispersion that is not a state of the cell,
        and arms that are encoded with unequal accuracy, move ``estimate`` off zero where effects
        are homogeneous: in simulations by up to 0.5 either way, and ``confirmed_sd`` by less than
        the default ``margin``. An ``estimate`` well below zero says that predictions are noise.

        References
        ----------
        Chernozhukov, Demirer, Duflo and Fernández-Val, "Generic machine learning inference on
        heterogeneous treatment effects in randomized experiments", 2018. Neufeld, Dharamshi, Gao
        and Witten, "Data thinning for convolution-closed distributions", JMLR 2024.

        Examples
        --------
        >>> table = model.test_heterogeneity("IFNb", max_epochs=50)
        >>> table.query("gene == 'all'")
        """
        self._require_trained("test heterogeneity")
        targets, control = self._effect_targets(treatment, reference)
        self._check_contrast(targets, control)
        if not self.module.likelihood.is_count:
            raise ValueError("likelihood='normal' has no counts to split; use one of counts.")
        study = self._study(None, groupby, cluster_key, "counts")
        part, outcome = self._split_counts(share)
        fit = self._cross_fit(n_folds, study.clusters, show_progress, **train_kwargs)
        fit = fit.with_counts(part, share)
        size = float(self.module.reference_size)
        baseline = np.maximum(fit.predict(control, size), _MIN_EXPRESSION)
        options = {
            "min_cells": min_cells,
            "min_counts": min_counts,
            "margin": margin,
            "level": level,
        }
        tables = []
        for target in targets:
            prediction = np.maximum(fit.predict(target, size), _MIN_EXPRESSION)
            arms = (target, control)
            tables += self._test_groups(
                study, arms, outcome, (baseline, prediction), 1 - share, options
            )
        return pd.concat(tables, ignore_index=True)

    # -- scores ---------------------------------------------------------------------------------

    @staticmethod
    def _check_contrast(targets: list[str], reference: str) -> None:
        if reference in targets:
            raise ValueError(f"{reference!r} is compared with itself; name another reference.")

    def _gene_weights(
        self, genes: Sequence[str] | Mapping[str, float] | pd.Series | None
    ) -> np.ndarray | None:
        """Weights of the model's genes, of absolute sum one; ``None`` without names."""
        if genes is None:
            return None
        if isinstance(genes, str):
            genes = [genes]
        named = dict(
            genes.items() if isinstance(genes, Mapping | pd.Series) else dict.fromkeys(genes, 1.0)
        )
        known = self.gene_names_.tolist()
        weights = np.zeros(len(known))
        position = {name: i for i, name in enumerate(known)}
        for name, weight in named.items():
            if name not in position:
                raise ValueError(unknown_name_message("Gene", str(name), known))
            weights[position[name]] = weight
        total = np.abs(weights).sum()
        if not (np.isfinite(total) and total > 0):
            raise ValueError("genes= gives no gene a weight; name some, with finite weights.")
        return weights / total

    @torch.inference_mode()
    def _effects(
        self,
        reader: CellReader,
        rows: np.ndarray,
        treatment: str,
        reference: str,
        batch_size: int | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and differences of log1p expression (``"normal"``: of expression) of batches."""
        is_count = self.module.likelihood.is_count
        size = float(self.module.reference_size) if is_count else None
        scale = Scale(library_size=size, log1p=False, n_samples=None)
        codes = [self.treatments.index(name) for name in (treatment, reference)]
        for batch, tensors in reader.batches(rows, batch_size or settings.batch_size):
            on_device = self._on_device(tensors)
            means = [self._decode(on_device, code, scale, True).mean[0] for code in codes]
            if is_count:
                means = [torch.log1p(mean) for mean in means]
            yield batch, (means[0] - means[1]).double().cpu().numpy()

    # -- heterogeneity --------------------------------------------------------------------------

    def _split_counts(self, share: float) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Part every cell's counts at random, count by count."""
        if not 0 < share < 1:
            raise ValueError(f"share={share} must lie between 0 and 1.")
        counts = sparse.csr_matrix(get_matrix(self.adata, self._setup_arg("layer"))[:])
        whole = np.rint(counts.data).astype(np.int64)
        drawn = np.random.default_rng(self.seed_).binomial(whole, share)
        parts = [counts.copy(), counts.copy()]
        for part, data in zip(parts, (drawn, whole - drawn), strict=True):
            part.data = data.astype(np.float32)
            part.eliminate_zeros()
        return parts[0], parts[1]

    def _test_groups(
        self,
        study: Study,
        arms: tuple[str, str],
        outcome: sparse.csr_matrix,
        predictions: tuple[np.ndarray, np.ndarray],
        share: float,
        options: dict[str, Any],
    ) -> list[pd.DataFrame]:
        """Table of each group for a treatment and its reference."""
        groups, names = study.groups, study.group_names
        if groups is None or names is None:
            groups, names = study.stratum, list(study.strata)
        codes = [self.treatments.index(name) for name in arms]
        of_arms = np.isin(study.reader.treatment, codes)
        size_factor = study.reader.size_factor
        tables = []
        for code, name in enumerate(names):
            rows = np.flatnonzero(of_arms & (groups == code))
            table = heterogeneity_test(
                outcome[rows],
                study.reader.treatment[rows] == codes[0],
                predictions[0][rows],
                predictions[1][rows],
                genes=self.gene_names_.tolist(),
                size=None if size_factor is None else size_factor[rows] * share,
                stratum=study.stratum[rows],
                cluster=None if study.clusters is None else study.clusters[rows],
                composition=size_factor is None,
                **options,
            )
            for column, value in (
                ("stratum", name),
                ("reference", arms[1]),
                ("treatment", arms[0]),
            ):
                table.insert(0, column, value)
            tables.append(table)
        return tables
