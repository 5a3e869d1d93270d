"""Raw counts in one or several chunks, read block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scvci._names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    type Raw = ad.AnnData | str | Path | Sequence[ad.AnnData | str | Path]

#: Cells read at a time: about 100 MB at 1,300 genes detected in a cell.
_BLOCK = 10_000


class RawCells:
    """Chunks of one experiment, whose counts stay on disk; a context manager.

    Parameters
    ----------
    raw
        Cells × genes with raw counts in ``X``: an AnnData, the path of an ``.h5ad``, or a
        sequence of them, in which cells follow each other.
    columns
        Columns of ``obs`` to read.

    Attributes
    ----------
    obs
        These columns of all cells, in the order of the chunks.
    var
        Table of the genes, as in the first chunk.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        If a file or a column is missing, chunks have different genes, or a cell occurs twice.
    """

    def __init__(self, raw: Raw, columns: Sequence[str]) -> None:
        chunks = [raw] if isinstance(raw, str | Path | ad.AnnData) else list(raw)
        if not chunks:
            raise ValueError(
                "raw is empty; give the path of an .h5ad, or the paths of its chunks."
            )
        self._chunks: list[ad.AnnData] = []
        self._names: list[str] = []
        self._opened: list[ad.AnnData] = []
        try:
            for i, chunk in enumerate(chunks):
                self._open(i, chunk)
            self.obs = self._read_obs(list(dict.fromkeys(columns)))
            self.var = self._read_var()
        except Exception:
            self.close()
            raise

    def _open(self, i: int, chunk: ad.AnnData | str | Path) -> None:
        if isinstance(chunk, ad.AnnData):
            self._chunks.append(chunk)
            self._names.append(f"chunk {i}")
            return
        if not Path(chunk).is_file():
            raise FileNotFoundError(
                f"There is no file {str(chunk)!r}. Download it, or correct raw."
            )
        self._chunks.append(ad.read_h5ad(chunk, backed="r"))
        self._opened.append(self._chunks[-1])
        self._names.append(Path(chunk).name)

    def _read_obs(self, columns: list[str]) -> pd.DataFrame:
        tables = []
        for name, chunk in zip(self._names, self._chunks, strict=True):
            missing = [column for column in columns if column not in chunk.obs]
            if missing:
                found = list(map(str, chunk.obs.columns))
                close = nearest(missing[0], found)
                hint = (
                    f" Nearest to {missing[0]!r}: {', '.join(map(repr, close))}." if close else ""
                )
                raise KeyError(
                    f"obs of {name} has no {', '.join(map(repr, missing))}.{hint} Found: "
                    f"{', '.join(map(repr, found)) or 'no column'}. Is it the raw file?"
                )
            table = chunk.obs[columns]
            # Categories differ between chunks; as values they follow each other.
            tables.append(
                table.astype(
                    {
                        c: table[c].dtype.categories.dtype
                        for c in columns
                        if isinstance(table[c].dtype, pd.CategoricalDtype)
                    }
                )
            )
        obs = pd.concat(tables)
        if not obs.index.is_unique:
            twice = obs.index[obs.index.duplicated()]
            raise ValueError(
                f"{len(twice)} names of cells occur more than once in raw, such as {twice[0]!r}. "
                "Give each chunk once; if they are different cells, rename them."
            )
        if len(obs) == 0:
            raise ValueError("raw has no cells.")
        return obs

    def _read_var(self) -> pd.DataFrame:
        first = self._chunks[0].var
        for name, chunk in zip(self._names, self._chunks, strict=True):
            if not chunk.var_names.equals(first.index):
                raise ValueError(
                    f"Genes of {name} are not those of {self._names[0]}, in the same order "
                    f"({chunk.n_vars} and {len(first)} genes). Give chunks of one experiment."
                )
        return first.copy()

    def blocks(
        self, keep: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """Yield blocks of cells: their positions in ``obs`` and their counts.

        Parameters
        ----------
        keep
            Whether to yield a cell, shape ``(n_cells,)``; all cells by default.

        Raises
        ------
        ValueError
            If values are no counts; with the cell and the gene.
        """
        offset = 0
        for chunk in self._chunks:
            matrix = _by_rows(chunk)
            for start in range(0, chunk.n_obs, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, chunk.n_obs))
                positions = offset + rows
                wanted = np.ones(len(rows), dtype=bool) if keep is None else keep[positions]
                if not wanted.any():
                    continue
                block = sparse.csr_matrix(matrix[rows[0] : rows[-1] + 1], dtype=np.float32)
                block = block[wanted] if not wanted.all() else block
                self._check_counts(block, positions[wanted])
                block.eliminate_zeros()
                yield positions[wanted], block
            offset += chunk.n_obs

    def _check_counts(self, block: sparse.csr_matrix, positions: np.ndarray) -> None:
        data = block.data
        bad = ~((data >= 0) & (data == np.round(data)) & np.isfinite(data))
        if bad.any():
            at = int(np.argmax(bad))
            row = int(np.searchsorted(block.indptr, at, side="right")) - 1
            raise ValueError(
                f"X of cell {self.obs.index[positions[row]]!r} holds {data[at]:g} for gene "
                f"{self.var.index[block.indices[at]]!r}; raw counts are whole numbers of at least "
                "0. Give the raw file, not normalised values."
            )

    def close(self) -> None:
        """Close the files that were opened here."""
        for chunk in self._opened:
            chunk.file.close()

    def __enter__(self) -> RawCells:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _by_rows(chunk: ad.AnnData) -> sparse.csr_matrix | np.ndarray | ad.abc.CSRDataset:
    """Get counts that can be cut by rows; a file that stores columns is read as a whole."""
    matrix = chunk.X
    if isinstance(matrix, ad.abc.CSCDataset):
        matrix = matrix.to_memory()
    return matrix.tocsr() if sparse.issparse(matrix) else matrix
