"""Effects of treatments on populations of cells, with intervals."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi import settings

from scvci.data._requests import contrast_names, measured_names
from scvci.model import VCI
from scvci.model._seeded import Seeded

from ._comparison import Comparison
from ._count_model import count_model_effects
from ._crossfit import cross_fit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from ._comparison import Predict, Scale


def estimate_effects(
    adata: AnnData,
    treatment: str | Sequence[str] | None = None,
    *,
    reference: str | None = None,
    groupby: str | None = None,
    estimand: Literal["ate", "att"] = "ate",
    estimator: Literal["observed", "robust", "plugin", "deseq2"] | None = None,
    scale: Scale | None = None,
    normalisation: Literal["ratios", "given"] = "ratios",
    cluster_key: str | None = None,
    cluster_weights: Literal["equal", "cells"] = "equal",
    level: float = 0.95,
    min_cells: int = 30,
    moderated: bool | None = None,
    model: VCI | None = None,
    n_folds: int = 5,
    show_progress: bool = True,
    **train_kwargs: Any,
) -> pd.DataFrame:
    r"""Estimate the effect of treatments on every gene, with intervals and p-values.

    Treated cells and cells of the reference are compared within strata, in which treatment is
    taken to be unconfounded, and strata are averaged. With continuous covariates they are
    compared within bins of a stratum's cells that have like fitted propensities (Rosenbaum and
    Rubin, 1984), with ``batch_key`` within batches. By default the effect is a comparison of
    *measured* means, which needs no model. With ``model=``, groups in which nothing was measured
    get the mean of its predictions, labelled as an extrapolation. Counts are per 10,000 of a cell
    (or over its registered size factor).

    Parameters
    ----------
    adata
        Cells registered with :meth:`scvci.model.VCI.setup_anndata`, or any that ``model`` reads.
    treatment
        A treatment, several, or ``None`` for all but the reference.
    reference
        What they are compared with, by default the control.
    groupby
        Column of ``obs``; effects are reported for each of its labels. By default one effect of
        all cells.
    estimand
        ``"ate"``: the effect on all cells of a group; ``"att"``: on those that were treated.
    estimator
        ``None`` (measured means and, with ``model``, the mean of predictions where a group has no
        stratum in which both treatments were measured, without an interval), ``"observed"``
        (measured means only), ``"robust"`` (the paper's one-step estimator, from models that have
        not seen the cell; refused gene by gene where the treatment leaks into predictions) or
        ``"plugin"`` (the mean of predictions, without an interval). These two need ``model``.
        ``"deseq2"``: a negative binomial regression of the counts of clusters, by PyDESeq2
        (``pip install scvci[deseq2]``), with its own size factors and normal intervals; all strata
        of a group share one effect, and genes that its filter leaves out have q-value 1.
    scale
        ``"lfc"``: log2 of the ratio of means of normalised counts, which does not depend on depth;
        the default for counts. ``"log1p"``: difference of means of log-normalised counts, which
        does: only for arms of one depth, and the default for log-normalised data. ``"counts"``:
        difference of means of normalised counts.
    normalisation
        Of counts: ``"ratios"``: library sizes times factors with which most genes do not change,
        so that a few large genes that do are not taken for a change of all others; ``"given"``:
        library sizes, or the registered size factor, alone.
    cluster_key
        Column of ``obs`` with the donor, animal, well or guide of each cell. Cells of one are
        not independent: without it, errors are too small. The user guide says which column it is
        in which design.
    cluster_weights
        ``"equal"``: each cluster counts once, the effect in the mean donor. ``"cells"``: by its
        cells, the effect in the mean cell.
    level
        Coverage of the intervals.
    min_cells
        Fewest cells of both treatments with which a stratum takes part.
    moderated
        Whether the errors of a gene borrow from those of genes that are expressed alike (empirical
        Bayes; Smyth, 2004), since of a few clusters a gene's own error is hardly known; ``None``:
        with ``cluster_key``.
    model
        A model by which to read ``adata``, and, if it is trained, to predict. ``"robust"`` works
        on its own cells only.
    n_folds
        Models that are trained for ``"robust"``. They are kept for a second call.
    show_progress
        Whether to show the progress of that training.
    **train_kwargs
        Passed to :meth:`scvci.model.VCI.train` for these models; give those that ``model`` was
        trained with.

    Returns
    -------
    One row per treatment, group and gene; columns as in
    :func:`scvci.effects.estimate_effects`. ``attrs["scale"]``, ``["estimand"]`` and ``["level"]``
    say what was estimated.

    Raises
    ------
    KeyError, ValueError
        If ``adata`` was not set up, a name is unknown, an option makes no sense for the data, a
        label is missing, or a model is needed and not given.
    RuntimeError
        If the model is not trained.

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
    (:func:`leakage_test`). See the user guide on effects.

    References
    ----------
    Wu, McConnell and Iriondo, "Counterfactual Generative Modeling with Variational Causal
    Inference", ICLR 2025, on the robust estimator.

    Examples
    --------
    >>> table = scvci.tl.estimate_effects(adata, "IFNb", groupby="cell_type", cluster_key="donor")
    >>> table.query("q_value < 0.1")
    """
    if estimator in ("robust", "plugin"):
        if model is None:
            raise ValueError(f"estimator={estimator!r} averages predictions; pass model=.")
        model.require_trained("average its predictions")
    comparison = Comparison.of(
        adata,
        _setup_args(adata, model),
        model=model,
        scale=scale,
        groupby=groupby,
        cluster_key=cluster_key,
    )
    targets, base = contrast_names(comparison.cells.treatments, treatment, reference)
    options: dict[str, Any] = {
        "estimand": estimand,
        "normalisation": normalisation,
        "cluster_weights": cluster_weights,
        "level": level,
        "min_cells": min_cells,
        "moderated": moderated,
    }
    if estimator == "deseq2":
        table = count_model_effects(comparison, targets, base, level=level, min_cells=min_cells)
    elif estimator in ("robust", "plugin"):
        assert model is not None
        if estimator == "robust":
            predict = cross_fitted(model, comparison, n_folds, show_progress, train_kwargs)
        else:
            predict = _own_predictions(model, comparison)
        table = _by_target(
            targets,
            lambda t: comparison.estimate(
                [t], base, estimator=estimator, predict=predict, **options
            ),
        )
    else:
        table = comparison.estimate(targets, base, estimator=estimator or "observed", **options)
        if estimator is None and model is not None and model.is_trained_:
            table = _extrapolate(table, comparison, model, options)
    table.attrs |= {"scale": comparison.scale, "estimand": estimand, "level": level}
    return table


def leakage_test(
    model: VCI,
    treatment: str | Sequence[str] | None = None,
    *,
    scale: Scale | None = None,
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
    model
        A trained model that holds its cells.
    treatment
        A treatment, several, or ``None`` for all, the control included.
    scale, cluster_key, n_folds, show_progress, **train_kwargs
        See :func:`estimate_effects`.

    Returns
    -------
    One row per treatment, stratum and gene, see :func:`scvci.effects.leakage_test`;
    ``attrs["scale"]`` is the scale.

    Raises
    ------
    KeyError, ValueError, RuntimeError
        As :func:`estimate_effects`.
    """
    model.require_trained("test leakage")
    adata = model.own_cells("test leakage").adata
    comparison = Comparison.of(
        adata, model.setup_args, model=model, scale=scale, cluster_key=cluster_key
    )
    targets = measured_names(model.arms, treatment)
    predict = cross_fitted(model, comparison, n_folds, show_progress, train_kwargs)
    table = comparison.leakage(targets, predict)
    table.attrs["scale"] = comparison.scale
    return table


