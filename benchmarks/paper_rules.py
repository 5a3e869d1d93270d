"""Scores of an expression experiment by the paper's rules, and by corrected ones.

The paper's rules, as its evaluation computes them, in two modes:

- "native": the mean prediction over all cells of the stratum, treated or not (training cells for
  the training and test cells, test cells for the held-out pairs), against the mean of the
  evaluation cells. "robust" adds the mean residual of those base cells that had the treatment, at
  any dose; held-out pairs have none.
- "classic": the same over the controls of *all* strata, relabelled as the target's stratum.

Groups are (stratum, treatment) with more than 30 evaluation cells: doses are pooled, and the
prediction is made for the dose of the first of these cells. R² of means over all genes and over
the 50 genes with the largest |t| in scanpy's t-test on *all* cells, those to be predicted among
them.

The corrected rules differ in four ways: a group has one dose; the prediction is made for the
stratum's own controls; genes are ranked without the held-out cells; and what is scored is the
change, which "no change" does not predict, and not the level, which it predicts well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pandas as pd
import scanpy as sc

from scvci.metrics import differential_expression, pearson_delta, r2_means

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData

#: A treatment and its dose.
type Arm = tuple[str, float]

Mode = Literal["native", "classic"]
#: The paper's groups have more evaluation cells than this.
PAPER_MORE_THAN = 30
N_DE = 50
#: Split whose cells predictions start from, by the split that is scored.
BASE_SPLIT = {
    "native": {"train": "train", "test": "train", "ood": "test"},
    "classic": {"train": "train", "test": "test", "ood": "test"},
}


class Method(Protocol):
    """Who predicts."""

    name: str

    def means(self, cells: AnnData, arms: list[Arm]) -> np.ndarray:
        """Mean over cells of one stratum of their log-normalised expression under each arm.

        Returns
        -------
        Shape ``(n_arms, n_genes)``; NaN for an arm that the method cannot predict.
        """


@dataclass(frozen=True, eq=False)
class Experiment:
    """A prepared experiment.

    Attributes
    ----------
    name
        For the table.
    adata
        Log-normalised expression in ``X``; ``obs["treatment"]``, ``obs["dose"]`` (zero for the
        control or anything, if there is one dose) and ``obs["split"]`` in train, test and ood.
    control
        Name of the control.
    covariates
        Columns of ``obs`` whose combinations are the strata.
    """

    name: str
    adata: AnnData
    control: str
    covariates: list[str]

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Treatment, dose, split and stratum of each cell, the stratum as a code."""
        obs = self.adata.obs
        strata = obs[self.covariates].astype(str).agg(" | ".join, axis=1)
        return pd.DataFrame(
            {
                "treatment": obs["treatment"].astype(str).to_numpy(),
                "dose": obs["dose"].to_numpy(float),
                "split": obs["split"].astype(str).to_numpy(),
                "stratum": strata.to_numpy(),
            }
        )

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], np.ndarray]:
        return self.obs.groupby(["split", "stratum", "treatment"]).indices

    @property
    def strata(self) -> list[str]:
        """Names of the strata."""
        return sorted(set(self.obs["stratum"]))

    def rows(
        self, split: str | None = None, stratum: str | None = None, treatment: str | None = None
    ) -> np.ndarray:
        """Rows of cells in ascending order; ``None`` for any."""
        wanted = (split, stratum, treatment)
        found = [
            rows
            for key, rows in self._rows.items()
            if all(w is None or w == k for w, k in zip(wanted, key, strict=True))
        ]
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean log-normalised expression of some cells, shape ``(n_genes,)``."""
        return np.asarray(self.adata.X[rows].mean(axis=0), dtype=float).ravel()

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Log-normalised expression of some cells."""
        values = self.adata.X[rows]
        return np.asarray(values.todense() if hasattr(values, "todense") else values, dtype=float)

    def groups(
        self, split: str, stratum: str, more_than: int, by_dose: bool
    ) -> list[tuple[Arm, np.ndarray]]:
        """Arms of a stratum with more than so many cells, and these cells.

        With doses pooled the arm's dose is that of the first of the cells.
        """
        found = []
        for treatment in sorted(set(self.obs["treatment"]) - {self.control}):
            rows = self.rows(split, stratum, treatment)
            dose = self.obs["dose"].to_numpy()[rows]
            parts = [rows[dose == d] for d in np.unique(dose)] if by_dose else [rows]
            for part in parts:
                if len(part) > more_than:
                    found.append(((treatment, float(self.obs["dose"].iloc[part[0]])), part))
        return found

    def thinned(self, rows: np.ndarray, at_most: int | None) -> np.ndarray:
        """No more than so many of the cells, by chance, the same ones in every call."""
        if at_most is None or len(rows) <= at_most:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, at_most, replace=False))


