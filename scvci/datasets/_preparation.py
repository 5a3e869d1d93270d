"""Steps that turn raw screens into data for held-out treatments: cells, genes, splits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import median_abs_deviation
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.sparsefuncs import incr_mean_variance_axis

from scvci._names import unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._raw_cells import RawCells

Protocol = Literal["published", "corrected"]
Flavor = Literal["seurat", "cell_ranger"]

_TEST_SHARE = 0.2
_SPLIT_SEED = 42
_SUBSAMPLE_SEED = 0
#: Bins of mean expression in which Seurat's flavour compares dispersions.
_SEURAT_BINS = 20
#: Training cells that a treatment needs outside the held-out context, to be held out by rank.
_MIN_CELLS = 30


@dataclass(frozen=True)
class CellFilter:
    """Which cells of a raw screen are kept; defaults are those of the published preparation.

    Parameters
    ----------
    min_counts
        A cell has more counts than these.
    min_genes
        A cell has more genes detected than these.
    max_mitochondrial
        Counts of mitochondrial genes are less than this share of a cell's counts.

    Raises
    ------
    ValueError
        If a bound is negative, or ``max_mitochondrial`` is not in (0, 1].
    """

    min_counts: float = 500
    min_genes: int = 750
    max_mitochondrial: float = 0.2

    def __post_init__(self) -> None:
        for name in ("min_counts", "min_genes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")
        if not 0 < self.max_mitochondrial <= 1:
            raise ValueError(
                f"max_mitochondrial={self.max_mitochondrial} must be in (0, 1]; it is a share."
            )


@dataclass(frozen=True)
class Recipe:
    """What is particular to a screen and to a call.

    Attributes
    ----------
    screen
        Name of the screen.
    control
        Name of the control.
    strata
        Columns whose combinations are the strata.
    context
        Values of columns that describe the cells from which treatments are held out.
    flavor
        How dispersions of genes are compared.
    n_genes
        Number of highly variable genes.
    n_ood
        Number of treatments that are held out by rank.
    ood_treatments
        Treatments that are held out instead.
    protocol
        ``"published"`` or ``"corrected"``.
    split_by
        Column of groups of cells that are not split between training and test.
    """

    screen: str
    control: str
    strata: tuple[str, ...]
    context: dict[str, str]
    flavor: Flavor
    n_genes: int
    n_ood: int
    ood_treatments: tuple[str, ...] | None
    protocol: Protocol
    split_by: str | None

    def __post_init__(self) -> None:
        if self.protocol not in ("published", "corrected"):
            raise ValueError(
                f"protocol={self.protocol!r} must be 'published' (as the paper's preparation) or "
                "'corrected' (everything learned from training cells only)."
            )
        if self.split_by is not None and self.protocol == "published":
            raise ValueError(
                f"split_by={self.split_by!r}, but the published split is one of single cells. "
                "Choose protocol='corrected'."
            )
        for name in ("n_genes", "n_ood"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    def in_context(self, cells: pd.DataFrame) -> np.ndarray:
        """Cells from which treatments are held out, shape ``(n_cells,)``."""
        matches = [cells[column] == value for column, value in self.context.items()]
        return np.logical_and.reduce(matches)

    def treated(self, cells: pd.DataFrame) -> np.ndarray:
        """Cells that are no controls, shape ``(n_cells,)``."""
        return (cells["treatment"] != self.control).to_numpy()


@dataclass
class Steps:
    """Numbers of cells after each step, in order."""

    n_cells: dict[str, int] = field(default_factory=dict)

    def keep(self, cells: pd.DataFrame, rows: np.ndarray | pd.Series, step: str) -> pd.DataFrame:
        """Keep some cells, and count them.

        Raises
        ------
        ValueError
            If none is left; with the step.
        """
        cells = cells.loc[np.asarray(rows)]
        self.n_cells[step] = len(cells)
        if cells.empty:
            before = ", ".join(
                f"{n} after {name!r}" for name, n in list(self.n_cells.items())[:-1]
            )
            raise ValueError(
                f"No cell is left after {step!r} ({before}). Compare n_counts, n_genes and the "
                "mitochondrial share of these data with cell_filter."
            )
        return cells


@dataclass(frozen=True)
class Genes:
    """Genes to choose from.

    Attributes
    ----------
    names
        Their names, unique.
    kept
        Genes that are kept in any case, shape ``(n_genes,)``.
    """

    names: pd.Index
    kept: np.ndarray

    @classmethod
    def named(cls, names: Sequence[str], kept: Sequence[str] = ()) -> Genes:
        """Make names unique, as ``AnnData.var_names_make_unique`` does.

        Parameters
        ----------
        names
            Names, some of them perhaps of several genes.
        kept
            Names of genes that are kept in any case.
        """
        with warnings.catch_warnings():
            # The warning asks for what follows.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            table = ad.AnnData(var=pd.DataFrame(index=pd.Index(names, dtype=str)))
        table.var_names_make_unique()
        return cls(table.var_names, np.isin(table.var_names, list(kept)))


def mitochondrial(genes: pd.Index, protocol: Protocol) -> np.ndarray:
    """Mitochondrial genes by name, shape ``(n_genes,)``.

    The published preparation took every name that holds ``"MT-"``, which others do as well.
    """
    names = genes.astype(str)
    found = names.str.startswith("MT-") if protocol == "corrected" else names.str.contains("MT-")
    return np.asarray(found, dtype=bool)


def measure(raw: RawCells, is_mitochondrial: np.ndarray) -> pd.DataFrame:
    """Measure counts, detected genes and mitochondrial share of each cell.

    Parameters
    ----------
    raw
        Raw cells.
    is_mitochondrial
        Mitochondrial genes, shape ``(n_genes,)``.

    Returns
    -------
    ``raw.obs`` with ``n_counts``, ``n_genes``, ``mt_frac`` (NaN without counts), and ``row``, the
    position of the cell in ``raw``.
    """
    n = len(raw.obs)
    totals, detected, share = np.zeros(n), np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    for rows, block in raw.blocks():
        totals[rows] = _totals(block)
        detected[rows] = np.diff(block.indptr)
        of_mitochondria = block @ is_mitochondrial.astype(np.float64)
        np.divide(of_mitochondria, totals[rows], out=of_mitochondria, where=totals[rows] > 0)
        share[rows] = np.where(totals[rows] > 0, of_mitochondria, np.nan)
    return raw.obs.assign(n_counts=totals, n_genes=detected, mt_frac=share, row=np.arange(n))


def filter_cells(cells: pd.DataFrame, cell_filter: CellFilter, steps: Steps) -> pd.DataFrame:
    """Keep cells of good quality: counts, then genes, then mitochondrial share."""
    keep = steps.keep
    cells = keep(cells, cells["n_counts"] > cell_filter.min_counts, "counts")
    cells = keep(cells, cells["n_genes"] > cell_filter.min_genes, "genes")
    if cell_filter.max_mitochondrial == 1:
        # Nothing is asked of a cell, not even that it has counts.
        return keep(cells, np.ones(len(cells), dtype=bool), "mitochondrial")
    return keep(cells, cells["mt_frac"] < cell_filter.max_mitochondrial, "mitochondrial")


def subsample(cells: pd.DataFrame, fraction: float, steps: Steps) -> pd.DataFrame:
    """Draw a share of the cells as ``scanpy.pp.subsample`` with seed 0 does, in drawn order.

    Raises
    ------
    ValueError
        If ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must be in (0, 1]; 1 keeps all cells.")
    if fraction == 1:
        return cells
    n = int(fraction * len(cells))
    drawn = check_random_state(_SUBSAMPLE_SEED).choice(len(cells), size=n, replace=False)
    cells = cells.iloc[drawn]
    return steps.keep(cells, np.ones(n, dtype=bool), "subsample")


