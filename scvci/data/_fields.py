"""Registry fields for the treatment and for the covariates that make the strata."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import rich.table
from scvi.data.fields import BaseAnnDataField

from scvci._names import unknown_name_message

from ._conditions import CONTROL, Condition, TreatmentKeys, read_conditions
from ._constants import BATCH_KEY, COVARIATES_KEY, TREATMENT_KEY
from ._labels import encode, missing_key_message, read_labels, warn_about_missing_text
from ._treatments import Treatments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: State of the registry and code of each cell.
type Prepared = tuple[dict[str, Any], np.ndarray]


class CodesField(BaseAnnDataField):
    """A field whose cells have codes, computed before anything is written.

    :meth:`prepare` reads the labels once; registering the same AnnData afterwards writes what it
    found.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: tuple[AnnData, Prepared] | None = None

    @abstractmethod
    def read(self, adata: AnnData) -> Prepared:
        """State and codes of new training data; nothing is written."""

    @abstractmethod
    def encode(self, adata: AnnData, state: dict[str, Any]) -> np.ndarray:
        """Codes of other cells by the state of the training data."""

    @property
    def is_empty(self) -> bool:
        """A model without treatment or strata does not exist."""
        return False

    @property
    def attr_key(self) -> str:
        """Key that holds the codes."""
        return f"_scvi_{self.registry_key}"

    def prepare(self, adata: AnnData) -> Prepared:
        """Read labels, once for each AnnData.

        Parameters
        ----------
        adata
            The cells.
        """
        if self._prepared is None or self._prepared[0] is not adata:
            self._prepared = (adata, self.read(adata))
        return self._prepared[1]

    def validate_field(self, adata: AnnData) -> None:
        """Check that there are labels; what they say is checked where they are read."""

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Write codes and return the state of new training data."""
        state, codes = self.prepare(adata)
        self._prepared = None
        getattr(adata, self.attr_name)[self.attr_key] = codes
        return state

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data by the state of the training data."""
        codes = self.encode(adata_target, state_registry)
        getattr(adata_target, self.attr_name)[self.attr_key] = codes
        return dict(state_registry)


class TreatmentField(CodesField):
    """Treatment of each cell.

    The state in the registry is that of :class:`~scvci.data.Treatments` and the ``embeddings`` of
    treatments, all plain data.

    Parameters
    ----------
    treatment_keys
        Where and how treatments are written.
    embeddings
        Names and features of treatments, measured or not.
    """

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

    def read(self, adata: AnnData) -> Prepared:
        """Collect the arms of new training data."""
        keys = self.treatment_keys
        codes, conditions = read_conditions(adata, keys)
        where = f"obs[{keys.key!r}]" if keys.key in adata.obs else f"obsm[{keys.key!r}]"
        if keys.key in adata.obs:
            warn_about_missing_text(*read_labels(adata.obs[keys.key], keys.key), keys.key)
            _check_controls(adata, keys)
        if CONTROL not in conditions:
            raise ValueError(f"{where} has no untreated cell, a row of zeros.")
        if len(conditions) < 2:
            raise ValueError(
                f"{where} has the single label {keys.control!r}. Without a second treatment there "
                "is no effect to learn."
            )
        treatments = Treatments.from_conditions(conditions, keys)
        state = treatments.to_state()
        state["embeddings"] = None
        if self.embeddings is not None:
            names, values = self.embeddings
            state["embeddings"] = {"names": list(names), "values": values.tolist()}
        return state, np.array([treatments.index[c] for c in conditions], dtype=np.int64)[codes]

    def encode(self, adata: AnnData, state: dict[str, Any]) -> np.ndarray:
        """Look up the arms of other cells."""
        treatments = Treatments.from_state(state)
        codes, unknown = encode_treatments(adata, treatments)
        check_treatments(codes, unknown, treatments)
        return codes

    def get_summary_stats(self, state_registry: dict) -> dict[str, int]:
        """Count the arms, control included."""
        return {"n_treatment": len(state_registry["names"])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """Table of arms and their codes."""
        table = rich.table.Table(title="treatment State Registry")
        for column in ("Source Location", "Treatment", "Code"):
            table.add_column(column)
        for code, name in enumerate(state_registry["names"]):
            source = f"adata.obs[{state_registry['original_key']!r}]" if code == 0 else ""
            table.add_row(source, name + (" (control)" if code == 0 else ""), str(code))
        return table


def _check_controls(adata: AnnData, keys: TreatmentKeys) -> None:
    _, labels = read_labels(adata.obs[keys.key], keys.key)
    for control in keys.controls:
        if control not in labels:
            raise ValueError(
                unknown_name_message(
                    "control", control, sorted(labels), f"not a label in obs[{keys.key!r}]"
                )
                + " Pass control= with the label (or a list of the labels) of the untreated cells."
            )


def encode_treatments(
    adata: AnnData, treatments: Treatments, rows: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, Condition]]:
    """Look up the arm of each cell.

    Parameters
    ----------
    adata
        Cells with the registered treatment.
    treatments
        The model's arms.
    rows
        Cells that need a treatment that can be read; ``None`` for all.

    Returns
    -------
    Index of each cell's arm, shape ``(n_cells,)``: −1 without a label, and −2, −3, … for arms that
    the model does not have, which are returned by these codes.

    Raises
    ------
    KeyError, ValueError
        If a column is missing or a label cannot be read.
    """
    codes, conditions = read_conditions(adata, treatments.keys, rows)
    unknown: dict[int, Condition] = {}
    lookup = np.full(len(conditions) + 1, -1, dtype=np.int64)
    for i, condition in enumerate(conditions):
        arm = treatments.find(condition)
        if arm is None:
            arm = -2 - len(unknown)
            unknown[arm] = condition
        lookup[i] = arm
    return lookup[codes], unknown


