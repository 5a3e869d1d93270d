"""Score layers of predictions against real cells or known counterfactuals."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvci.data._labels import as_names

from ._baselines import BASELINES
from ._experiment import (
    Experiment,
    Predictions,
    read_layers,
    read_strata,
    read_test,
    read_treatments,
)
from ._pairs import PAIR_MEAN, PairScorer
from ._scoring import METRICS
from ._verdict import add_best_baseline

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anndata import AnnData

_COLUMNS = ["treatment", "stratum", "pair", "method", "kind", "metric", "value"]


def evaluate(
    adata: AnnData,
    layer: str | Sequence[str] | Mapping[str, str],
    *,
    predicted: AnnData | None = None,
    treatment_key: str = "treatment",
    control: str | Sequence[str] = "control",
    covariate_keys: Sequence[str] = (),
    counts_layer: str | None = None,
    truth: Mapping[str, str] | None = None,
    test: str | Sequence[Any] | np.ndarray | None = None,
    baselines: bool | Collection[str] = True,
    min_cells: int = 10,
    max_cells: int = 500,
    seed: int = 0,
    dose_key: str | None = None,
    separator: str | None = None,
) -> pd.DataFrame:
    """Score predicted layers, with the trivial baselines beside them.

    Within each stratum, the predictions for its *control* cells are compared with the real cells
    that received the treatment: a prediction for treated cells would be a reconstruction. Means
    are compared as :func:`pseudobulk`, so layers of expected counts at any library size and of
    sampled counts can be scored; layers of log1p are taken back to counts first.

    Where the layer of the control is given, or recorded beside the others in
    ``uns["scvci"]``, the predicted *change* is scored too, added to the observed control: rows of
    the method ``"<model> (change)"``.

    Metrics of the spread of cells (``r2_variances``, ``energy_distance``, ``mmd``,
    ``covariance_error``, ``de_jaccard``) are for sampled counts (``n_samples=``): expected counts
    lack the noise of real cells. Against the truth, which is without noise, they are for expected
    counts. Distances and covariances are taken on the 50 top genes, those with the largest
    Welch's t outside ``test``. The cells of a baseline are the real cells whose mean it is (other
    strata's for ``"treatment mean"``), and else control cells shifted by the change it predicts.

    Among real cells one random half as a prediction of the other half is scored as well, the
    method ``"half of the real cells"`` of kind ``"ceiling"``: what is beyond it is noise. Its own
    metric ``agreement`` is the correlation over genes of the effects in two halves of treated and
    control cells, which have no cell in common: zero on average where there is no effect.

    Parameters
    ----------
    adata
        Cells with real counts, treatments and covariates.
    layer
        Layer of predictions, several, or layers by treatment. Without a mapping the treatment is
        read from ``uns["scvci"]``, where :meth:`scvci.model.VCI.predict_counterfactual` puts it.
    predicted
        AnnData that holds the layers, with the genes of ``adata``; by default ``adata``.
    treatment_key, control, covariate_keys, dose_key, separator
        See :meth:`scvci.model.VCI.setup_anndata`; combinations of covariates are the strata. Each
        dose and each combination is a treatment of its own, named as in ``model.treatments``.
    counts_layer
        Layer with the real counts; ``None`` for ``X``.
    truth
        Layers of known expected counts by treatment, the control included, for simulations. They
        take the place of real cells, and ``ite_corr``, ``mse``, ``mse_top50`` and ``pehe`` of
        single cells are added. Pairs then need no real cell.
    test
        Cells that were not used for training: a boolean column of ``obs``, a mask, rows or names.
        Real cells are then test cells, while controls, baselines and the top genes come from the
        other cells only. Without it every cell counts as used.
    baselines
        Names of baselines of :data:`BASELINES`, and ``"mean of the pair"``: that of the pair's own
        cells outside ``test``, where there are some. ``True`` for all.
    min_cells
        Pairs with fewer real cells to compare with, or fewer control cells, are left out.
    max_cells
        Most cells a side for ``energy_distance`` and ``mmd``, which grow with its square.
    seed
        Seed of the choice of these cells.

    Returns
    -------
    One row per treatment, stratum, method and metric: ``treatment``, ``stratum``, ``pair``
    (``"seen"`` if it has cells outside ``test``, else ``"held out"``), ``method``, ``kind``
    (``"model"``, ``"baseline"`` or ``"ceiling"``), ``metric`` (of :data:`METRICS`), ``value``,
    ``higher_is_better``, ``n_cells`` (real cells compared with; with ``truth`` the control cells),
    ``best_baseline``, ``best_baseline_value`` and ``baseline_wins``. Scores that are not defined
    have no row. :func:`verdict` puts it into sentences.

    Raises
    ------
    KeyError, ValueError
        With the layer, column, treatment or scale at fault, and what was found.

    Warns
    -----
    UserWarning
        If neither ``test`` nor ``truth`` is given: scores are then those of a fit.

    Examples
    --------
    >>> layers = model.predict_counterfactual()
    >>> table = scvci.metrics.evaluate(
    ...     adata, layers, covariate_keys=["cell_type"], counts_layer="counts", test="is_test"
    ... )
    >>> print(scvci.metrics.verdict(table))
    """
    cells = adata if predicted is None else predicted
    written = (treatment_key, control, dose_key, separator)
    name = as_names(control)[0]
    layers = read_layers(cells, layer, name)
    real = Experiment(
        adata=adata,
        counts_layer=counts_layer,
        treatment=read_treatments(adata, *written),
        stratum=read_strata(adata, covariate_keys),
        control=name,
        test=read_test(adata, test),
    )
    guess = Predictions(
        adata=cells,
        layers=layers,
        truth=dict(truth or {}),
        treatment=read_treatments(cells, *written),
        stratum=read_strata(cells, covariate_keys),
        control=name,
    )
    real.check()
    guess.check(adata)
    if test is None and truth is None:
        warnings.warn(
            "Neither test nor truth is given, so the cells compared with may have been used for "
            "training: scores tell how well the model fits, not how well it predicts. Pass test= "
            "with the cells it did not see, or call scvci.tl.evaluate, which retrains.",
            UserWarning,
            stacklevel=2,
        )
    rng = np.random.default_rng(seed)
    scorer = PairScorer(real, guess, _names(baselines), min_cells, max_cells, rng)
    table = pd.DataFrame(scorer.rows(), columns=[*_COLUMNS, "n_cells"])
    table = table[table["value"].notna()]
    if table.empty:
        raise ValueError(
            f"There is no pair to score for treatments {guess.targets}: none has at least "
            f"min_cells={min_cells} {'control' if truth else 'real'} cells to compare with in a "
            f"stratum with as many {name!r} cells. Pairs found: {real.describe_pairs()}."
        )
    table.insert(7, "higher_is_better", table["metric"].map(METRICS))
    return add_best_baseline(table)


def _names(baselines: bool | Collection[str]) -> list[str]:
    known = [*BASELINES, PAIR_MEAN]
    if isinstance(baselines, bool):
        return known if baselines else []
    unknown = [name for name in baselines if name not in known]
    if unknown:
        raise ValueError(f"Baselines {unknown} are unknown. Known: {known}.")
    return list(baselines)
