"""Registry fields for the treatment and for the covariates that make the strata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import rich.table
from scvi.data.fields import BaseAnnDataField

from scvci._names import unknown_name_message

from ._conditions import TreatmentKeys, encode_arms, read_arms
from ._constants import BATCH_KEY, COVARIATES_KEY, TREATMENT_KEY
from ._names import as_labels, encode, missing_key_message
from ._treatments import Treatments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class TreatmentField(BaseAnnDataField):
    """Treatment of each cell.

    The state in the registry is plain data: ``names`` of the arms in sorted order with the control
    first, the ``control``, the ``original_key``, ``separator`` and ``dose_key``, the ``members``
    with their ``doses`` in each arm (``None`` where every arm is a treatment of its own), and the
    ``embeddings`` of treatments.

    Parameters
    ----------
    treatment_keys
        Where and how treatments are written.
    embeddings
        Names and features of treatments, measured or not.
    """

    STATE_NAMES: ClassVar[str] = "names"
    STATE_CONTROL: ClassVar[str] = "control"

    def __init__(
        self,
        treatment_keys: TreatmentKeys,
        embeddings: tuple[list[str], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.treatment_keys = treatment_keys
        self.embeddings = embeddings

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
        """Check that every cell has a treatment that can be read."""
        read_arms(adata, self.treatment_keys)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Collect the arms of new training data."""
        super().register_field(adata)
        keys = self.treatment_keys
        names, conditions = read_arms(adata, keys)
        if keys.control not in conditions:
            raise ValueError(
                unknown_name_message(
                    "control",
                    keys.control,
                    sorted(conditions),
                    f"not a level of obs[{keys.key!r}]",
                )
                + " Pass control= with the label of the untreated cells."
            )
        if len(conditions) < 2:
            raise ValueError(
                f"obs[{keys.key!r}] has the single level {keys.control!r}. Without a second "
                "treatment there is no effect to learn."
            )
        treatments = Treatments.from_conditions(conditions, keys)
        adata.obs[self.attr_key] = encode_arms(names, treatments.names)
        structured = keys.separator is not None or keys.dose_key is not None
        return {
            self.STATE_NAMES: treatments.names,
            self.STATE_CONTROL: keys.control,
            "original_key": keys.key,
            "separator": keys.separator,
            "dose_key": keys.dose_key,
            "members": treatments.members,
            "doses": treatments.doses.tolist() if structured else None,
            "embeddings": None
            if self.embeddings is None
            else {"names": self.embeddings[0], "values": self.embeddings[1]},
        }

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data by the arms of the training data."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        adata_target.obs[self.attr_key] = encode_treatments(adata_target, state_registry)
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count the arms, control included."""
        return {"n_treatment": len(state_registry[self.STATE_NAMES])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of arms and their codes."""
        table = rich.table.Table(title="treatment State Registry")
        for column in ("Source Location", "Treatment", "Code"):
            table.add_column(column)
        for code, name in enumerate(state_registry[self.STATE_NAMES]):
            source = f"adata.obs[{state_registry['original_key']!r}]" if code == 0 else ""
            table.add_row(source, name + (" (control)" if code == 0 else ""), str(code))
        return table