def check_treatments(
    codes: np.ndarray, unknown: dict[int, Condition], treatments: Treatments
) -> None:
    """Refuse cells under treatments that the model does not have.

    Parameters
    ----------
    codes
        Codes of the cells in question, see :func:`encode_treatments`.
    unknown
        Conditions that the model does not have.
    treatments
        The model's arms.

    Raises
    ------
    ValueError
        With the unknown treatment; nothing is replaced by the control.
    """
    if not (codes < 0).any():
        return
    code = int(codes[int(np.argmax(codes < 0))])
    if code == -1:
        raise ValueError("Some cells have no treatment label; drop these cells or label them.")
    raise ValueError(
        unknown_name_message("Treatment", treatments.name(unknown[code]), treatments.names)
        + " The model can only read cells under treatments that it was trained on; carry it "
        "over with load_query_data, train it on data with this one, or correct the label."
    )


class CovariateField(CodesField):
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
    def argument(self) -> str:
        """Argument of ``setup_anndata`` that names the columns."""
        return "batch_key" if self._registry_key == BATCH_KEY else "categorical_covariate_keys"

    def labels(
        self, adata: AnnData, rows: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, list[str]]]:
        """Codes and texts of each covariate, see :func:`read_labels`.

        Parameters
        ----------
        adata
            The cells.
        rows
            Cells that need a label; ``None`` for all.
        """
        columns = []
        what = "batch" if self.argument == "batch_key" else "stratum"
        for key in self.covariate_keys:
            if key not in adata.obs:
                cure = (
                    f"Cells need it to be placed in a {what}: add obs[{key!r}], or set up with "
                    f"{self.argument}=."
                )
                raise KeyError(missing_key_message(adata, key, self.argument, cure))
            columns.append(read_labels(adata.obs[key], key, rows))
        for key, edges in self.edges.items():
            if key not in adata.obs:
                cure = f"Cells need it to be placed in a stratum: add obs[{key!r}]."
                raise KeyError(missing_key_message(adata, key, "continuous_covariate_keys", cure))
            bins = np.digitize(adata.obs[key].to_numpy(dtype=float), np.asarray(edges))
            columns.append((bins, [f"{key} q{i + 1}" for i in range(len(edges) + 1)]))
        return columns or [(np.zeros(adata.n_obs, dtype=np.int64), [self.SINGLE_LEVEL])]

    def read(self, adata: AnnData) -> Prepared:
        """Collect levels and observed combinations."""
        for key in self.edges:
            values = adata.obs[key].to_numpy(dtype=float)
            inner = np.quantile(values, np.arange(1, self.n_bins) / self.n_bins)
            self.edges[key] = np.unique(inner).tolist()
        columns, levels = [], []
        for codes, texts in self.labels(adata):
            # Categories without a cell are no levels.
            present = sorted(texts[i] for i in np.unique(codes))
            levels.append(present)
            columns.append(encode(texts, present)[codes])
        for (codes, texts), key in zip(self.labels(adata), self.covariate_keys, strict=False):
            warn_about_missing_text(codes, texts, key)
        codes = np.stack(columns, axis=1)
        state = {
            "keys": self.covariate_keys,
            "edges": self.edges,
            "levels": levels,
            "strata": np.unique(codes, axis=0).tolist(),
        }
        return state, codes

    def encode(self, adata: AnnData, state: dict[str, Any]) -> np.ndarray:
        """Look up the levels of other cells."""
        return encode_covariates(adata, state)

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
        keys = [*state_registry["keys"], *state_registry["edges"]]
        for key, levels in zip(keys, state_registry["levels"], strict=False):
            table.add_row(f"adata.obs[{key!r}]", ", ".join(levels))
        return table


def encode_covariates(
    adata: AnnData,
    state: dict[str, Any],
    rows: np.ndarray | None = None,
    registry_key: str = COVARIATES_KEY,
) -> np.ndarray:
    """Look up the levels of the covariates of cells.

    Parameters
    ----------
    adata
        Cells with the registered columns in ``obs``.
    state
        State registry of the covariate field.
    rows
        Cells that need known levels; ``None`` for all.
    registry_key
        Key of the field.

    Returns
    -------
    Indices among the levels of each covariate, shape ``(n_cells, n_covariates)``; −1 for unknown
    levels of other cells.

    Raises
    ------
    KeyError
        If a covariate's column is missing.
    ValueError
        If a level is unknown.
    """
    field = CovariateField(state["keys"], state["edges"], registry_key=registry_key)
    columns = []
    for i, (codes, texts) in enumerate(field.labels(adata, rows)):
        found = np.append(encode(texts, state["levels"][i]), -1)[codes]
        judged = found if rows is None else found[rows]
        if (judged < 0).any():
            row = int(np.argmax(judged < 0))
            name = texts[codes[row if rows is None else rows[row]]]
            kind = f"Level of covariate {[*state['keys'], *field.edges][i]!r}"
            raise ValueError(
                unknown_name_message(kind, name, state["levels"][i])
                + " The model has seen no cell of that level; leave these cells out, carry the "
                "model over with load_query_data, or train on data that has them."
            )
        columns.append(found)
    return np.stack(columns, axis=1)


def stratum_codes(codes: np.ndarray, state: dict[str, Any]) -> np.ndarray:
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
    codes = np.asarray(codes, dtype=np.int64)
    strata = np.ravel_multi_index(np.asarray(state["strata"], dtype=np.int64).T, shape)
    flat = np.ravel_multi_index(np.maximum(codes, 0).T, shape)
    flat[(codes < 0).any(axis=1)] = -1
    return pd.Index(strata).get_indexer(pd.Index(flat)).astype(np.int64)


def stratum_names(state: dict[str, Any]) -> list[str]:
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
