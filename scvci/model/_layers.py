"""What a predicted layer holds, and how it is put together from batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse

from scvci._numbers import is_number, positive_number, whole_number
from scvci.data._results import safe_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from scvci.data import Cells


@dataclass(frozen=True)
class Scale:
    """On which scale a counterfactual is written.

    Attributes
    ----------
    library_size
        Library size to predict at, or ``None`` for each cell's own.
    log1p
        Whether to write logarithms of one plus the counts.
    n_samples
        Number of draws, or ``None`` for expectations.
    quantiles
        Quantiles of the draws, or ``None`` for the draws themselves.
    keep_totals
        Whether the counts of a draw add up to the cell's total, or to the library size.
    keep
        What of the cell is kept, see :meth:`VCI.predict_counterfactual`.
    """

    library_size: float | None
    log1p: bool
    n_samples: int | None
    quantiles: tuple[float, ...] | None = None
    keep_totals: bool = False
    keep: Literal["state", "rates", "molecules"] = "rates"

    def check(self, is_count: bool) -> None:
        """Refuse what makes no sense, or no sense for log-normalised data.

        Parameters
        ----------
        is_count
            Whether the likelihood is one of counts.

        Raises
        ------
        TypeError, ValueError
            With the setting at fault.
        """
        if self.n_samples is not None:
            whole_number("n_samples", self.n_samples)
        if self.library_size is not None:
            positive_number("library_size", self.library_size)
        if not is_count and (self.library_size is not None or self.log1p):
            raise ValueError(
                "library_size and log1p are for count likelihoods; with likelihood='normal' the "
                "counterfactual is on the scale of the data (log-normalised)."
            )
        if self.keep_totals and not (is_count and self.n_samples and not self.quantiles):
            raise ValueError(
                "keep_totals is for draws of counts: pass n_samples=, without quantiles, with a "
                "likelihood of counts."
            )
        if self.keep_totals and (self.library_size or 0) % 1:
            raise ValueError(
                f"library_size={self.library_size} must be a whole number for keep_totals."
            )
        if self.keep not in ("state", "rates", "molecules"):
            raise ValueError(f"keep={self.keep!r} must be 'state', 'rates' or 'molecules'.")
        if self.keep_totals and self.keep == "molecules":
            raise ValueError(
                "keep_totals draws a cell's counts anew, keep='molecules' moves the cell's own. "
                "Choose one of them."
            )
        if self.quantiles is not None:
            _check_quantiles(self.quantiles, self.n_samples)
        elif self.n_samples and self.log1p:
            raise ValueError(
                "n_samples draws counts; log1p applies to expectations and quantiles only."
            )

    def describe(self, is_count: bool) -> str:
        """Say in words what the numbers are.

        Parameters
        ----------
        is_count
            Whether the likelihood is one of counts.
        """
        if not is_count:
            return "scale of the training data"
        size = f"library size {self.library_size:g}" if self.library_size else "own library size"
        what = "sampled counts" if self.n_samples else "expected counts"
        what = f"{what} with given totals" if self.keep_totals else what
        what = f"quantile of {what}" if self.quantiles else what
        return f"{'log1p of ' if self.log1p else ''}{what} at {size}"

    def suffixes(self) -> list[str]:
        """Name the endings of a treatment's layers."""
        if self.quantiles:
            # 0.05 becomes _q05, 0.975 becomes _q975.
            return [f"_q{np.format_float_positional(q)[2:].ljust(2, '0')}" for q in self.quantiles]
        n = self.n_samples or 1
        return [""] if n == 1 else [f"_{i + 1}" for i in range(n)]

    def quantiles_of(self, draws: torch.Tensor) -> torch.Tensor:
        """Order statistics of draws along the first axis; they commute with monotone maps."""
        ordered = draws.sort(dim=0).values
        ranks = np.ceil(np.asarray(self.quantiles) * len(draws) - 1e-9).astype(int)
        return ordered[torch.as_tensor(ranks - 1, device=draws.device)]

    def sampling(self, i: int) -> dict[str, Any]:
        """Say for provenance what draws are behind a treatment's layer number ``i``."""
        quantile = {"quantile": self.quantiles[i]} if self.quantiles else {}
        return {"n_samples": self.n_samples or 0, **quantile}


