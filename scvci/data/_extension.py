"""Registry of a trained model, extended by what new data have beyond it."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _constants as keys
from ._cells import gene_columns
from ._conditions import read_conditions
from ._fields import CovariateField
from ._labels import encode
from ._treatments import Treatments

if TYPE_CHECKING:
    from anndata import AnnData


def align_genes(adata: AnnData, genes: np.ndarray) -> AnnData:
    """Genes of a model in its order: the AnnData itself, or a copy where it has more or others.

    Parameters
    ----------
    adata
        The cells.
    genes
        Genes of the model.

    Raises
    ------
    ValueError
        If genes are missing; they are listed.
    """
    columns = gene_columns(adata.var_names, genes)
    return adata if columns is None else adata[:, columns].copy()


def extend_registry(registry: dict[str, Any], adata: AnnData) -> dict[str, Any]:
    """Append new arms, covariate levels, strata and batches to those of the registry.

    What the registry has keeps its code.

    Parameters
    ----------
    registry
        Registry of a trained model; it is not changed.
    adata
        New cells.

    Raises
    ------
    KeyError, ValueError
        If a column is missing or cannot be read, or a treatment exceeds its largest dose.
    """
    extended = deepcopy(registry)
    states = {k: v["state_registry"] for k, v in extended["field_registries"].items()}
    state = states[keys.TREATMENT_KEY]
    treatments = Treatments.from_state(state)
    _, conditions = read_conditions(adata, treatments.keys)
    state.update(treatments.extended(conditions).to_state())
    for key in (keys.COVARIATES_KEY, keys.BATCH_KEY):
        if key in states:
            _extend_covariates(states[key], adata, key)
    return extended


def _extend_covariates(state: dict[str, Any], adata: AnnData, key: str) -> None:
    field = CovariateField(state["keys"], state["edges"], registry_key=key)
    columns = []
    for (codes, texts), levels in zip(field.labels(adata), state["levels"], strict=True):
        present = {texts[code] for code in np.unique(codes)}
        levels.extend(sorted(present - set(levels)))
        columns.append(encode(texts, levels)[codes])
    found = np.unique(np.stack(columns, axis=1), axis=0).tolist()
    known = {tuple(row) for row in state["strata"]}
    state["strata"].extend(row for row in found if tuple(row) not in known)
