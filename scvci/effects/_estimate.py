"""Effects of treatments on genes, with intervals: from cells to the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ._clusters import ClusterWeights, cluster_components, weigh_clusters
from ._components import Products, cell_components
from ._design import Contrast, Design, Rules, make_contrasts, make_design
from ._effect import Effects, Options, leakage_p_values, measured_effect, predicted_effect
from ._moments import (
    Outcomes,
    Predictions,
    choose_chunk,
    sum_outcomes,
    sum_predictions,
    sum_products,
)
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

    from ._intervals import Components

    Predict = Callable[[int, slice], np.ndarray]


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
    scale: Literal["log1p", "counts", "lfc"] = "log1p",
    clusters: np.ndarray | None = None,
    predictions: Callable[[int, slice], np.ndarray] | None = None,
    prediction_weight: float | None = None,
    level: float = 0.95,
    leakage_level: float = 0.2,
    min_cells: int = 30,
    min_expressing: int = 10,
    min_propensity: float = 0.0,
    moderated: bool = False,
    chunk_size: int | None = None,
) -> pd.DataFrame:
    r"""Estimate the effect of treatments on every gene, with intervals and p-values.

    Cells are compared within strata x, in which treatment is taken to be unconfounded. The effect
    of t against the reference 0 in a group of strata is

    .. math:: \hat\tau = \sum_x w_x (\hat\Psi_{t,x} - \hat\Psi_{0,x}), \qquad
        w_x \propto n_x \text{ (ATE)} \quad\text{or}\quad w_x \propto n_{x,t} \text{ (ATT)},

    with one of these means under a treatment:

    - ``"observed"``: :math:`\bar Y_{x,t}`, the mean of the cells that received it;
    - ``"robust"``: that plus :math:`\lambda (\bar m(t)_{\text{all}} - \bar m(t)_{T=t})`, what
      predictions of every cell say about the imbalance of the arms (the one-step estimator;
      for the ATT only the reference's mean is corrected, to the treated cells). It is unbiased
      only if predictions are independent of the treatment received (no *leakage*). Where a test
      finds that they are not, the row falls back to ``"observed"``;
    - ``"plugin"``: the mean of the predictions, without an interval;
    - by default ``"observed"`` where a group has a stratum with enough cells in both arms, and
      elsewhere ``"extrapolation"``, the mean of the predictions of the group's cells, without an
      interval.

    Intervals hold for a population of cells (with ``clusters``: of clusters) that is composed of
    strata as the sample is: weights are not random. In genes that few cells express, an arm that
    shows next to none borrows variance from the other; intervals and p-values of such genes err
    on the safe side.

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
        Code of the group of each cell, shape ``(n_cells,)``; one row per treatment, group and
        gene. ``None`` for one group of all cells.
    group_names
        Names of the groups, by code.
    estimand
        ``"ate"``, the effect on all of the group's cells, or ``"att"``, on those that received
        the treatment.
    estimator
        See above.
    scale
        ``"log1p"``: difference of the means of log1p of the outcomes; ``"counts"``: of the
        outcomes; ``"lfc"``: log2 of the ratio of means of outcomes, without a pseudocount, which
        would pull it to zero by an amount that depends on the library size. Errors of ``"lfc"``
        come from the delta method.
    clusters
        Code of each cell's donor, well or guide, shape ``(n_cells,)``, if cells of one are not
        independent. Errors are then those of clusters: the paired t-test of their means where
        all have both arms, Welch's where none has. With fewer than 10 clusters of an arm each
        counts the same; with more, by its cells.
    predictions
        Gives the prediction of every cell for a treatment's code and a slice of genes, shape
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
        both arms. Generous, as a needless refusal costs length and a missed leak coverage.
    min_cells
        Fewest cells of both arms with which a stratum takes part.
    min_expressing
        Fewest expressing cells in both arms together for an interval. The rule depends on how
        much the gene is expressed, not on which arm expresses it.
    min_propensity
        Lowest share of a stratum's cells in both arms with which it takes part.
    moderated
        Whether the errors of a gene borrow from those of the others (:func:`moderate`), for
        experiments with two or three clusters, where each gene's own error is hardly known.
        Intervals then hold on average over genes, less so for genes of unusual variance.
    chunk_size
        Genes that are worked on at a time; ``None`` for at most 2²⁴ numbers in any array.

    Returns
    -------
    One row per treatment, group and gene, in this order, with columns

    - ``treatment``, ``reference``, ``stratum`` (the group's name; ``"all"``), ``gene``;
    - ``estimate``, ``std_error``, ``ci_low``, ``ci_high``, ``p_value``: of Student's t with the
      degrees of freedom of Welch and Satterthwaite;
    - ``q_value``: adjusted over the genes of a treatment and group (Benjamini and Hochberg);
    - ``n_treated``, ``n_reference``: cells; ``propensity``: share of cells that received the
      treatment; all three of the strata that are used;
    - ``mean_factual``: mean under the treatment; ``mean_counterfactual``: of the same cells under
      the reference. The estimate is their difference, or the log2 of their ratio;
    - ``estimator``: the one that was used, ``"skipped"`` if none could be;
    - ``leakage``: whether leakage was found, for which ``"robust"`` was refused;
    - ``note``: what was left out, refused or skipped, and why.

    Raises
    ------
    ValueError
        If names are unknown, lengths differ, values are not finite or negative, a number is out
        of range, or predictions are needed and not given or of another shape.
    """
    check_options(estimand, estimator, scale, predictions)
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
    )
    target_codes, reference_code = find_names(targets, reference, treatments)
    codes = [reference_code, *target_codes]
    design = make_design(treatment, stratum, groups, clusters, codes)
    rules = Rules(estimand, estimator, predictions is not None, min_cells, min_propensity)
    contrasts = make_contrasts(design, len(target_codes), len(names), strata, rules)
    options = Options(estimand, scale, prediction_weight, level, min_expressing)
    engine = _Engine(design, contrasts, genes, codes, predictions, options)
    size = chunk_size or choose_chunk(design, len(genes))
    chunks = [slice(a, min(a + size, len(genes))) for a in range(0, len(genes), size)]
    effects = [engine.chunk(outcomes, chunk) for chunk in chunks]
    labels = [reference, *(treatments[c] for c in target_codes)]
    return effects_table(effects, contrasts, labels, names, genes, leakage_level, level, moderated)


def _group_names(groups: np.ndarray | None, names: Sequence[str] | None) -> list[str]:
    if groups is None:
        return ["all"]
    if names is None:
        return [str(code) for code in range(int(np.max(groups, initial=-1)) + 1)]
    return list(names)


class _Engine:
    """Works through chunks of genes, so that nothing dense is larger than a chunk."""

    def __init__(
        self,
        design: Design,
        contrasts: list[Contrast],
        genes: Sequence[str],
        codes: list[int],
        predictions: Predict | None,
        options: Options,
    ) -> None:
        self.design = design
        self.contrasts = contrasts
        self.genes = list(genes)
        self.codes = codes
        self.predict = predictions
        self.options = options
        self.of_arm: dict[int, list[int]] = {arm: [] for arm in range(len(codes))}
        for i, contrast in enumerate(contrasts):
            if contrast.estimator != "skipped":
                self.of_arm[contrast.arm].append(i)
        self.weights: dict[int, ClusterWeights] = {}
        if design.clusters is not None:
            self.weights = {
                i: weigh_clusters(
                    contrast, design.clusters, with_everyone=contrast.estimator == "robust"
                )
                for i, contrast in enumerate(contrasts)
                if contrast.estimator in ("observed", "robust")
            }

    def chunk(self, outcomes: Any, genes: slice) -> Effects:
        """Effects of all contrasts on a chunk of genes."""
        scale, names, block = self.options.scale, self.genes[genes], outcomes[:, genes]
        check_values(block, names, signed=scale == "counts")
        sums = sum_outcomes(block, self.design, log=scale == "log1p")
        robust = any(c.estimator == "robust" for c in self.contrasts)
        effects = Effects.empty(len(self.contrasts), len(names), robust)
        predicting = {"robust", "plugin", "extrapolation"}
        wanted = {c.arm for c in self.contrasts if c.estimator in predicting}
        under_reference = self._predictions(0, genes) if wanted else None
        # Contrasts are ordered by arm: one set of predictions is held at a time.
        for arm in range(1, len(self.codes)):
            products = None
            if arm in wanted and under_reference is not None:
                products = self._products(arm, genes, under_reference, sums)
            for i in self.of_arm[arm]:
                self._contrast(i, sums, products, effects)
        return effects

    def _predictions(
        self, arm: int, genes: slice, other: Predictions | None = None
    ) -> Predictions:
        if self.predict is None:
            raise ValueError("Predictions are needed and not given.")
        return sum_predictions(self.predict, self.codes[arm], genes, self.design, other)

    def _products(
        self, arm: int, genes: slice, under_reference: Predictions, sums: Outcomes
    ) -> Products:
        treated = self._predictions(arm, genes, under_reference)
        return Products(
            treated=treated,
            reference=under_reference,
            outcome_treated=sum_products(sums.block, treated.block, self.design, (0, arm)),
            outcome_reference=sum_products(
                sums.block, under_reference.block, self.design, (0, arm)
            ),
        )

    def _contrast(
        self, i: int, sums: Outcomes, products: Products | None, effects: Effects
    ) -> None:
        contrast, options = self.contrasts[i], self.options
        if contrast.estimator not in ("observed", "robust"):
            if products is not None:
                predicted_effect(contrast, self.design, products, options, effects, i)
            return
        expressing = _expressing(contrast, sums)
        observed = self._components(i, sums, None)
        measured_effect(observed, expressing, options, effects, i)
        if effects.robust is not None and products is not None:
            components = self._components(i, sums, products)
            effects.leakage_p[:, i] = leakage_p_values(components)
            measured_effect(components, expressing, options, effects.robust, i)

    def _components(self, i: int, sums: Outcomes, products: Products | None) -> Components:
        contrast, estimand = self.contrasts[i], self.options.estimand
        if i in self.weights:
            return cluster_components(self.weights[i], sums, products, estimand)
        return cell_components(contrast, self.design, sums, products, estimand)


def _expressing(contrast: Contrast, sums: Outcomes) -> np.ndarray:
    """Count the expressing cells of both arms, ``(n_genes,)``."""
    return sums.expressing[contrast.units][:, [contrast.arm, 0]].sum(axis=(0, 1))