def require_finite(values: np.ndarray, names: pd.Index, rows: np.ndarray) -> None:
    """Raise if a prediction is not finite.

    Parameters
    ----------
    values
        Predictions, shape ``(..., n_cells, n_columns)``.
    names
        Names of all cells.
    rows
        The cells that are predicted for.

    Raises
    ------
    ValueError
        With the first cell at fault.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    of_cell = np.moveaxis(finite, -2, 0).reshape(len(rows), -1).all(axis=1)
    raise ValueError(
        f"The prediction for cell {str(names[rows[np.argmin(of_cell)]])!r} is not finite: its "
        "expression, size factor or covariates, or the weights of the model, are beyond what "
        "networks can compute with. Nothing was written."
    )


class LayerCollector:
    """Gather predictions of batches into layers of the AnnData's shape.

    Expectations are dense, with NaN where nothing was asked for; sampled counts are sparse, with
    the rows outside empty only if all rows were asked for, and dense with NaN otherwise.

    Parameters
    ----------
    cells
        The cells.
    rows
        Rows that are asked for, in ascending order.
    n_layers
        Number of layers.
    sparse_layers
        Whether layers are sparse where nothing is missing.
    """

    def __init__(
        self, cells: Cells, rows: np.ndarray, n_layers: int, sparse_layers: bool = False
    ) -> None:
        self.shape = cells.adata.shape
        self.columns = cells.columns
        complete = len(rows) == self.shape[0] and (
            self.columns is None or len(self.columns) == self.shape[1]
        )
        self.sparse = sparse_layers and complete
        self._blocks: list[list[Any]] = [[] for _ in range(n_layers)]
        self._dense: list[np.ndarray] = []
        if not self.sparse:
            make = np.empty if complete else lambda s, dtype: np.full(s, np.nan, dtype=dtype)
            self._dense = [make(self.shape, dtype=np.float32) for _ in range(n_layers)]

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Take the values of ascending rows, shape ``(n_layers, n_rows, n_model_genes)``."""
        for i, block in enumerate(values):
            if self.sparse:
                ordered = block if self.columns is None else self._in_file_order(block)
                self._blocks[i].append(sparse.csr_matrix(ordered.astype(np.int32)))
            elif self.columns is None:
                self._dense[i][rows] = block
            else:
                self._dense[i][np.ix_(rows, self.columns)] = block

    def _in_file_order(self, block: np.ndarray) -> np.ndarray:
        ordered = np.empty_like(block)
        ordered[:, self.columns] = block
        return ordered

    def layers(self) -> list[Any]:
        """Return the finished layers."""
        if not self.sparse:
            return self._dense
        empty = sparse.csr_matrix(self.shape, dtype=np.int32)
        return [sparse.vstack(b, format="csr") if b else empty for b in self._blocks]


def _check_quantiles(quantiles: tuple[float, ...], n_samples: int | None) -> None:
    if not quantiles or not all(is_number(q) and 0 < q < 1 for q in quantiles):
        raise ValueError(
            f"quantiles={quantiles} must lie strictly between 0 and 1, such as (0.05, 0.95)."
        )
    if len(set(quantiles)) < len(quantiles):
        raise ValueError(f"Quantiles are asked for more than once: {quantiles}.")
    tail = min(min(q, 1 - q) for q in quantiles)
    if n_samples is not None and n_samples * tail < 1 - 1e-9:
        raise ValueError(
            f"n_samples={n_samples} draws do not reach quantiles={quantiles}; draw at least "
            f"{int(np.ceil(1 / tail - 1e-9))}."
        )


def layer_names(
    labels: Sequence[str], layer_added: str | None, single: bool, suffixes: Sequence[str]
) -> dict[str, list[str]]:
    """Names of the layers of each treatment.

    Parameters
    ----------
    labels
        Treatments, or the column that has them.
    layer_added
        Name, or prefix for several treatments.
    single
        Whether ``layer_added`` is the whole name.
    suffixes
        Endings of the layers of one treatment.

    Raises
    ------
    ValueError
        If two treatments would share a layer.
    """
    names = {}
    if layer_added is not None and not isinstance(layer_added, str):
        raise TypeError(f"layer_added={layer_added!r} must be a text.")
    for label in labels:
        base = layer_added if single and layer_added else None
        base = base or safe_name(f"{layer_added or 'counterfactual'}_{label}")
        names[label] = [base + suffix for suffix in suffixes]
    flat = [name for of_label in names.values() for name in of_label]
    if len(set(flat)) < len(flat):
        raise ValueError(
            f"Two treatments would be written to the same layer ({sorted(flat)}); predict them "
            "one by one with layer_added=."
        )
    return names
