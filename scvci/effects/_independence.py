"""Permutation tests of whether the latent state is independent of treatment, Z ⟂ T | X."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from ._intervals import adjust

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Name of the rows that hold the joint test of all strata.
_JOINT = "all"
#: Name of the test of the spread of posteriors.
_SPREAD = "spread"
_N_FOLDS = 5
#: Numbers held at a time while the statistics of relabelled cells are computed.
_BLOCK = 2_000_000
_LEVEL = 0.05
#: AUC above which a leak is called mild, and strong.
_MILD, _STRONG = 0.55, 0.65
#: Share of latent dispersion between treatments, beyond chance, up to which a leak is a trace.
_TRACE = 0.01
_ADVICE = (
    " What can help: the default objective, if a weight was lowered; registering what differs "
    "between the arms apart from treatment (donors, batches, finer cell types); more cells."
)
_TINY = 1e-12


@dataclass(frozen=True)
class _Stratum:
    """Statistics of one stratum, ``(1 + n_permutations, n_draws)``: those observed come first."""

    name: str
    n_cells: int = 0
    n_treatments: int = 0
    note: str = ""
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def conditional_independence_test(
    latent: np.ndarray,
    treatment: np.ndarray,
    stratum: np.ndarray | None = None,
    *,
    std: np.ndarray | None = None,
    n_draws: int = 5,
    n_permutations: int = 999,
    min_cells: int = 10,
    max_cells: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Test whether the latent state is independent of treatment within strata, Z ⟂ T | X.

    Two statistics are compared with their distribution when treatments are shuffled among the
    cells *of each stratum*, which is exact whatever the distribution of the latent state:

    - ``auc``: how well a linear discriminant tells the treatments of held-out cells from their
      latent states (ridge regression of the labels on z and z², cross-validated). The area
      under the ROC curve of each treatment against the rest, averaged over treatments: 0.5 is
      chance, 1 is perfect. Squares let it see differences of variance.
    - ``energy``: the share of the cells' dispersion that lies between treatments (Rizzo and
      Székely, 2010),

      .. math::

          1 - \frac{\sum_t \frac{1}{2 n_t} \sum_{i, j \in t} \|z_i - z_j\|}
                   {\frac{1}{2 n} \sum_{i, j} \|z_i - z_j\|}

      which is zero in expectation, up to :math:`(k - 1) / (n - 1)` for k treatments, only if all
      distributions are the same, in whatever respect.

    The joint test averages the statistic over strata, weighted by cells (``auc``) or dispersion
    (``energy``); all strata are shuffled together. Differences of treatment *between*
    strata do not count. Each latent is scaled to unit variance within its stratum, so
    units of the latent state do not matter.

    What a model makes independent of treatment is the latent state. Of a cell only its posterior
    is known, whose mean is another thing: means of cells that tell little about themselves lie
    closer together, and where treatment changes depth their variances differ without any fault.
    With the posteriors' standard deviations ``std``, draws are tested, ``n_draws`` of each cell
    one by one; the mean of their statistics is returned, and their p-values, which depend on each
    other, are combined by Cauchy's distribution (Liu and Xie, 2020). A third test, ``spread``,
    tells whether the standard deviations themselves differ between treatments (the statistic of
    ``auc``).

    Parameters
    ----------
    latent
        Latent states or means of their posteriors, shape ``(n_cells, n_latent)``.
    treatment
        Label of each cell's treatment, shape ``(n_cells,)``.
    stratum
        Label of each cell's stratum, shape ``(n_cells,)``; ``None`` for a single stratum.
    std
        Standard deviations of normal posteriors, shape ``(n_cells, n_latent)``; ``None`` if
        latent states are known.
    n_draws
        Draws of each cell's posterior.
    n_permutations
        Number of relabellings P, at least 39; the smallest possible p-value is 1 / (P + 1), and
        with many strata q-values need more.
    min_cells
        Fewest cells of a treatment for it to be used in a stratum's test.
    max_cells
        Most cells of a stratum that are used, drawn as evenly over treatments as they allow.
        Treatments with the fewest cells are left out where ``min_cells`` of each would be more.
    seed
        Seed of the choice of cells, the folds and the relabellings.

    Returns
    -------
    One row for each test and stratum, the joint test (stratum ``"all"``) first; with one stratum
    only that row. Columns: ``test``, ``stratum``, ``statistic``; ``null_mean``, ``null_sd``,
    ``null_q05``, ``null_q95`` of the relabelled cells' statistic; ``p_value``
    :math:`(1 + \#\{\text{relabelled} \ge \text{observed}\}) / (1 + P)`; ``q_value``, adjusted over
    the strata of a test (Benjamini and Hochberg), and equal to the p-value for the joint test;
    ``n_cells`` and ``n_treatments`` used; ``note``: what was left out, and why a stratum could not
    be tested. ``attrs["verdict"]`` says in words what follows.

    Raises
    ------
    ValueError
        If shapes differ, latent states are not finite, all cells have one treatment, or a number
        is out of range.

    Notes
    -----
    With many cells, even a leak that is too small to matter is significant. Judge its size by the
    AUC.
    """
    labels = np.asarray(treatment).astype(str)
    groups = np.full(len(labels), _JOINT) if stratum is None else np.asarray(stratum).astype(str)
    latent = np.asarray(latent, dtype=float)
    _check_cells(latent, labels, groups)
    _check_numbers(n_permutations, min_cells, max_cells)
    names = np.unique(groups)
    generators = np.random.default_rng(seed).spawn(len(names))
    spread = None if std is None else _check_std(std, latent, n_draws)
    strata = []
    for name, rng in zip(names, generators, strict=True):
        rows = np.flatnonzero(groups == name)
        # In an order of their own, so that the order of the cells does not matter.
        rows = rows[np.lexsort(latent[rows].T)]
        kept, note = _choose_cells(labels[rows], min_cells, max_cells, rng)
        cells = rows[kept]
        if len(cells) == 0:
            strata.append(_Stratum(str(name), note=note))
        else:
            sets = {"state": latent[cells][None]}
            if spread is not None:
                noise = rng.normal(size=(n_draws, *latent[cells].shape))
                sets = {"state": latent[cells] + spread[cells] * noise}
                sets[_SPREAD] = np.log(spread[cells] + _TINY)[None]
            strata.append(_test_stratum(str(name), sets, labels[cells], note, n_permutations, rng))
    tests = ["auc", "energy"] if spread is None else ["auc", "energy", _SPREAD]
    table = pd.concat([_tabulate(test, strata) for test in tests], ignore_index=True)
    table.attrs["verdict"] = _verdict(table)
    return table


