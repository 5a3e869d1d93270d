"""Who responds? Whether differences between the effects on single cells are real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvci.data._requests import contrast_names
from scvci.effects import heterogeneity_test as test_arrays

from ._comparison import Comparison
from ._crossfit import cross_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvci.data import Cells
    from scvci.model import VCI

#: Predicted counts per cell below which a gene counts as this.
_MIN_EXPRESSION = 1e-9


def heterogeneity_test(
    model: VCI,
    treatment: str | Sequence[str] | None = None,
    *,
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
    model
        A trained model that holds its cells.
    treatment
        A treatment, several, or ``None`` for all but the reference.
    reference
        What they are compared with, by default the control.
    groupby
        Column of ``obs``; cells of each of its labels are tested together, by differences
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
        Passed to :meth:`scvci.model.VCI.train` for the models; give those that ``model`` was
        trained with.

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
        If a name is unknown, the likelihood is not one of counts, or ``share`` is not in (0, 1).

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
    >>> table = scvci.tl.heterogeneity_test(model, "IFNb", max_epochs=50)
    >>> table.query("gene == 'all'")
    """
    model.require_trained("test heterogeneity")
    targets, base = contrast_names(model.arms, treatment, reference)
    if not model.is_count:
        raise ValueError("likelihood='normal' has no counts to split; use one of counts.")
    adata = model.own_cells("test heterogeneity").adata
    comparison = Comparison.of(
        adata,
        model.setup_args,
        model=model,
        scale="counts",
        groupby=groupby,
        cluster_key=cluster_key,
    )
    part, outcome = _split_counts(comparison.cells, share, model.seed_)
    fit = cross_fit(model, n_folds, comparison.clusters, show_progress, **train_kwargs)
    fit = fit.with_counts(part, share)
    size = float(model.module.reference_size)
    baseline = np.maximum(fit.predict(base, size), _MIN_EXPRESSION)
    options = {"min_cells": min_cells, "min_counts": min_counts, "margin": margin, "level": level}
    tables = []
    for target in targets:
        prediction = np.maximum(fit.predict(target, size), _MIN_EXPRESSION)
        tables += _test_groups(
            comparison, (target, base), outcome, (baseline, prediction), 1 - share, options
        )
    return pd.concat(tables, ignore_index=True)


def _split_counts(
    cells: Cells, share: float, seed: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Part every cell's counts at random, count by count."""
    if not 0 < share < 1:
        raise ValueError(f"share={share} must be in (0, 1).")
    counts = sparse.csr_matrix(cells.block(np.arange(cells.n_obs)))
    whole = np.rint(counts.data).astype(np.int64)
    drawn = np.random.default_rng(seed).binomial(whole, share)
    parts = [counts.copy(), counts.copy()]
    for part, data in zip(parts, (drawn, whole - drawn), strict=True):
        part.data = data.astype(np.float32)
        part.eliminate_zeros()
    return parts[0], parts[1]


def _test_groups(
    comparison: Comparison,
    arms: tuple[str, str],
    outcome: sparse.csr_matrix,
    predictions: tuple[np.ndarray, np.ndarray],
    share: float,
    options: dict[str, Any],
) -> list[pd.DataFrame]:
    """Table of each group for a treatment and its reference."""
    cells, groups, names = comparison.cells, comparison.groups, comparison.group_names
    if groups is None or names is None:
        groups, names = cells.stratum, list(cells.strata)
    codes = [cells.treatments.name_index[name] for name in arms]
    of_arms = np.isin(cells.treatment, codes)
    size_factor, clusters = cells.size_factor, comparison.clusters
    tables = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(of_arms & (groups == code))
        table = test_arrays(
            outcome[rows],
            cells.treatment[rows] == codes[0],
            predictions[0][rows],
            predictions[1][rows],
            genes=cells.genes.tolist(),
            size=None if size_factor is None else size_factor[rows] * share,
            stratum=cells.stratum[rows],
            cluster=None if clusters is None else clusters[rows],
            composition=size_factor is None,
            **options,
        )
        labels = {"treatment": arms[0], "reference": arms[1], "stratum": name}
        tables.append(pd.concat([pd.DataFrame(labels, index=table.index), table], axis=1))
    return tables