def relabelled(cells: AnnData, covariates: dict[str, str]) -> AnnData:
    """Copy of cells whose covariates are overwritten: what the "classic" mode predicts for."""
    cells = cells.copy()
    for name, level in covariates.items():
        cells.obs[name] = pd.Categorical([level] * cells.n_obs)
    return cells


# -- the paper's rules --------------------------------------------------------------------------


@cache
def paper_genes(
    experiment: Experiment, stratum: str, treatments: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Genes by |t| of scanpy's t-test on all cells of the stratum, 50 for each treatment."""
    control = experiment.control
    if not treatments or not len(experiment.rows(None, stratum, control)):
        return {}
    rows = experiment.rows(stratum=stratum)
    labels = experiment.obs["treatment"].to_numpy()
    rows = rows[np.isin(labels[rows], [control, *treatments])]
    cells = sc.AnnData(
        experiment.adata.X[rows],
        obs=pd.DataFrame({"treatment": pd.Categorical(labels[rows])}, index=rows.astype(str)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(
            cells,
            "treatment",
            groups=list(treatments),
            reference=control,
            method="t-test",
            rankby_abs=True,
            n_genes=min(N_DE, cells.n_vars),
        )
    names = cells.uns["rank_genes_groups"]["names"]
    return {t: np.asarray(names[t], dtype=int) for t in treatments}


def paper_scores(
    experiment: Experiment,
    method: Method,
    mode: Mode,
    splits: Iterable[str] = ("test", "ood"),
    base_cells: int | None = None,
    more_than: int = PAPER_MORE_THAN,
) -> pd.DataFrame:
    """Score a method by the paper's rules, a row for each group.

    Parameters
    ----------
    experiment, method
        What is predicted, and who predicts.
    mode
        Which cells predictions start from, see the module's description.
    splits
        Splits to score.
    base_cells
        Most cells to predict for, drawn by chance; ``None``, as in the paper, for all of them.
    more_than
        Least number of evaluation cells, less one.

    Returns
    -------
    ``r2`` and ``r2_de``, and for the native mode ``r2_robust`` and ``r2_de_robust`` (NaN where
    no base cell had the treatment).
    """
    groups = {
        (split, x): experiment.groups(split, x, more_than, by_dose=False)
        for split in splits
        for x in experiment.strata
    }
    wanted: dict[str, set[str]] = {}
    for (_, x), of_stratum in groups.items():
        wanted.setdefault(x, set()).update(t for (t, _), _ in of_stratum)
    genes = {x: paper_genes(experiment, x, tuple(sorted(names))) for x, names in wanted.items()}
    found = []
    for (split, x), of_stratum in groups.items():
        base = _base(experiment, mode, split, x)
        if not of_stratum or not len(base):
            # The paper's code stops where a stratum has no base; its groups are left out here.
            continue
        arms = [arm for arm, _ in of_stratum]
        shown = experiment.thinned(base, base_cells)
        guesses = method.means(_base_cells(experiment, mode, shown, x), arms)
        for (arm, rows), guess in zip(of_stratum, guesses, strict=True):
            if not np.isfinite(guess).all():
                continue
            true = experiment.mean(rows)
            row = {
                "rules": f"paper, {mode}",
                "split": split,
                "stratum": x,
                "treatment": arm[0],
                "dose": arm[1],
                "n_cells": len(rows),
                "method": method.name,
                "r2": r2_means(true, guess),
            }
            top = genes[x].get(arm[0])
            if top is not None:
                row["r2_de"] = r2_means(true[top], guess[top])
            if mode == "native":
                row |= _robust(experiment, method, arm, base, guess, true, top)
            found.append(row)
    return pd.DataFrame(found)


def _base(experiment: Experiment, mode: Mode, split: str, stratum: str) -> np.ndarray:
    """Rows of the cells that predictions for a stratum start from."""
    of = BASE_SPLIT[mode][split]
    if mode == "native":
        return experiment.rows(of, stratum)
    return experiment.rows(of, None, experiment.control)


def _base_cells(experiment: Experiment, mode: Mode, rows: np.ndarray, stratum: str) -> AnnData:
    cells = experiment.adata[rows]
    if mode == "native":
        return cells
    one = experiment.rows(stratum=stratum)[0]
    levels = experiment.adata.obs[experiment.covariates].astype(str).iloc[one]
    return relabelled(cells, dict(levels))


def _robust(
    experiment: Experiment,
    method: Method,
    arm: Arm,
    base: np.ndarray,
    guess: np.ndarray,
    true: np.ndarray,
    top: np.ndarray | None,
) -> dict[str, float]:
    """Mean prediction plus the mean residual of the base cells with the treatment, any dose."""
    treated = base[experiment.obs["treatment"].to_numpy()[base] == arm[0]]
    if not len(treated):
        return {}
    (own,) = method.means(experiment.adata[treated], [arm])
    robust = guess + experiment.mean(treated) - own
    scores = {"r2_robust": r2_means(true, robust)}
    if top is not None:
        scores["r2_de_robust"] = r2_means(true[top], robust[top])
    return scores


# -- the corrected rules ------------------------------------------------------------------------


def corrected_genes(experiment: Experiment, stratum: str, treatment: str) -> np.ndarray | None:
    """Genes by |t| (Welch), 50 of them, ranked on training cells alone.

    Those of the pair against the stratum's controls, doses together; for a pair without training
    cells the mean t over the other strata. ``None`` where the treatment has none anywhere.
    """
    order = [stratum, *(x for x in experiment.strata if x != stratum)]
    scores = []
    for x in order:
        cells = [experiment.rows("train", x, t) for t in (treatment, experiment.control)]
        if min(map(len, cells)) < 2:
            continue
        table = differential_expression(*(experiment.dense(rows) for rows in cells))
        scores.append(table["score"].to_numpy())
        if x == stratum:
            break
    if not scores:
        return None
    score = np.mean(scores, axis=0)
    return np.argsort(-np.abs(score), kind="stable")[:N_DE]


def _changes(true: np.ndarray, guess: np.ndarray, genes: np.ndarray | None) -> dict[str, float]:
    """Scores of a change over all genes and over those that respond."""
    zero = np.zeros_like(true)
    scores = {"r2_delta": r2_means(true, guess), "pearson_delta": pearson_delta(true, guess, zero)}
    if genes is not None:
        scores["r2_delta_de"] = r2_means(true[genes], guess[genes])
        scores["pearson_delta_de"] = pearson_delta(true[genes], guess[genes], zero[genes])
    return scores


def corrected_scores(
    experiment: Experiment,
    methods: Iterable[Method],
    splits: Iterable[str] = ("test", "ood"),
    base_cells: int | None = None,
    more_than: int = 9,
    halvings: int = 10,
) -> pd.DataFrame:
    """Score methods by the corrected rules, a row for each group and method.

    Parameters
    ----------
    experiment, methods
        What is predicted, and who predicts.
    splits
        Splits to score.
    base_cells
        Most controls to predict for, drawn by chance; ``None`` for all of them.
    more_than
        Least number of evaluation cells of a treatment at a dose in a stratum, less one.
    halvings
        Random halvings of the evaluation cells behind the row ``"half of the cells"``.

    Returns
    -------
    ``r2_delta`` and ``pearson_delta`` of the change that is the predicted level less the mean of
    the stratum's training controls, over all genes and over those that respond (``…_de``);
    ``r2_change``: the same of the method's own change, its prediction for the control subtracted;
    and ``r2``, the level. ``"half of the cells"`` is what one half of the evaluation cells and
    controls says about the other: how far a measurement reproduces.
    """
    rng = np.random.default_rng(0)
    methods = list(methods)
    found: list[dict] = []
    for split in splits:
        for x in experiment.strata:
            groups = experiment.groups(split, x, more_than, by_dose=True)
            controls = experiment.rows("train", x, experiment.control)
            if not groups or not len(controls):
                continue
            base = experiment.mean(controls)
            arms = [arm for arm, _ in groups]
            cells = experiment.adata[experiment.thinned(controls, base_cells)]
            guesses = {m.name: m.means(cells, [*arms, (experiment.control, 0.0)]) for m in methods}
            genes = {t: corrected_genes(experiment, x, t) for t in {t for t, _ in arms}}
            for i, ((treatment, dose), rows) in enumerate(groups):
                true, top = experiment.mean(rows), genes[treatment]
                row = {
                    "rules": "corrected",
                    "split": split,
                    "stratum": x,
                    "treatment": treatment,
                    "dose": dose,
                    "n_cells": len(rows),
                }
                for name, guess in guesses.items():
                    if not np.isfinite(guess[i]).all():
                        continue
                    scores = {"r2": r2_means(true, guess[i])}
                    scores |= _changes(true - base, guess[i] - base, top)
                    scores["r2_change"] = r2_means(true - base, guess[i] - guess[-1])
                    found.append(row | {"method": name} | scores)
                ceiling = _ceiling(experiment, rows, controls, top, halvings, rng)
                found.append(row | {"method": "half of the cells"} | ceiling)
    return pd.DataFrame(found)


def _ceiling(
    experiment: Experiment,
    rows: np.ndarray,
    controls: np.ndarray,
    genes: np.ndarray | None,
    halvings: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Scores of one half of the cells, less half of the controls, against the other halves."""
    found = []
    treated, untreated = experiment.dense(rows), experiment.dense(controls)
    for _ in range(halvings):
        parts = []
        for values in (treated, untreated):
            order = rng.permutation(len(values))
            half = len(values) // 2
            parts.append([values[order[:half]].mean(axis=0), values[order[half:]].mean(axis=0)])
        (a, b), (c, d) = parts
        found.append({"r2": r2_means(a, b)} | _changes(a - c, b - d, genes))
    return pd.DataFrame(found).mean().to_dict()


# -- tables -------------------------------------------------------------------------------------

#: Columns of scores, in the order of the tables.
SCORES = [
    "r2",
    "r2_de",
    "r2_robust",
    "r2_de_robust",
    "r2_delta",
    "r2_change",
    "pearson_delta",
    "r2_delta_de",
    "pearson_delta_de",
]


def summary(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Unweighted means over groups, a title and a table for each set of rules and split."""
    for (rules, split), rows in table.groupby(["rules", "split"], sort=False):
        keys = ["stratum", "treatment", "dose"]
        n = len(rows[keys].drop_duplicates())
        columns = [c for c in SCORES if c in rows and rows[c].notna().any()]
        means = rows.groupby("method", sort=False)[columns].mean()
        means.insert(0, "groups", rows.groupby("method", sort=False).size())
        yield f"{rules} rules, {split} ({n} groups)", means.round(3)
