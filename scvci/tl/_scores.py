"""Predicted effects on single cells, as one number each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scvci._names import unknown_name_message
from scvci._numbers import batch_size_or_default
from scvci.data._requests import contrast_names
from scvci.data._results import safe_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from scvci.data import Cells
    from scvci.model import VCI

_TINY = 1e-12


def effect_scores(
    model: VCI,
    treatment: str,
    *,
    genes: Sequence[str] | Mapping[str, float] | pd.Series | None = None,
    reference: str | None = None,
    adata: AnnData | None = None,
    indices: Any = None,
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
    model
        A trained model.
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
        If a treatment or gene is unknown, weights are all zero, treatment and reference are the
        same, or the column holds something else.

    Notes
    -----
    Scores are predictions. :func:`heterogeneity_test` says whether their differences within a
    stratum come true.
    """
    model.require_trained("score its cells")
    targets, base = contrast_names(model.arms, treatment, reference)
    if len(targets) != 1:
        raise ValueError(f"Scores are those of one treatment; got {targets}.")
    [target] = targets
    weights = _gene_weights(genes, model.genes.tolist())
    cells = model.cells(adata, indices)
    cells = cells.take(np.unique(cells.rows))
    key = key_added or safe_name(f"effect_{target}")
    results = model.results(cells.adata)
    results.check("obs", key, "effect score", target)
    size = batch_size_or_default(batch_size)
    if weights is None:
        mean = np.zeros(len(model.genes))
        for _, effects in _effects(model, cells, target, base, size):
            mean += effects.sum(axis=0) / len(cells.rows)
        weights = mean / max(float((mean**2).sum()), _TINY)
    scores = np.full(cells.n_obs, np.nan)
    for rows, effects in _effects(model, cells, target, base, size):
        scores[rows] = effects @ weights
    [condition] = model.conditions(target)
    record = model.describe(
        **model.describe_arm(condition, model.arm(condition)),
        reference=base,
        scale="multiples of the mean effect" if genes is None else "log1p expression",
        kind="effect score",
    )
    results.write("obs", key, scores, record)
    return key


def _gene_weights(
    genes: Sequence[str] | Mapping[str, float] | pd.Series | None, known: list[str]
) -> np.ndarray | None:
    """Weights of the model's genes, of absolute sum one; ``None`` without names."""
    if genes is None:
        return None
    if isinstance(genes, str):
        genes = [genes]
    named = dict(
        genes.items() if isinstance(genes, Mapping | pd.Series) else dict.fromkeys(genes, 1.0)
    )
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
    model: VCI, cells: Cells, treatment: str, reference: str, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and differences of log1p expression (``"normal"``: of expression) of batches."""
    size = float(model.module.reference_size) if model.is_count else None
    arms = [model.arm(model.conditions(name)[0]) for name in (treatment, reference)]
    for rows, tensors in cells.batches(batch_size):
        batch = model.on_device(tensors)
        z = model.latent_states(batch)
        means = [model.decode(batch, arm, z, library_size=size).mean[0] for arm in arms]
        if model.is_count:
            means = [torch.log1p(mean) for mean in means]
        yield rows, (means[0] - means[1]).double().cpu().numpy()
