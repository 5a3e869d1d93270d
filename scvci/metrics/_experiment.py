"""What is scored: real cells, predicted layers and known counterfactuals, read from AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvci._names import unknown_name_message
from scvci.data._cells import resolve_indices
from scvci.data._conditions import find_keys, read_conditions
from scvci.data._labels import missing_key_message, read_labels
from scvci.data._validation import get_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class Experiment:
    """Real cells and what they received."""

    adata: AnnData
    counts_layer: str | None
    treatment: np.ndarray
    stratum: np.ndarray
    control: str
    test: np.ndarray

    @property
    def counts(self) -> Any:
        """Counts of all cells."""
        return get_matrix(self.adata, self.counts_layer)

    def where(self, treatment: str, stratum: str, among: np.ndarray | None = None) -> np.ndarray:
        """Mask of the cells of a pair."""
        cells = (self.treatment == treatment) & (self.stratum == stratum)
        return cells if among is None else cells & among

    def controls(self, stratum: str) -> np.ndarray:
        """Mask of a stratum's control cells: those outside the test where there are any."""
        cells = self.where(self.control, stratum)
        return cells & ~self.test if (cells & ~self.test).any() else cells

    def dense(self, cells: np.ndarray) -> np.ndarray:
        """Read the counts of the cells of a mask, dense."""
        return to_dense(self.counts[np.flatnonzero(cells)])

    def check(self) -> None:
        """Refuse data without the control, or that are not counts."""
        known = sorted(set(self.treatment))
        if self.control not in known:
            raise ValueError(
                unknown_name_message("control", self.control, known, "not among the treatments")
            )
        where = "adata.X" if self.counts_layer is None else f"layer {self.counts_layer!r}"
        block = self.counts[: min(1000, self.adata.n_obs)]
        values = np.asarray(block.data if sparse.issparse(block) else block)
        if (values < 0).any() or (values != np.rint(values)).any():
            raise ValueError(
                f"{where} (argument counts_layer) does not hold counts: it has negative or "
                "fractional values. Means of logarithms and logarithms of means are different "
                "things; pass the layer of raw counts. Layers found: "
                f"{', '.join(map(repr, filter(None, self.adata.layers))) or 'none'}."
            )

    def describe_pairs(self) -> str:
        """List the pairs that can serve as a reference, with their cells."""
        some = self.test if self.test.any() else np.ones(len(self.test), dtype=bool)
        pairs, n = np.unique(
            np.array([f"({t}, {x})" for t, x in zip(self.treatment, self.stratum, strict=True)])[
                some
            ],
            return_counts=True,
        )
        listed = [f"{pair}: {m}" for pair, m in zip(pairs, n, strict=True)]
        return ", ".join(listed[:20]) + (", …" if len(listed) > 20 else "")


@dataclass(frozen=True)
class Predictions:
    """Predicted and known counterfactuals of cells."""

    adata: AnnData
    layers: dict[str, str]
    truth: dict[str, str]
    treatment: np.ndarray
    stratum: np.ndarray
    control: str

    @property
    def targets(self) -> list[str]:
        """Treatments that are predicted, without the control."""
        return [t for t in self.layers if t != self.control]

    @property
    def method(self) -> str:
        """Name of the model, from the record of the layers."""
        record = self._record(self.layers[self.targets[0]])
        return str(record.get("model", "prediction"))

    def controls(self, stratum: str) -> np.ndarray:
        """Rows of a stratum's control cells that every layer predicts for."""
        rows = np.flatnonzero((self.treatment == self.control) & (self.stratum == stratum))
        for layer in self.layers.values():
            rows = rows[~np.isnan(self._rows(layer, rows)).all(axis=1)]
        return rows

    def values(self, treatment: str, rows: np.ndarray) -> np.ndarray:
        """Predicted counts of the rows, dense."""
        layer = self.layers[treatment]
        values = self._rows(layer, rows)
        if str(self._record(layer).get("scale", "")).startswith("log1p"):
            values = np.expm1(values)
        _check_values(values, f"Layer {layer!r}")
        return values

    def is_sampled(self, treatment: str, values: np.ndarray) -> bool:
        """Whether a layer holds sampled counts rather than expectations."""
        record = self._record(self.layers[treatment])
        if "n_samples" in record:
            return int(record["n_samples"]) > 0
        return bool((values == np.rint(values)).all())

    def known(self, treatment: str, rows: np.ndarray) -> np.ndarray:
        """Known expected counts of the rows, dense."""
        values = self._rows(self.truth[treatment], rows)
        _check_values(values, f"Layer {self.truth[treatment]!r} of truth")
        return values

    def check(self, real: AnnData) -> None:
        """Refuse layers that do not exist, of other genes, or on a scale that is not counts."""
        for layer in [*self.layers.values(), *self.truth.values()]:
            get_matrix(self.adata, layer)
        if not np.array_equal(self.adata.var_names, real.var_names):
            raise ValueError("The genes of predicted are not the genes of adata in their order.")
        if not self.targets:
            raise ValueError(
                f"Only the control's layer is given ({self.layers}); pass that of a treatment."
            )
        if self.truth:
            self._check_truth()
        for layer in self.layers.values():
            scale = str(self._record(layer).get("scale", ""))
            if "scale of the training data" in scale:
                raise ValueError(
                    f"Layer {layer!r} is on the {scale!r} (likelihood 'normal'). Pseudobulks need "
                    "counts: the mean of log-normalised cells is another quantity. Score layers "
                    "of a model of counts, or use the functions of scvci.metrics on your scale."
                )

    def _check_truth(self) -> None:
        missing = [t for t in [self.control, *self.targets] if t not in self.truth]
        if missing:
            raise ValueError(
                f"truth has no layer for {missing}; it has {sorted(self.truth)}. The effect on a "
                "cell is measured from the same cell's known control."
            )
        if self.control not in self.layers:
            raise ValueError(
                f"truth is given, but no layer with the prediction for the control "
                f"{self.control!r}; layers given: {self.layers}. The predicted effect on a cell "
                f"is measured from it; predict {self.control!r} too."
            )

    def _record(self, layer: str) -> dict[str, Any]:
        return dict(self.adata.uns.get("scvci", {}).get(layer, {}))

    def _rows(self, layer: str, rows: np.ndarray) -> np.ndarray:
        return to_dense(self.adata.layers[layer][rows])