class CovariateField(BaseAnnDataField):
    """Categorical covariates of ``obs``; their observed combinations are the strata.

    Without covariates there is one covariate with one level, and so one stratum. Numbers can be
    cut into bins at their quantiles, and then are covariates like others.

    Parameters
    ----------
    covariate_keys
        Columns of ``obs``.
    edges
        Inner edges of the bins of columns of numbers.
    n_bins
        Number of bins where edges are to be the quantiles of new data.
    registry_key
        Key in the registry, also the name of the tensor of codes.
    """

    SINGLE_LEVEL: ClassVar[str] = "all"

    def __init__(
        self,
        covariate_keys: Sequence[str] | None,
        edges: dict[str, list[float]] | None = None,
        n_bins: int = 1,
        registry_key: str = COVARIATES_KEY,
    ) -> None:
        super().__init__()
        self.covariate_keys = list(covariate_keys or [])
        self.edges = dict(edges or {})
        self.n_bins = n_bins
        self._registry_key = registry_key

    @property
    def registry_key(self) -> str:
        """Key in the registry."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of AnnData that holds the codes."""
        return "obsm"

    @property
    def attr_key(self) -> str:
        """Key that holds the codes."""
        return f"_scvi_{self._registry_key}"

    @property
    def is_empty(self) -> bool:
        """The field always exists, with a single stratum when there are no covariates."""
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Check that the columns exist and have a label for each cell."""
        is_batch = self._registry_key == BATCH_KEY
        argument = "batch_key" if is_batch else "categorical_covariate_keys"
        for key in self.covariate_keys:
            if key not in adata.obs:
                raise KeyError(missing_key_message(adata, key, argument))
            as_labels(adata.obs[key], key)

    def _labels(self, adata: AnnData) -> list[np.ndarray]:
        columns = [as_labels(adata.obs[key], key) for key in self.covariate_keys]
        for key, edges in self.edges.items():
            bins = np.digitize(adata.obs[key].to_numpy(dtype=float), np.asarray(edges))
            columns.append(np.array([f"{key} q{i + 1}" for i in bins], dtype=object))
        return columns or [np.full(adata.n_obs, self.SINGLE_LEVEL, dtype=object)]

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Collect levels and observed combinations."""
        super().register_field(adata)
        for key in self.edges:
            values = adata.obs[key].to_numpy(dtype=float)
            inner = np.quantile(values, np.arange(1, self.n_bins) / self.n_bins)
            self.edges[key] = np.unique(inner).tolist()
        labels = self._labels(adata)
        levels = [sorted(set(column)) for column in labels]
        codes = np.stack([encode(c, lv) for c, lv in zip(labels, levels, strict=True)], axis=1)
        adata.obsm[self.attr_key] = codes
        return {
            "keys": self.covariate_keys,
            "edges": self.edges,
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
        """Count covariates and strata, or batches."""
        if self._registry_key == BATCH_KEY:
            return {"n_batch": len(state_registry["levels"][0])}
        return {
            "n_covariates": len(state_registry["keys"]),
            "n_strata": len(state_registry["strata"]),
        }

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of covariates and their levels."""
        table = rich.table.Table(title="covariates State Registry")
        for column in ("Source Location", "Levels"):
            table.add_column(column)
        keys = [*state_registry["keys"], *state_registry.get("edges", {})]
        for key, levels in zip(keys, state_registry["levels"], strict=False):
            table.add_row(f"adata.obs[{key!r}]", ", ".join(levels))
        return table


def encode_treatments(adata: AnnData, state: dict) -> np.ndarray:
    """Look up the codes of the treatments of cells.

    Parameters
    ----------
    adata
        Cells with the registered treatment.
    state
        State registry of the treatment field.

    Returns
    -------
    Indices among the model's arms, shape ``(n_cells,)``.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If an arm is unknown; nothing is replaced by the control.
    """
    names, _ = read_arms(adata, Treatments.from_state(state).keys)
    return encode_arms(names, state[TreatmentField.STATE_NAMES])


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
    field = CovariateField(state["keys"], state.get("edges"))
    field.validate_field(adata)
    columns = []
    for i, labels in enumerate(field._labels(adata)):
        codes = encode(labels, state["levels"][i])
        if (codes < 0).any():
            name = str(labels[int(np.argmax(codes < 0))])
            kind = f"Level of covariate {[*state['keys'], *field.edges][i]!r}"
            raise ValueError(
                unknown_name_message(kind, name, state["levels"][i])
                + " The model has seen no cell of that level; leave these cells out, carry the "
                "model over with load_query_data, or train on data that has them."
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