def _setup_args(adata: AnnData, model: VCI | None) -> Any:
    return VCI.registry_of(adata)["setup_args"] if model is None else model.setup_args


def _extrapolate(
    table: pd.DataFrame, comparison: Comparison, model: VCI, options: dict[str, Any]
) -> pd.DataFrame:
    """Put means of predictions where nothing could be compared."""
    lacking = set(table.loc[table["estimator"] == "skipped", "treatment"])
    if not lacking:
        return table
    predict = _own_predictions(model, comparison)
    reference = table["reference"].iloc[0]
    return _by_target(
        table["treatment"].unique().tolist(),
        lambda t: (
            comparison.estimate([t], reference, predict=predict, **options)
            if t in lacking
            else table[table["treatment"] == t]
        ),
    )


def _own_predictions(model: VCI, comparison: Comparison) -> Predict:
    """Predictions by the model, as measured cells are normalised.

    The mean of logarithms is not the logarithm of the mean: on ``"log1p"`` outcomes are drawn
    and normalised like measured counts.
    """
    cells = comparison.cells
    drawn = comparison.is_count and comparison.scale == "log1p"
    size = comparison.target_size if comparison.is_count and not drawn else None

    @lru_cache(maxsize=2)
    @torch.inference_mode()
    def predict(treatment: str) -> np.ndarray:
        [condition] = model.conditions(treatment)
        arm, blocks = model.arm(condition), []
        with Seeded(model.seed_):
            for _, tensors in cells.batches(settings.batch_size):
                batch = model.on_device(tensors)
                z = model.latent_states(batch, 1 if drawn else None)
                px = model.decode(batch, arm, z, library_size=size)
                blocks.append((px.sample() if drawn else px.mean)[0].cpu().numpy())
        values = np.concatenate(blocks)
        return np.log1p(comparison.normalise(values)) if drawn else values

    return predict


def cross_fitted(
    model: VCI,
    comparison: Comparison,
    n_folds: int,
    show_progress: bool,
    train_kwargs: dict[str, Any],
) -> Predict:
    """Expect outcomes by models that have not seen the cell.

    Parameters
    ----------
    model
        Whose settings the models have.
    comparison
        Its cells.
    n_folds, show_progress, train_kwargs
        See :func:`estimate_effects`.
    """
    if comparison.cells.adata is not model.adata:
        raise ValueError(
            "estimator='robust' trains models on the model's own cells; pass adata=model.adata."
        )
    fit = cross_fit(model, n_folds, comparison.clusters, show_progress, **train_kwargs)
    log1p = comparison.is_count and comparison.scale == "log1p"
    size = comparison.target_size if comparison.is_count else None

    @lru_cache(maxsize=2)
    def predict(treatment: str) -> np.ndarray:
        return fit.predict(treatment, size, log1p)

    return predict


def _by_target(targets: list[str], estimate: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """Tables of single targets in one: matrices of predictions of two are held at a time."""
    return pd.concat([estimate(t) for t in targets], ignore_index=True)