def check_treatments(cells: pd.DataFrame, recipe: Recipe) -> None:
    """Refuse cells without the control or without the context.

    Raises
    ------
    ValueError
        With the labels that there are.
    """
    found = sorted(cells["treatment"].unique())
    if recipe.control not in found:
        raise ValueError(unknown_name_message("control", recipe.control, found, "no treatment"))
    if not recipe.in_context(cells).any():
        values = {column: sorted(set(cells[column].astype(str))) for column in recipe.context}
        raise ValueError(
            f"No cell is of {recipe.context}, from which treatments are held out. Found: {values}."
        )


def prepare(
    raw: RawCells,
    cells: pd.DataFrame,
    genes: Genes,
    recipe: Recipe,
    steps: Steps,
) -> ad.AnnData:
    """Choose genes and held-out treatments, normalise and split.

    Parameters
    ----------
    raw
        Raw cells.
    cells
        Cells that passed the filters, with ``row``, ``n_counts``, ``treatment``, ``dose``, the
        strata and ``assigned`` (whether all strata are known).
    genes
        The genes to choose from.
    recipe
        What is particular to the screen and the call.
    steps
        Counts of cells so far; goes on here.
    """
    check_treatments(cells, recipe)
    make = _published if recipe.protocol == "published" else _corrected
    return make(raw, cells, genes, recipe, steps)


