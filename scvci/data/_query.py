"""Registry of a trained model, extended by what new data have beyond it."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _constants as keys
from ._conditions import read_arms
from ._fields import CovariateField
from ._reader import gene_columns
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
    _extend_treatments(states[keys.TREATMENT_KEY], adata)
    for key in (keys.COVARIATES_KEY, keys.BATCH_KEY):
        if key in states:
            _extend_covariates(states[key], adata, key)
    return extended


def _extend_treatments(state: dict[str, Any], adata: AnnData) -> None:
    treatments = Treatments.from_state(state)
    _, conditions = read_arms(adata, treatments.keys)
    new = sorted(set(conditions) - set(treatments.names))
    for name in new:
        for member, dose in conditions[name].items():
            if member in treatments.members:
                largest = treatments.max_dose[treatments.members.index(member)]
                if dose > largest:
                    raise ValueError(
                        f"Treatment {name!r} is beyond {largest:g}, the largest dose of "
                        f"{member!r} in the reference. Strengths are relative to it; leave these "
                        "cells out or train a model on all data."
                    )
    added = {m for name in new for m in conditions[name]} - set(treatments.members)
    members = [*treatments.members, *sorted(added)]
    known = np.pad(treatments.doses, ((0, 0), (0, len(members) - len(treatments.members))))
    doses = [[conditions[name].get(m, 0.0) for m in members] for name in new]
    state["names"] = [*treatments.names, *new]
    if state["doses"] is not None:
        state["members"] = members
        state["doses"] = [*known.tolist(), *doses]


def _extend_covariates(state: dict[str, Any], adata: AnnData, key: str) -> None:
    field = CovariateField(state["keys"], state.get("edges"), registry_key=key)
    field.validate_field(adata)
    columns = []
    for labels, levels in zip(field._labels(adata), state["levels"], strict=True):
        levels.extend(sorted(set(labels) - set(levels)))
        columns.append([levels.index(label) for label in labels])
    found = np.unique(np.array(columns).T, axis=0).tolist()
    state["strata"].extend(row for row in found if row not in state["strata"])
