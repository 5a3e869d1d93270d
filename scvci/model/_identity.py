"""What a training is told from others by, so that none goes on with the cells of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvci.train._resume import digest

from ._saving import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from scvci.data._splitter import CellTable, CounterfactualSplitter

    from ._model import ModelBase

#: Values of this many training cells are compared, spread over all of them.
_N_COMPARED = 1000
#: Arguments that change what is shown or where, and no number.
_DISPLAY = {
    "callbacks",
    "default_root_dir",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "log_save_dir",
    "logger",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
}


def identify(
    model: ModelBase, splitter: CounterfactualSplitter, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Identify a training that is about to start.

    Parameters
    ----------
    model
        The model.
    splitter
        Its cells.
    arguments
        Arguments of the training.

    Returns
    -------
    Numbers, texts and digests by name.
    """
    cells = splitter.sampler.cells
    parts = {"training": splitter.train_idx, "validation": splitter.val_idx}
    same: dict[str, Any] = {
        "class": type(model).__name__,
        "seed": model.seed_,
        "number of earlier trainings": model.n_trainings_,
        **_flat("", model.init_params_["non_kwargs"], skip={"adata", "registry", "seed"}),
        "variables": _digest_of_names(model._variable_names()),
        "cells": _digest_of_names(cells.names),
        **{f"{part} cells": _digest_of_names(cells.names[rows]) for part, rows in parts.items()},
        **_values_of(cells, splitter.train_idx),
        "batch_size": splitter.batch_size,
        **_flat("", arguments, skip=_DISPLAY),
    }
    if model.is_trained_:
        # Those of a first training follow from the seed and the cells.
        state = model.module.state_dict().values()
        same["weights before training"] = digest(*(_bytes_of(tensor) for tensor in state))
    return same


def _flat(prefix: str, values: Mapping[str, Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Bring settings into plain form; those in dictionaries get a dot, objects are left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in skip:
            continue
        if isinstance(value, dict):
            found |= _flat(f"{prefix}{name}.", value)
            continue
        try:
            plain = to_plain(value)
        except TypeError:
            continue
        if value is not None:
            found[f"{prefix}{name}"] = (
                plain if isinstance(plain, str | int | float) else str(plain)
            )
    return found


def _digest_of_names(names: Any) -> str:
    return digest(*(str(name).encode() for name in names))


def _values_of(cells: CellTable, rows: np.ndarray) -> dict[str, str]:
    """Expression, labels and covariates as the networks see them."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _N_COMPARED).astype(int))]
    tensors = cells.tensors(chosen)
    return {f"values of {name}": digest(_bytes_of(tensor)) for name, tensor in tensors.items()}


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