def to_dense(block: Any) -> np.ndarray:
    """Dense float64 array of a block of rows."""
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=float)


def read_column(adata: AnnData, key: str, argument: str) -> np.ndarray:
    """Labels of a column of ``obs`` as text, shape ``(n_cells,)``."""
    if key not in adata.obs:
        raise KeyError(missing_key_message(adata, key, argument))
    codes, texts = read_labels(adata.obs[key], key)
    return np.array(texts, dtype=object)[codes]


def read_treatments(
    adata: AnnData, key: str, control: Any, dose_key: str | None, separator: str | None
) -> np.ndarray:
    """Name of each cell's arm: its treatment with doses, members in order."""
    keys = find_keys(adata, key, control, dose_key, separator)
    codes, conditions = read_conditions(adata, keys)
    return np.array([keys.name(c) for c in conditions], dtype=object)[codes]


def read_strata(adata: AnnData, keys: Sequence[str]) -> np.ndarray:
    """Name of each cell's stratum, as ``"CD4 T | donor 1"``; ``"all"`` without covariates."""
    if isinstance(keys, str):
        raise TypeError(f"covariate_keys must be a list of columns; got the string {keys!r}.")
    if not len(keys):
        return np.full(adata.n_obs, "all", dtype=object)
    columns = [read_column(adata, key, "covariate_keys") for key in keys]
    return np.array([" | ".join(row) for row in zip(*columns, strict=True)], dtype=object)


def read_test(adata: AnnData, test: Any) -> np.ndarray:
    """Mask of the test cells; of no cell for ``None``."""
    mask = np.zeros(adata.n_obs, dtype=bool)
    if test is None:
        return mask
    if isinstance(test, str):
        if test not in adata.obs:
            raise KeyError(missing_key_message(adata, test, "test"))
        column = adata.obs[test]
        if column.dtype != bool:
            raise ValueError(
                f"obs[{test!r}] (argument test) must be boolean, true for cells that were not "
                f"used for training; it holds {list(column.unique()[:5])}."
            )
        return column.to_numpy()
    mask[resolve_indices(adata, test)] = True
    if not mask.any():
        raise ValueError("test names no cell, so there is nothing to compare with.")
    return mask


def read_layers(adata: AnnData, layer: Any, control: str) -> dict[str, str]:
    """Layer of each treatment; the control's is looked up where it is not given."""
    recorded = adata.uns.get("scvci", {})
    if isinstance(layer, Mapping):
        layers = {str(treatment): name for treatment, name in layer.items()}
    else:
        layers = {}
        for name in [layer] if isinstance(layer, str) else layer:
            get_matrix(adata, name)
            if name not in recorded:
                raise ValueError(
                    f"uns['scvci'] has no record of layer {name!r} (found: "
                    f"{sorted(recorded) or 'none'}), so its treatment is not known. Pass "
                    "layer={treatment: name}."
                )
            treatment = str(recorded[name]["treatment"])
            if treatment in layers:
                raise ValueError(
                    f"Layers {layers[treatment]!r} and {name!r} both predict {treatment!r}; score "
                    "one at a time."
                )
            layers[treatment] = name
    if control not in layers:
        layers |= _recorded_control(adata, recorded, layers, control)
    return layers


def _recorded_control(
    adata: AnnData, recorded: Mapping[str, Any], layers: dict[str, str], control: str
) -> dict[str, str]:
    """Find the control's layer that was predicted in the same way as the others, if any."""
    same = ("scale", "n_samples", "calibrated", "model", "seed")

    def way(name: str) -> tuple[Any, ...]:
        return tuple(recorded[name].get(key) for key in same)

    ways = {way(name) for name in layers.values() if name in recorded}
    for name, record in recorded.items():
        if record.get("treatment") == control and name in adata.layers and ways == {way(name)}:
            return {control: name}
    return {}


def _check_values(values: np.ndarray, what: str) -> None:
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        raise ValueError(
            f"{what} has {int(bad.sum())} values that are missing, infinite or negative among the "
            "control cells: not expected counts. Leave out genes that the model does not have, "
            "and predict counts."
        )
