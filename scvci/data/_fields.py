"""Registry fields for the treatment and for the covariates that make the strata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import rich.table
from scvi.data.fields import BaseAnnDataField

from ._constants import COVARIATES_KEY, TREATMENT_KEY
from ._names import as_labels, encode, unknown_name_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class TreatmentField(BaseAnnDataField):
    """Treatment column of ``obs``.

    The state in the registry is plain data: ``names`` of the treatments in sorted order with the
    control first, the ``control``, the ``original_key``, and ``separator``, ``doses`` and
    ``embeddings`` (``None``: a label is one treatment at one dose, without features).

    Parameters
    ----------
    treatment_key
        Column of ``obs``.
    control
        Label of the control.
    """

    STATE_NAMES: ClassVar[str] = "names"
    STATE_CONTROL: ClassVar[str] = "control"

    def __init__(self, treatment_key: str, control: str) -> None:
        super().__init__()
        self.treatment_key = treatment_key
        self.control = str(control)

    @property
    def registry_key(self) -> str:
        """Key in the registry."""
        return TREATMENT_KEY

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData that holds the codes."""
        return "obs"

    @property
    def attr_key(self) -> str:
        """Column that holds the codes."""
        return f"_scvi_{TREATMENT_KEY}"

    @property
    def is_empty(self) -> bool:
        """A model without treatment does not exist."""
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Check that the column exists and has a label for each cell."""
        if self.treatment_key not in adata.obs:
            raise KeyError(missing_key_message(adata, self.treatment_key, "treatment_key"))
        as_labels(adata.obs[self.treatment_key], self.treatment_key)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Collect the treatments of new training data."""
        super().register_field(adata)
        labels = as_labels(adata.obs[self.treatment_key], self.treatment_key)
        names = sorted(set(labels))
        if self.control not in names:
            raise ValueError(
                unknown_name_message("control", self.control, names).replace(
                    "unknown to the model", f"not a level of obs[{self.treatment_key!r}]"
                )
                + " Pass control= with the label of the untreated cells."
            )
        if len(names) < 2:
            raise ValueError(
                f"obs[{self.treatment_key!r}] has the single level {names[0]!r}. Without a second "
                "treatment there is no effect to learn."
            )
        names.remove(self.control)
        names.insert(0, self.control)
        adata.obs[self.attr_key] = encode(labels, names)
        return {
            self.STATE_NAMES: names,
            self.STATE_CONTROL: self.control,
            "original_key": self.treatment_key,
            "separator": None,
            "doses": None,
            "embeddings": None,
        }

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data by the treatments of the training data."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        self.validate_field(adata_target)
        labels = as_labels(adata_target.obs[self.treatment_key], self.treatment_key)
        adata_target.obs[self.attr_key] = encode_treatments(labels, state_registry)
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count the treatments, control included."""
        return {"n_treatment": len(state_registry[self.STATE_NAMES])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of treatments and their codes."""
        table = rich.table.Table(title="treatment State Registry")
        for column in ("Source Location", "Treatment", "Code"):
            table.add_column(column)
        for code, name in enumerate(state_registry[self.STATE_NAMES]):
            source = f"adata.obs[{state_registry['original_key']!r}]" if code == 0 else ""
            table.add_row(source, name + (" (control)" if code == 0 else ""), str(code))
        return table


