"""Effects of treatments on genes, with intervals: from cells to the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ._comparisons import REFERENCE, Comparison, Rules, make_comparisons, with_depth
from ._composition import are_shares, composition_factors, rescaled
from ._design import Design, make_design
from ._effect import Options, leakage_p_values, measured_effect, predicted_effect
from ._intervals import Estimate
from ._means import means_of
from ._moments import (
    BothPredictions,
    OutcomeSums,
    PredictionSums,
    gene_chunks,
    sum_outcomes,
    sum_predictions,
    sum_products,
)
from ._pseudobulks import pseudobulk_effect
from ._table import effects_table
from ._validation import (
    check_codes,
    check_numbers,
    check_options,
    check_shape,
    check_values,
    find_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


def estimate_effects(
    outcomes: Any,
    treatment: np.ndarray,
    stratum: np.ndarray,
    *,
    targets: Sequence[str] | None = None,
    reference: str,
    treatments: Sequence[str],
    strata: Sequence[str],
    genes: Sequence[str],
    groups: np.ndarray | None = None,
    group_names: Sequence[str] | None = None,
    estimand: Literal["ate", "att"] = "ate",
    estimator: Literal["observed", "robust", "plugin"] | None = None,
    scale: Literal["lfc", "log1p", "counts"] = "lfc",
    normalisation: Literal["ratios", "given"] | None = None,
    clusters: np.ndarray | None = None,
    cluster_weights: Literal["equal", "cells"] = "equal",
    batch: np.ndarray | None = None,
    library_size: np.ndarray | None = None,
    predictions: Callable[[int, slice], np.ndarray] | None = None,
    prediction_weight: float | None = None,
    level: float = 0.95,
    leakage_level: float = 0.2,
    min_cells: int = 30,
    min_expressing: int = 10,
    min_propensity: float = 0.0,
    moderated: bool | None = None,
    chunk_size: int | None = None,
) -> pd.DataFrame:
    r"""Estimate the effect of treatments on every gene, with intervals and p-values.

    Cells are compared within strata x, in which treatment is assumed to be unconfounded. The
    effect of t against the reference 0 in a group of strata is

    .. math:: \hat\tau = \sum_x w_x (\hat\Psi_{t,x} - \hat\Psi_{0,x}), \qquad
        w_x \propto n_x \text{ (ATE)} \quad\text{or}\quad w_x \propto n_{x,t} \text{ (ATT)},

    where the mean under a treatment is one of:

    - ``"observed"``: :math:`\bar Y_{x,t}`, the mean of the cells that received it;
    - ``"robust"``: that plus :math:`\lambda (\bar m(t)_{\text{all}} - \bar m(t)_{T=t})`, a
      correction for the imbalance of the arms by predictions of every cell (the one-step
      estimator; for the ATT only the reference's mean is corrected, to the treated cells). It is
      unbiased only if predictions do not depend on the treatment received (no *leakage*). Rows in
      which a test finds that they do fall back to ``"observed"``;
    - ``"plugin"``: the mean of the predictions, without an interval;
    - by default, ``"observed"`` where a group has a stratum with enough cells in both arms, and
      otherwise ``"extrapolation"``, the mean of the predictions of the group's cells, without an
      interval.

    Intervals refer to a population of cells (with ``clusters``: of clusters) in which strata have
    the same shares as in the sample: weights are fixed. In genes that few cells express, an arm in
    which almost no cell does borrows variance from the other; intervals and p-values of such genes
    are conservative.

    Parameters
    ----------
    outcomes
        Normalised counts, sparse or dense, shape ``(n_cells, n_genes)``.
    treatment, stratum
        Codes of each cell, shape ``(n_cells,)``.
    targets
        Names of treatments to estimate effects of; ``None`` for all but the reference.
    reference
        Name of the treatment to compare with.
    treatments, strata, genes
        Names, by code or column.
    groups
        Code of the group that each cell is reported in, shape ``(n_cells,)``; ``None`` for one
        group of all cells.
    group_names
        Names of the groups, by code.
    estimand
        ``"ate"``, the effect on all of the group's cells, or ``"att"``, on those that received
        the treatment.
    estimator
        See above.
    scale
        ``"lfc"``: log2 of the ratio of means of outcomes; between clusters, the mean over these
        of log2 of their means. The only scale that cells of unequal depth can be compared on.
        ``"counts"``: difference of the means of outcomes. ``"log1p"``: of log1p of the outcomes,
        which fall with the depth of the cells.
    normalisation
        ``"ratios"``: outcomes are first divided by factors with which most genes do not change
        between arms, so that a few large genes that do are not mistaken for a change of all
        others. ``"given"``: outcomes are taken as they are. ``None`` takes ``"ratios"`` on
        ``"lfc"`` if the outcomes of each cell add up to the same total, and else ``"given"``.
    clusters
        Code of each cell's donor, well or guide, shape ``(n_cells,)``, if cells of one are not
        independent. Clusters are then what is compared, by a linear model of their means in each
        arm: see ``cluster_weights``. Clusters that have both arms are paired; strata that are part
        of one cluster each (a donor that is also a covariate) are pairs of one effect.
    cluster_weights
        ``"equal"``: each cluster of a stratum and arm counts once; the effect in the mean donor.
        ``"cells"``: each counts by its cells; the effect in the mean cell. Not with
        ``"robust"``, which takes the former.
    batch
        Code of each cell's batch, shape ``(n_cells,)``: cells are compared within the batches of a
        stratum only, and these count by how precise their difference is. Batches without both arms
        are left out.
    library_size
        Counts of each cell before normalisation, shape ``(n_cells,)``, for ``depth_ratio``.
    predictions
        Returns the prediction of every cell for a treatment's code and a slice of genes, shape
        ``(n_cells, n_slice)``, on the scale of the means: log1p of normalised counts for
        ``"log1p"``, normalised counts otherwise. The cell must not have been used to fit the
        model that predicts for it (cross-fitting).
    prediction_weight
        λ. 1 is the one-step estimator; ``None`` chooses the λ in [0, 1] with the least variance,
        gene by gene, at the cost of a degree of freedom.
    level
        Coverage of the intervals.
    leakage_level
        False discovery rate of the test of leakage that ``"robust"`` rests on, over all rows and
        both arms. The default is high, as a needless refusal only widens an interval, while a
        missed leak costs its coverage.
    min_cells
        Fewest cells of either arm for a stratum to be used.
    min_expressing
        Fewest expressing cells in both arms together for an interval. The rule depends on how
        much the gene is expressed, not on which arm expresses it.
    min_propensity
        Lowest share of its cells in either arm for a stratum to be used.
    moderated
        Whether the errors of a gene borrow from those of genes that are expressed alike
        (:func:`moderate`), since few clusters say little about each gene's own error. Intervals
        then hold on average over genes. ``None``: with clusters.
    chunk_size
        Genes that are processed at a time; ``None`` for at most 2²⁴ numbers in any array.

    Returns
    -------
    One row per treatment, group and gene, in this order, with columns

    - ``treatment``, ``reference``, ``stratum`` (the group's name; ``"all"``), ``gene``;
    - ``estimate``, ``std_error``, ``df``, ``ci_low``, ``ci_high``, ``p_value``: of Student's t
      with the degrees of freedom of Satterthwaite, and those that moderation adds;
    - ``q_value``: adjusted over the genes of a treatment and group (Benjamini and Hochberg);
    - ``n_treated``, ``n_reference``: cells; ``propensity``: share of cells that received the
      treatment; ``depth_ratio``: mean library size of treated over that of reference cells, NaN
      if it is not given; all four in the strata and batches that are used;
    - ``mean_factual``: mean under the treatment; ``mean_counterfactual``: of the same cells under
      the reference. The estimate is their difference, or the log2 of their ratio;
    - ``estimator``: the one that was used, ``"skipped"`` if none could be;
    - ``leakage``: whether leakage was found, for which ``"robust"`` was refused;
    - ``note``: what was left out, refused or skipped, and why.

    Raises
    ------
    ValueError
        If names are unknown, lengths differ, values are not finite or negative, a number is out
        of range, or predictions are needed but missing or of another shape.
    """
    check_options(estimand, estimator, scale, cluster_weights, normalisation, predictions)
    if estimator == "robust" and cluster_weights == "cells":
        raise ValueError(
            "estimator='robust' counts each cluster once; use cluster_weights='equal'."
        )
    if library_size is not None and np.shape(library_size) != (outcomes.shape[0],):
        raise ValueError(
            f"library_size has shape {np.shape(library_size)}, but must have one number per cell: "
            f"({outcomes.shape[0]},)."
        )
    check_numbers(
        level=level,
        leakage_level=leakage_level,
        min_cells=min_cells,
        min_expressing=min_expressing,
        min_propensity=min_propensity,
        prediction_weight=prediction_weight,
        chunk_size=chunk_size,
    )
    check_shape(outcomes, genes)
    names = _group_names(groups, group_names)
    check_codes(
        outcomes.shape[0],
        treatment=(treatment, len(treatments)),
        stratum=(stratum, len(strata)),
        groups=(groups, len(names)),
        clusters=(clusters, None),
        batch=(batch, None),
    )
    target_codes, reference_code = find_names(targets, reference, treatments)
    codes = [reference_code, *target_codes]
    design = make_design(treatment, stratum, groups, clusters, codes, batch)
    rules = Rules(
        estimand, estimator, predictions is not None, min_cells, min_propensity, cluster_weights
    )
    comparisons = make_comparisons(design, len(target_codes), len(names), strata, rules)
    if library_size is not None:
        comparisons = with_depth(comparisons, design, library_size, scale)
    if normalisation is None and scale == "lfc" and are_shares(outcomes):
        normalisation = "ratios"
    if normalisation == "ratios":
        check_values(outcomes, genes, signed=False)
        outcomes = rescaled(outcomes, composition_factors(outcomes, design))
    options = Options(estimand, scale, prediction_weight, level, min_expressing)
    chunks = _Chunks(outcomes, design, comparisons, genes, codes, predictions, options)
    found = [chunks.estimate(c) for c in gene_chunks(design, len(genes), chunk_size)]
    robust = [chunk.robust for chunk in found if chunk.robust is not None]
    return effects_table(
        Estimate.combine([chunk.observed for chunk in found], np.hstack),
        Estimate.combine(robust, np.hstack) if robust else None,
        np.concatenate([chunk.leakage_p for chunk in found], axis=2),
        [np.hstack(parts) for parts in zip(*(chunk.pulls for chunk in found), strict=True)],
        comparisons,
        [reference, *(treatments[c] for c in target_codes)],
        names,
        genes,
        leakage_level=leakage_level,
        level=level,
        moderated=clusters is not None if moderated is None else moderated,
    )


def _group_names(groups: np.ndarray | None, names: Sequence[str] | None) -> list[str]:
    if groups is None:
        return ["all"]
    if names is None:
        return [str(code) for code in range(int(np.max(groups, initial=-1)) + 1)]
    return list(names)


@dataclass(frozen=True)
class _Found:
    """Estimates of one comparison, or of all, without and with corrections by predictions.

    ``leakage_p`` are p-values of the corrections of both means, shape ``(2, ..., n_genes)``; NaN
    where there are none. ``pulls`` say for each comparison what its clusters pull at the effect,
    ``(n_clusters, n_genes)``; no rows where pseudobulks are not what is compared.
    """

    observed: Estimate
    robust: Estimate | None
    leakage_p: np.ndarray
    pulls: list[np.ndarray]

    @classmethod
    def stack(cls, rows: Sequence[_Found]) -> _Found:
        """Put comparisons together; those without corrections stay as they are."""
        robust = None
        if any(row.robust is not None for row in rows):
            robust = Estimate.combine([row.robust or row.observed for row in rows], np.stack)
        return cls(
            observed=Estimate.combine([row.observed for row in rows], np.stack),
            robust=robust,
            leakage_p=np.stack([row.leakage_p for row in rows], axis=1),
            pulls=[pulls for row in rows for pulls in row.pulls],
        )


@dataclass(frozen=True)
class _Chunks:
    """What estimates need; one chunk of genes at a time, so that no dense array is larger."""

    outcomes: Any
    design: Design
    comparisons: list[Comparison]
    genes: Sequence[str]
    codes: list[int]
    predict: Callable[[int, slice], np.ndarray] | None
    options: Options

    def estimate(self, chunk: slice) -> _Found:
        """Effects of all comparisons on a chunk of genes."""
        scale, block = self.options.scale, self.outcomes[:, chunk]
        check_values(block, self.genes[chunk], signed=scale == "counts")
        sums = sum_outcomes(block, self.design, log=scale == "log1p")
        predicting = {"robust", "plugin", "extrapolation"}
        wanted = {c.arm for c in self.comparisons if c.estimator in predicting}
        under_reference = self._predictions(REFERENCE, chunk) if wanted else None
        found, arm, both = [], REFERENCE, None
        # Comparisons are ordered by arm: one set of predictions is held at a time.
        for comparison in self.comparisons:
            if comparison.arm != arm:
                arm, both = comparison.arm, None
                if arm in wanted and under_reference is not None:
                    both = self._both(arm, chunk, under_reference, sums)
            found.append(self._compare(comparison, sums, both))
        return _Found.stack(found)

    def _predictions(
        self, arm: int, chunk: slice, other: PredictionSums | None = None
    ) -> PredictionSums:
        if self.predict is None:
            raise ValueError("Predictions are needed; pass predictions=.")
        return sum_predictions(self.predict, self.codes[arm], chunk, self.design, other)

    def _both(
        self, arm: int, chunk: slice, under_reference: PredictionSums, sums: OutcomeSums
    ) -> BothPredictions:
        treated, arms = self._predictions(arm, chunk, under_reference), (REFERENCE, arm)
        of_treated, of_reference = (
            sum_products(sums.block, p.block, self.design, arms)
            for p in (treated, under_reference)
        )
        return BothPredictions(treated, under_reference, of_treated, of_reference)

    def _compare(
        self, comparison: Comparison, sums: OutcomeSums, both: BothPredictions | None
    ) -> _Found:
        n_genes = sums.total.shape[-1]
        contrast, options = comparison.contrast, self.options
        robust, leakage_p = None, np.full((2, n_genes), np.nan)
        pulls = np.zeros((0, n_genes))
        if comparison.pseudobulks is not None:
            observed, pulls = pseudobulk_effect(
                comparison.pseudobulks,
                sums,
                self.design.counts,
                comparison.units,
                (comparison.arm, REFERENCE),
                options,
            )
        elif contrast is not None:
            means = means_of(contrast, self.design, sums)
            observed = measured_effect(contrast, means, sums, options)
        elif comparison.estimator != "skipped" and both is not None:
            observed = predicted_effect(comparison, self.design, both, options)
        else:
            observed = Estimate.missing(n_genes)
        if comparison.estimator == "robust" and contrast is not None and both is not None:
            means = means_of(contrast, self.design, sums, both, options.estimand)
            leakage_p = leakage_p_values(means)
            robust = measured_effect(contrast, means, sums, options)
        return _Found(observed, robust, leakage_p, [pulls])