# -- cells ----------------------------------------------------------------------------------------


def _check_cells(latent: np.ndarray, treatment: np.ndarray, stratum: np.ndarray) -> None:
    if latent.ndim != 2 or not len(latent) == len(treatment) == len(stratum):
        raise ValueError(
            f"Latent states of shape {latent.shape}, {len(treatment)} treatments and "
            f"{len(stratum)} strata do not belong to the same cells."
        )
    if not np.isfinite(latent).all():
        raise ValueError("Latent states must be finite; some are NaN or infinite.")
    found = np.unique(treatment)
    if len(found) < 2:
        what = (
            f"all cells have the treatment {str(found[0])!r}"
            if len(found)
            else "there are no cells"
        )
        raise ValueError(
            f"Independence of treatment cannot be tested: {what}. Pass cells of at least two "
            "treatments."
        )


def _check_std(std: np.ndarray, latent: np.ndarray, n_draws: int) -> np.ndarray:
    std = np.asarray(std, dtype=float)
    if std.shape != latent.shape or not np.isfinite(std).all() or (std < 0).any():
        raise ValueError(
            f"std of shape {std.shape} must be finite, not negative and as latent: {latent.shape}."
        )
    if n_draws < 1:
        raise ValueError(f"n_draws={n_draws} must be at least 1.")
    return std


