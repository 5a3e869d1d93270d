"""Fresh models with the settings of another, trained on other cells."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from scvci.data import _constants as keys
from scvci.data._validation import get_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from scvci.model import VCI


def plain_copy(model: VCI, rows: np.ndarray | slice = slice(None)) -> AnnData:
    """Copy registered expression, into ``X``, and registered columns; nothing of the model.

    Parameters
    ----------
    model
        A model that holds its cells.
    rows
        Which of them.
    """
    setup, adata = model.setup_args, model.adata
    treatment_key = setup["treatment_key"]
    columns = [
        treatment_key,
        setup["dose_key"],
        *(setup["categorical_covariate_keys"] or []),
        *(setup["continuous_covariate_keys"] or []),
        setup["size_factor_key"],
        setup["batch_key"],
    ]
    obs = adata.obs[[key for key in columns if key in adata.obs]]
    members = {} if treatment_key in obs else {treatment_key: adata.obsm[treatment_key]}
    return AnnData(
        get_matrix(adata, setup["layer"])[rows],
        obs=obs.iloc[rows].copy(),
        var=pd.DataFrame(index=adata.var_names),
        obsm={key: table.iloc[rows] for key, table in members.items()},
    )


def fresh_params(model: VCI) -> dict[str, Any]:
    """Return the settings of a model, with its seed."""
    return {**model.init_params_["non_kwargs"], "seed": model.seed_}


@contextmanager
def refitted(
    model: VCI, train: AnnData, train_kwargs: dict[str, Any], same_names: bool = False
) -> Iterator[VCI]:
    """Fresh model with another's settings and seed, trained on a plain copy of cells.

    Parameters
    ----------
    model
        Whose settings to take.
    train
        A plain copy of cells.
    train_kwargs
        Passed to :meth:`scvci.model.VCI.train`.
    same_names
        Whether it has the treatments and strata of ``model``, also those that ``train`` lacks;
        otherwise it has those of ``train``.
    """
    model_class = type(model)
    options = {"enable_progress_bar": False, "enable_model_summary": False, **train_kwargs}
    setup = {**model.setup_args, "layer": None}
    features = model.registry["field_registries"][keys.TREATMENT_KEY]["state_registry"]
    if features["embeddings"] is not None:
        table = features["embeddings"]
        setup["treatment_embeddings"] = pd.DataFrame(table["values"], index=table["names"])
    if same_names:
        setup["source_registry"] = model.registry
    with warnings.catch_warnings():
        # Held-out pairs have no cells; that is the point.
        warnings.filterwarnings("ignore", message=r".*\(treatment, stratum\) pairs have no")
        model_class.setup_anndata(train, **setup)
    fitted = model_class(train, **fresh_params(model))
    try:
        fitted.train(**options)
        yield fitted
    finally:
        # scvi-tools keeps the cells of every registered AnnData alive otherwise.
        fitted.deregister_manager(train)


def check_refit(train_kwargs: dict[str, Any]) -> None:
    """Refuse settings of training that name rows of other cells.

    Parameters
    ----------
    train_kwargs
        Settings of training.
    """
    if "datasplitter_kwargs" in train_kwargs:
        raise ValueError(
            "datasplitter_kwargs names rows of this model's cells, but each fold trains on "
            "others. Use train_size and validation_size."
        )