def _published(
    raw: RawCells, cells: pd.DataFrame, genes: Genes, recipe: Recipe, steps: Steps
) -> ad.AnnData:
    """Let all cells choose scale, genes and held-out treatments, and split the others."""
    target = _median_counts(cells)
    chosen = _choose_genes(raw, cells, target, genes, recipe)
    cells = steps.keep(cells, cells["assigned"], "assigned")
    adata = _gather(raw, cells, target, genes, chosen)
    effects = _rank(largest_differences(adata.X, cells["treatment"]), recipe)
    held_out = _held_out(cells, effects, recipe)
    ood = _ood_cells(cells, held_out, recipe)
    train, _ = train_test_split(
        np.flatnonzero(~ood), test_size=_TEST_SHARE, random_state=_SPLIT_SEED
    )
    adata.obs = _describe(cells, train, ood)
    adata.uns["preparation"] = _record(adata, target, effects, held_out, recipe, steps)
    return adata


def _corrected(
    raw: RawCells, cells: pd.DataFrame, genes: Genes, recipe: Recipe, steps: Steps
) -> ad.AnnData:
    """Split first, and learn from training cells that cannot be held out."""
    cells = steps.keep(cells, cells["assigned"], "assigned")
    train = _training_cells(cells, recipe.split_by)
    inside = recipe.in_context(cells)
    learn = np.zeros(len(cells), dtype=bool)
    learn[train] = True
    learn &= ~(inside & recipe.treated(cells))
    outside = cells.loc[learn & ~inside]
    if outside.empty:
        raise ValueError(
            f"No training cell is outside {recipe.context}, from which treatments are held out. "
            "Prepare more strata, or a split_by with smaller groups."
        )
    target = _median_counts(cells.loc[learn])
    chosen = _choose_genes(raw, cells.loc[learn], target, genes, recipe)
    adata = _gather(raw, cells, target, genes, chosen)
    stratum = outside.groupby(list(recipe.strata), observed=True).ngroup().to_numpy()
    effects = unbiased_effects(
        adata.X[learn & ~inside], outside["treatment"], stratum, recipe.control
    )
    n_cells = effects.index.map(outside["treatment"].value_counts())
    effects = _rank(effects[n_cells >= _MIN_CELLS], recipe)
    held_out = _held_out(cells, effects, recipe)
    adata.obs = _describe(cells, train, _ood_cells(cells, held_out, recipe))
    adata.uns["preparation"] = _record(adata, target, effects, held_out, recipe, steps)
    return adata


# -- genes ----------------------------------------------------------------------------------------


def _choose_genes(
    raw: RawCells, cells: pd.DataFrame, target: float, genes: Genes, recipe: Recipe
) -> np.ndarray:
    """Highly variable genes among some cells, and those that are kept in any case."""
    keep = np.zeros(len(raw.obs), dtype=bool)
    keep[cells["row"]] = True
    mean = variance = np.zeros(len(genes.names))
    n_seen: Any = 0
    for _, block in raw.blocks(keep):
        values = _normalise(block, _totals(block), target).astype(np.float64)
        if recipe.flavor == "cell_ranger":
            values.data = np.log1p(values.data)
        mean, variance, n_seen = incr_mean_variance_axis(
            values, axis=0, last_mean=mean, last_var=variance, last_n=n_seen
        )
    n = len(cells)
    variable = highly_variable(mean, variance * n / max(n - 1, 1), recipe.n_genes, recipe.flavor)
    return variable | genes.kept