def _check_numbers(n_permutations: int, min_cells: int, max_cells: int) -> None:
    if (n_permutations + 1) * _LEVEL / 2 < 1:
        raise ValueError(
            f"n_permutations={n_permutations} is too few: p-values could not be smaller than "
            f"{1 / (n_permutations + 1):.2g}. Take at least {round(2 / _LEVEL) - 1}."
        )
    if min_cells < 2:
        raise ValueError(f"min_cells={min_cells} must be at least 2.")
    if max_cells < 2 * min_cells:
        raise ValueError(
            f"max_cells={max_cells} must be at least twice min_cells={min_cells}, or no two "
            "treatments could be compared."
        )


def _choose_cells(
    labels: np.ndarray, min_cells: int, max_cells: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Pick positions of a stratum's cells, and say what was left out; none if it is untestable."""
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    enough = counts >= min_cells
    if enough.sum() < 2:
        which = f"only {str(names[enough][0])!r} has" if enough.any() else "no treatment has"
        return np.array([], dtype=np.int64), f"not tested: {which} {min_cells} or more cells"
    by_size = np.argsort(-counts, kind="stable")
    kept = by_size[: max_cells // min_cells]
    kept = kept[enough[kept]]
    # The largest number of cells of each treatment at which the total stays within bounds
    grid = np.arange(max_cells + 1)
    bound = int(np.flatnonzero(np.minimum(counts[kept, None], grid).sum(axis=0) <= max_cells)[-1])
    positions = [
        rng.choice(np.flatnonzero(codes == k), min(counts[k], bound), replace=False)
        for k in np.sort(kept)
    ]
    notes = []
    few = [f"{name} ({n})" for name, n in zip(names[~enough], counts[~enough], strict=True)]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        notes.append(f"left out, fewer than {min_cells} cells: {', '.join(few[:5])}{more}")
    if len(kept) < enough.sum():
        notes.append(f"{enough.sum() - len(kept)} treatments left out to keep within max_cells")
    return np.sort(np.concatenate(positions)), "; ".join(notes)


# -- statistics -----------------------------------------------------------------------------------


def _test_stratum(
    name: str,
    sets: dict[str, np.ndarray],
    labels: np.ndarray,
    note: str,
    n_permutations: int,
    rng: np.random.Generator,
) -> _Stratum:
    """Compute the statistics of the cells and of their relabellings for each draw.

    ``sets`` are latent states ``(n_draws, n_cells, n_latent)``, and perhaps posteriors' spread.
    One statistic is linear and the other quadratic in the labels: matrices are computed once.
    """
    z = [_standardised(draw) for draw in sets["state"]]
    smoothers = {"auc": [_discriminant(draw, rng) for draw in z]}
    if _SPREAD in sets:
        smoothers[_SPREAD] = [_discriminant(_standardised(sets[_SPREAD][0]), rng)]
    distances = [squareform(pdist(draw)) for draw in z]
    total = np.array([d.sum() / (2 * len(d)) for d in distances])
    names, codes = np.unique(labels, return_inverse=True)
    draws: dict[str, list[np.ndarray]] = {test: [] for test in ("auc", "energy", *smoothers)}
    for block in _relabelled(codes, len(names), n_permutations, rng):
        for test, found in smoothers.items():
            draws[test].append(np.stack([_mean_auc(s, block) for s in found], axis=-1))
        within = np.stack([_dispersion_within(d, block) for d in distances], axis=-1)
        draws["energy"].append(np.where(total > _TINY, 1 - within / np.maximum(total, _TINY), 0.0))
    weights = dict.fromkeys(smoothers, float(len(labels)))
    return _Stratum(
        name=name,
        n_cells=len(labels),
        n_treatments=len(names),
        note=note,
        draws={test: np.concatenate(parts) for test, parts in draws.items()},
        weights=weights | {"energy": max(float(total.mean()), _TINY)},
    )


def _discriminant(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _held_out_smoother(_standardised(np.hstack([z, z**2])), rng)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns with mean zero and variance one; constant ones become zero."""
    centred = values - values.mean(axis=0)
    scale = centred.std(axis=0)
    constant = scale <= 1e-9 * (1 + np.abs(values).max(axis=0))
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def _relabelled(
    codes: np.ndarray, n_treatments: int, n_permutations: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield blocks of one-hot labels ``(n_relabellings, n_treatments, n_cells)``.

    The first relabelling is the observed labels.
    """
    n = len(codes)
    orders = np.tile(np.arange(n), (n_permutations + 1, 1))
    orders[1:] = rng.permuted(orders[1:], axis=1)
    n_blocks = -(-orders.size * n_treatments // _BLOCK)
    for part in np.array_split(codes[orders], min(n_blocks, n_permutations + 1)):
        yield (part[:, None] == np.arange(n_treatments)[:, None]).astype(float)


def _held_out_smoother(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    r"""Matrix H that turns labels into the held-out scores of a linear discriminant.

    .. math::

        H_{k, -k} = X_k (X_{-k}^\top X_{-k} + \lambda I)^{-1} X_{-k}^\top

    for fold k, with features centred by the training folds. Least squares on one-hot labels gives
    Fisher's discriminant. Folds are drawn without regard to labels, so the scores of relabelled
    cells are distributed as those of exchangeable ones.
    """
    n, n_features = features.shape
    fold = rng.permutation(np.arange(n) % _N_FOLDS)
    smoother = np.zeros((n, n))
    # One pseudo-cell of weight per feature: negligible with many cells, a brake with few.
    penalty = n_features * np.eye(n_features)
    for k in range(_N_FOLDS):
        held, train = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        center = features[train].mean(axis=0)
        x = features[train] - center
        weights = np.linalg.solve(x.T @ x + penalty, x.T)
        smoother[np.ix_(held, train)] = (features[held] - center) @ weights
    return smoother


def _mean_auc(smoother: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each treatment against the rest, averaged over treatments."""
    n = labels.shape[-1]
    scores = (labels.reshape(-1, n) @ smoother.T).reshape(labels.shape)
    # Ties are ties whatever the rounding of a sum.
    ranks = rankdata(np.round(scores, 12), axis=-1)
    size = labels[0].sum(axis=-1)
    above = (ranks * labels).sum(axis=-1) - size * (size + 1) / 2
    return (above / (size * (n - size))).mean(axis=-1)


def _dispersion_within(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum over treatments of half a treatment's cells times their mean distance."""
    n = labels.shape[-1]
    to_group = (labels.reshape(-1, n) @ distances).reshape(labels.shape)
    pairs = (to_group * labels).sum(axis=-1)
    return (pairs / (2 * labels[0].sum(axis=-1))).sum(axis=-1)


# -- table ----------------------------------------------------------------------------------------


def _tabulate(test: str, strata: list[_Stratum]) -> pd.DataFrame:
    """Rows of one test: the joint one, then the strata."""
    tested = [s for s in strata if s.draws]
    notes = f"{len(strata) - len(tested)} strata not tested" if len(tested) < len(strata) else ""
    joint = _Stratum(_JOINT, note=notes)
    if tested:
        draws = np.stack([s.draws[test] for s in tested])
        joint = _Stratum(
            name=_JOINT,
            n_cells=sum(s.n_cells for s in tested),
            n_treatments=max(s.n_treatments for s in tested),
            note=strata[0].note if len(strata) == 1 else notes,
            draws={test: np.average(draws, axis=0, weights=[s.weights[test] for s in tested])},
        )
    elif len(strata) == 1:
        joint = _Stratum(_JOINT, note=strata[0].note)
    single = len(strata) == 1
    table = pd.DataFrame([_row(test, s) for s in ([joint] if single else [joint, *strata])])
    table["q_value"] = table["p_value"]
    table.loc[1:, "q_value"] = adjust(table.loc[1:, "p_value"].to_numpy(dtype=float))
    order = ["p_value", "q_value", "n_cells", "n_treatments", "note"]
    return table[[c for c in table.columns if c not in order] + order]


def _row(test: str, stratum: _Stratum) -> dict[str, object]:
    values = stratum.draws.get(test, np.full((2, 1), np.nan))
    observed, null = values[0].mean(), values[1:]
    mean_null = null.mean(axis=1)
    q05, q95 = np.quantile(mean_null, [0.05, 0.95])
    # Relabellings that leave the labels as they are count as ties whatever the rounding.
    p_values = (1 + (null >= values[0] - _TINY).sum(axis=0)) / len(values)
    return {
        "test": test,
        "stratum": stratum.name,
        "statistic": observed,
        "null_mean": mean_null.mean(),
        "null_sd": mean_null.std(),
        "null_q05": q05,
        "null_q95": q95,
        "p_value": _combined(p_values, len(null)) if stratum.draws else np.nan,
        "n_cells": stratum.n_cells,
        "n_treatments": stratum.n_treatments,
        "note": stratum.note,
    }


def _combined(p_values: np.ndarray, n_permutations: int) -> float:
    """Cauchy's combination; a p-value of 1 is taken for what it rounds from."""
    if len(p_values) == 1:
        return float(p_values[0])
    highest = 1 - 0.5 / (n_permutations + 1)
    mean = np.tan((0.5 - np.minimum(p_values, highest)) * np.pi).mean()
    return float(round(0.5 - np.arctan(mean) / np.pi, 12))


def _verdict(table: pd.DataFrame) -> str:
    """Say in words what the tests show."""
    joint = table.drop_duplicates("test").set_index("test")
    auc, energy = joint.loc["auc"], joint.loc["energy"]
    if np.isnan(auc["statistic"]):
        return "Not tested: no stratum has two treatments with enough cells."
    numbers = (
        f"AUC {auc['statistic']:.3f} where relabelled cells have {auc['null_mean']:.3f}, "
        f"p = {auc['p_value']:.2g}; energy test p = {energy['p_value']:.2g}; "
        f"{auc['n_cells']} cells"
    )
    strata = table[table["test"] == "auc"].iloc[1:]
    found = strata[strata["q_value"] < _LEVEL].sort_values("statistic", ascending=False)
    # Two joint tests share the level.
    width = ""
    if _SPREAD in joint.index and joint.loc[_SPREAD, "p_value"] <= _LEVEL:
        width = (
            " Cells of some treatments tell less about themselves than others, by depth for "
            f"instance; that is no leak (AUC of the spread {joint.loc[_SPREAD, 'statistic']:.2f})."
        )
    if min(auc["p_value"], energy["p_value"]) > _LEVEL / 2 and found.empty:
        return (
            f"No sign of the treatment in the latent state within strata ({numbers}). A "
            f"dependence that takes more cells to be seen is not excluded.{width}"
        )
    top = [f"{s} ({a:.2f})" for s, a in found[["stratum", "statistic"]].head(3).to_numpy()]
    where = f" Clearest in: {', '.join(top)}." if top else ""
    meaning = _meaning(
        max(auc["statistic"], *found["statistic"], 0), energy["statistic"] - energy["null_mean"]
    )
    return f"{meaning} ({numbers}).{where}{_ADVICE}{width}"


def _meaning(auc: float, dispersion: float) -> str:
    """Say what a leak of that size does to counterfactuals."""
    if auc < _MILD and dispersion > _TRACE:
        return (
            "The latent state depends on the treatment in a way that the classifier, on average "
            "over treatments, hardly sees (one of them, or how latents go together): "
            "counterfactuals may keep part of the effect of the treatment a cell really had"
        )
    if auc < _MILD:
        return (
            "The latent state holds a trace of the treatment: significant, but a classifier "
            "hardly does better than chance, and hardly any dispersion lies between treatments"
        )
    if auc < _STRONG:
        return (
            "The latent state holds some of the treatment: part of an effect may stay with a cell "
            "when its treatment is exchanged, so effects may be understated"
        )
    return (
        "The latent state holds the treatment: counterfactuals may keep part of the effect of the "
        "treatment a cell really had; do not rely on them"
    )