class CovariateField(BaseAnnDataField):
    """Categorical covariates of ``obs``; their observed combinations are the strata.

    Without covariates there is one covariate with one level, and so one stratum.

    Parameters
    ----------
    covariate_keys
        Columns of ``obs``.
    """

    SINGLE_LEVEL: ClassVar[str] = "all"

    def __init__(self, covariate_keys: Sequence[str] | None) -> None:
        super().__init__()
        self.covariate_keys = list(covariate_keys or [])

    @property
    def registry_key(self) -> str:
        """Key in the registry."""
        return COVARIATES_KEY

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData that holds the codes."""
        return "obsm"

    @property
    def attr_key(self) -> str:
        """Key that holds the codes."""
        return f"_scvi_{COVARIATES_KEY}"

    @property
    def is_empty(self) -> bool:
        """The field always exists, with a single stratum when there are no covariates."""
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Check that the columns exist and have a label for each cell."""
        for key in self.covariate_keys:
            if key not in adata.obs:
                raise KeyError(missing_key_message(adata, key, "categorical_covariate_keys"))
            as_labels(adata.obs[key], key)

    def _labels(self, adata: AnnData) -> list[np.ndarray]:
        if not self.covariate_keys:
            return [np.full(adata.n_obs, self.SINGLE_LEVEL, dtype=object)]
        return [as_labels(adata.obs[key], key) for key in self.covariate_keys]

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Collect levels and observed combinations."""
        super().register_field(adata)
        labels = self._labels(adata)
        levels = [sorted(set(column)) for column in labels]
        codes = np.stack([encode(c, lv) for c, lv in zip(labels, levels, strict=True)], axis=1)
        adata.obsm[self.attr_key] = codes
        return {
            "keys": self.covariate_keys,
            "levels": levels,
            "strata": np.unique(codes, axis=0).tolist(),
        }

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data by the levels of the training data."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        self.validate_field(adata_target)
        adata_target.obsm[self.attr_key] = encode_covariates(adata_target, state_registry)
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count covariates and strata."""
        return {
            "n_covariates": len(state_registry["keys"]),
            "n_strata": len(state_registry["strata"]),
        }

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of covariates and their levels."""
        table = rich.table.Table(title="covariates State Registry")
        for column in ("Source Location", "Levels"):
            table.add_column(column)
        for key, levels in zip(state_registry["keys"], state_registry["levels"], strict=False):
            table.add_row(f"adata.obs[{key!r}]", ", ".join(levels))
        return table


def encode_treatments(labels: np.ndarray, state: dict) -> np.ndarray:
    """Look up the codes of treatment labels.

    Parameters
    ----------
    labels
        Treatment of each cell, shape ``(n_cells,)``.
    state
        State registry of the treatment field.

    Returns
    -------
    Indices among the model's treatments, shape ``(n_cells,)``.

    Raises
    ------
    ValueError
        If a label is unknown; nothing is replaced by the control.
    """
    codes = encode(labels, state[TreatmentField.STATE_NAMES])
    if (codes < 0).any():
        name = str(labels[int(np.argmax(codes < 0))])
        raise ValueError(
            unknown_name_message("Treatment", name, state[TreatmentField.STATE_NAMES])
            + " The model can only answer for treatments that it was trained on; train it on data "
            "with this one, or correct the label."
        )
    return codes


def encode_covariates(adata: AnnData, state: dict) -> np.ndarray:
    """Look up the codes of the covariates of cells.

    Parameters
    ----------
    adata
        Cells with the registered columns in ``obs``.
    state
        State registry of the covariate field.

    Returns
    -------
    Indices among the levels of each covariate, shape ``(n_cells, n_covariates)``.

    Raises
    ------
    KeyError
        If a covariate's column is missing.
    ValueError
        If a level is unknown.
    """
    field = CovariateField(state["keys"])
    field.validate_field(adata)
    columns = []
    for i, labels in enumerate(field._labels(adata)):
        codes = encode(labels, state["levels"][i])
        if (codes < 0).any():
            name = str(labels[int(np.argmax(codes < 0))])
            kind = f"Level of covariate {state['keys'][i]!r}"
            raise ValueError(
                unknown_name_message(kind, name, state["levels"][i])
                + " The model has seen no cell of that level; leave these cells out or train on "
                "data that has them."
            )
        columns.append(codes)
    return np.stack(columns, axis=1)


def stratum_codes(codes: np.ndarray, state: dict) -> np.ndarray:
    """Find each row of covariate codes among the strata.

    Parameters
    ----------
    codes
        Covariate codes, shape ``(n_cells, n_covariates)``.
    state
        State registry of the covariate field.

    Returns
    -------
    Index of the stratum, shape ``(n_cells,)``; −1 for a combination that training did not see.
    """
    shape = tuple(len(levels) for levels in state["levels"])
    strata = np.ravel_multi_index(np.asarray(state["strata"], dtype=np.int64).T, shape)
    flat = np.ravel_multi_index(np.asarray(codes, dtype=np.int64).T, shape)
    return pd.Index(strata).get_indexer(pd.Index(flat)).astype(np.int64)


def stratum_names(state: dict) -> list[str]:
    """Name the strata, as ``"CD4 T | donor 1"``.

    Parameters
    ----------
    state
        State registry of the covariate field.
    """
    return [
        " | ".join(levels[code] for levels, code in zip(state["levels"], row, strict=True))
        for row in state["strata"]
    ]


def missing_key_message(adata: AnnData, key: str, argument: str) -> str:
    """Say which column was looked for and which there are.

    Parameters
    ----------
    adata
        Where it was looked for.
    key
        The column.
    argument
        Argument that named it.
    """
    found = ", ".join(repr(str(c)) for c in adata.obs.columns if not str(c).startswith("_scvi"))
    return (
        f"obs has no column {key!r} (argument {argument}). Columns found: {found or 'none'}. "
        f"Pass the right one as {argument}=."
    )