def _totals(block: sparse.csr_matrix) -> np.ndarray:
    """Add up the counts of each cell, shape ``(n_cells,)``."""
    return block.sum(axis=1, dtype=np.float64).A1


def _normalise(counts: sparse.csr_matrix, totals: np.ndarray, target: float) -> sparse.csr_matrix:
    """Scale each cell to a total of ``target``, as ``scanpy.pp.normalize_total`` does."""
    scale = np.divide(target, totals, out=np.ones_like(totals), where=totals > 0)
    scaled = counts.copy()
    scaled.data = (counts.data * np.repeat(scale, np.diff(counts.indptr))).astype(np.float32)
    return scaled


def highly_variable(
    mean: np.ndarray, variance: np.ndarray, n_genes: int, flavor: Flavor
) -> np.ndarray:
    """Genes whose dispersion is largest among genes of like mean.

    The rule of ``scanpy.pp.highly_variable_genes``, which needs all cells × genes in memory three
    times over; this needs two moments of each gene, which are summed up block by block.

    Parameters
    ----------
    mean, variance
        Moments of each gene, shape ``(n_genes,)``: of normalised counts for ``"seurat"``, of their
        log1p for ``"cell_ranger"``; the variance with n − 1.
    n_genes
        How many.
    flavor
        ``"seurat"``: z-scores of log-dispersions in 20 bins of equal width of log-means;
        ``"cell_ranger"``: distances from the median in units of the median absolute deviation, in
        bins of 5 % of the genes.

    Returns
    -------
    Chosen genes, shape ``(n_genes,)``; more than asked for where dispersions tie, fewer where
    fewer vary. Of two genes alone in a bin, Seurat's flavour gives every pair ±0.707, so that
    between pairs rounding decides, as it does in scanpy.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    bins: Any = _SEURAT_BINS
    if flavor == "seurat":
        dispersion = np.log(np.where(dispersion == 0, np.nan, dispersion))
        mean = np.log1p(mean)
    else:
        # Equal quantiles, as of genes without counts, bound one bin.
        bins = np.unique(np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf])
    grouped = pd.Series(dispersion).groupby(pd.cut(mean, bins), observed=True)
    if flavor == "seurat":
        center, spread = grouped.transform("mean"), grouped.transform("std")
        # A gene alone in its bin counts as one standard deviation above.
        alone = grouped.transform("count") == 1
        center, spread = center.mask(alone, 0), spread.mask(alone, center)
    else:
        center = grouped.transform("median")
        spread = grouped.transform(lambda d: median_abs_deviation(d, scale="normal"))
    with np.errstate(divide="ignore", invalid="ignore"):
        score = ((dispersion - center) / spread).to_numpy()
    known = np.sort(score[~np.isnan(score)])
    if len(known) == 0:
        return np.zeros(len(score), dtype=bool)
    cutoff = known[-min(n_genes, len(known))]
    return np.nan_to_num(score, nan=-np.inf) >= cutoff


def _gather(
    raw: RawCells, cells: pd.DataFrame, target: float, genes: Genes, chosen: np.ndarray
) -> ad.AnnData:
    """Read counts of some cells and genes, in the order of ``cells``, and log-normalise them."""
    keep = np.zeros(len(raw.obs), dtype=bool)
    keep[cells["row"]] = True
    columns = np.flatnonzero(chosen)
    counts = sparse.vstack([block[:, columns] for _, block in raw.blocks(keep)], format="csr")
    in_file_order = np.argsort(np.argsort(cells["row"].to_numpy()))
    counts = counts[in_file_order]
    counts.sort_indices()
    log = _normalise(counts, cells["n_counts"].to_numpy(dtype=float), target)
    np.log1p(log.data, out=log.data)
    var = raw.var.iloc[columns].set_axis(genes.names[columns])
    return ad.AnnData(log, var=var, layers={"counts": counts})


# -- treatments that are held out -----------------------------------------------------------------


def _median_counts(cells: pd.DataFrame) -> float:
    """Median of the counts of cells that have any."""
    counts = cells["n_counts"]
    return float(counts[counts > 0].median())


def _indicator(codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """Membership of cells in groups, shape ``(n_groups, n_cells)``."""
    return sparse.csr_matrix(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(n, len(codes))
    )


def largest_differences(values: sparse.csr_matrix, treatment: pd.Series) -> pd.Series:
    """L2 norm of a treatment's mean minus the mean of all other cells, by name.

    It grows with the noise of a mean, so that treatments of few cells rank high.

    Parameters
    ----------
    values
        Log-normalised expression, shape ``(n_cells, n_genes)``.
    treatment
        Treatment of each cell.
    """
    codes, names = pd.factorize(treatment, sort=True)
    size = np.bincount(codes)[:, None]
    sums = (_indicator(codes, len(names)) @ values).toarray()
    rest = np.maximum(len(codes) - size, 1)
    difference = sums / size - (sums.sum(axis=0) - sums) / rest
    return pd.Series(np.linalg.norm(difference, axis=1), index=pd.Index(names.astype(str)))


def unbiased_effects(
    values: sparse.csr_matrix, treatment: pd.Series, stratum: np.ndarray, control: str
) -> pd.Series:
    r"""Squared L2 norm of a treatment's effect without the part that is noise, by name.

    In a stratum, :math:`\lVert \bar y_t - \bar y_0 \rVert^2 - \sum_g (s_{tg}^2 / n_t + s_{0g}^2 /
    n_0)` has the squared norm of the true difference as its mean, whatever the numbers of cells.
    Strata are weighed by :math:`n_t n_0 / (n_t + n_0)`; those with fewer than two cells of either
    do not count.

    Parameters
    ----------
    values
        Log-normalised expression, shape ``(n_cells, n_genes)``.
    treatment, stratum
        Treatment and code of the stratum of each cell.
    control
        Name of the control.
    """
    codes, names = pd.factorize(treatment, sort=True)
    n_strata = int(stratum.max()) + 1
    pair = codes * n_strata + stratum
    members = _indicator(pair, len(names) * n_strata)
    size = np.bincount(pair, minlength=members.shape[0]).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (members @ values).toarray() / size[:, None]
        square = (members @ values.multiply(values)).toarray()
        noise = (square.sum(axis=1) - size * (mean**2).sum(axis=1)) / (size - 1) / size
    mean, size, noise = (
        x.reshape(len(names), n_strata, *x.shape[1:]) for x in (mean, size, noise)
    )
    zero = list(names).index(control)
    effects = {}
    for t, name in enumerate(names):
        usable = (size[t] >= 2) & (size[zero] >= 2)
        if t == zero or not usable.any():
            continue
        gap = ((mean[t] - mean[zero])[usable] ** 2).sum(axis=1)
        weight = (size[t] * size[zero] / (size[t] + size[zero]))[usable]
        effects[str(name)] = np.average(gap - (noise[t] + noise[zero])[usable], weights=weight)
    return pd.Series(effects, dtype=float)


def _rank(effects: pd.Series, recipe: Recipe) -> pd.Series:
    """Effects of treatments, the largest first."""
    treated = effects.drop(recipe.control, errors="ignore")
    return treated.sort_values(ascending=False, kind="stable")


def _held_out(cells: pd.DataFrame, effects: pd.Series, recipe: Recipe) -> tuple[str, ...]:
    """Names that were given, or those of the largest effects.

    Raises
    ------
    ValueError
        If a name is no treatment, there are too few treatments, or one has no cells to hold out,
        or no others.
    """
    names = recipe.ood_treatments
    if names is None:
        names = tuple(effects.index[: recipe.n_ood])
        if len(names) < recipe.n_ood:
            raise ValueError(
                f"n_ood={recipe.n_ood}, but {len(names)} treatments can be held out. Ask for "
                "fewer, or name them (ood_treatments)."
            )
    known = sorted(set(cells["treatment"]) - {recipe.control})
    inside = recipe.in_context(cells)
    within, elsewhere = (set(cells["treatment"][rows]) for rows in (inside, ~inside))
    for name in names:
        if name not in known:
            raise ValueError(unknown_name_message("ood_treatments", name, known, "no treatment"))
        if name not in elsewhere:
            raise ValueError(
                f"Treatment {name!r} would be held out of {recipe.context}, but has no cell "
                "elsewhere to learn from. Prepare more strata, or name others (ood_treatments)."
            )
        if name not in within:
            raise ValueError(
                f"Treatment {name!r} has no cell in {recipe.context} that could be held out. Name "
                "others (ood_treatments)."
            )
    return names


def _ood_cells(cells: pd.DataFrame, held_out: tuple[str, ...], recipe: Recipe) -> np.ndarray:
    """Cells of held-out treatments in the held-out context, shape ``(n_cells,)``."""
    return recipe.in_context(cells) & cells["treatment"].isin(held_out).to_numpy()


# -- splits ---------------------------------------------------------------------------------------


def _training_cells(cells: pd.DataFrame, split_by: str | None) -> np.ndarray:
    """Positions of training cells: 80 % of the cells, or of the groups of cells."""
    rows = np.arange(len(cells))
    if split_by is None:
        train, _ = train_test_split(rows, test_size=_TEST_SHARE, random_state=_SPLIT_SEED)
        return train
    missing = cells[split_by].isna()
    if missing.any():
        raise ValueError(
            f"{missing.sum()} cells have no {split_by} (first: {missing.idxmax()!r}); every cell "
            "belongs to a group that is split as a whole."
        )
    groups = cells[split_by].astype(str)
    if groups.nunique() < 2:
        raise ValueError(
            f"All cells have {split_by}={groups.iloc[0]!r}; split_by needs at least two groups."
        )
    splitter = GroupShuffleSplit(1, test_size=_TEST_SHARE, random_state=_SPLIT_SEED)
    return next(splitter.split(rows, groups=groups))[0]


def _describe(cells: pd.DataFrame, train: np.ndarray, ood: np.ndarray) -> pd.DataFrame:
    """Columns of cells with their split: training, test, or held-out treatment."""
    split = np.full(len(cells), "test", dtype=object)
    split[train] = "train"
    split[ood] = "ood"
    obs = cells.drop(columns=["row", "assigned"]).assign(split=split)
    texts = [c for c in obs if not pd.api.types.is_numeric_dtype(obs[c])]
    return obs.astype(dict.fromkeys(texts, "category"))


def _record(
    adata: ad.AnnData,
    target: float,
    effects: pd.Series,
    held_out: tuple[str, ...],
    recipe: Recipe,
    steps: Steps,
) -> dict[str, Any]:
    """Describe what was done."""
    table = pd.DataFrame({"treatment": effects.index.astype(str), "effect": effects.to_numpy()})
    return {
        "screen": recipe.screen,
        "protocol": recipe.protocol,
        "control": recipe.control,
        "strata": list(recipe.strata),
        "n_cells": dict(steps.n_cells),
        "n_split": {str(k): int(n) for k, n in adata.obs["split"].value_counts().items()},
        "n_genes": adata.n_vars,
        "target_sum": target,
        "flavor": recipe.flavor,
        "ood_context": dict(recipe.context),
        "ood_treatments": list(held_out),
        "effects": table.set_axis(table.index.astype(str)),
        **({} if recipe.split_by is None else {"split_by": recipe.split_by}),
    }


def names_of(treatments: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of treatments as a tuple without doubles.

    Raises
    ------
    ValueError
        If one text is given for a list, or no name.
    """
    if treatments is None:
        return None
    if isinstance(treatments, str):
        raise ValueError(
            f"ood_treatments={treatments!r} is one name; give a list: [{treatments!r}]."
        )
    names = tuple(dict.fromkeys(map(str, treatments)))
    if not names:
        raise ValueError("ood_treatments is empty; name one, or leave it out to hold out by rank.")
    return names
