"""Measured (stratum, treatment) pairs as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Pairs:
    """Pairs in ascending order of stratum and treatment, each once.

    Attributes
    ----------
    stratum, treatment
        Codes of the pairs, shape ``(n_pairs,)``.
    n_strata, n_treatments
        Numbers of codes.
    """

    stratum: np.ndarray
    treatment: np.ndarray
    n_strata: int
    n_treatments: int

    @classmethod
    def count(
        cls, stratum: np.ndarray, treatment: np.ndarray, n_strata: int, n_treatments: int
    ) -> tuple[Pairs, np.ndarray]:
        """Find the pairs of cells.

        Parameters
        ----------
        stratum, treatment
            Codes of the cells, shape ``(n_cells,)``; stratum −1 is unknown and left out.
        n_strata, n_treatments
            Numbers of codes.

        Returns
        -------
        The pairs and the number of cells of each, shape ``(n_pairs,)``.
        """
        known = np.asarray(stratum) >= 0
        code = np.asarray(stratum)[known].astype(np.int64) * n_treatments
        code, counts = np.unique(code + np.asarray(treatment)[known], return_counts=True)
        return cls(*np.divmod(code, n_treatments), n_strata, n_treatments), counts

    def __len__(self) -> int:
        return len(self.stratum)

    @cached_property
    def _code(self) -> np.ndarray:
        return self.stratum.astype(np.int64) * self.n_treatments + self.treatment

    @cached_property
    def _by_stratum(self) -> sparse.csr_matrix:
        return _indicator(self.stratum, self.n_strata)

    @cached_property
    def _by_treatment(self) -> sparse.csr_matrix:
        return _indicator(self.treatment, self.n_treatments)

    def rows(self, stratum: np.ndarray | int, treatment: np.ndarray | int) -> np.ndarray:
        """Row of each pair; −1 where it is not measured or a code is −1.

        Parameters
        ----------
        stratum, treatment
            Codes, whose shapes broadcast.
        """
        x, t = np.broadcast_arrays(np.asarray(stratum), np.asarray(treatment))
        if len(self) == 0:
            return np.full(x.shape, -1)
        code = np.where((x < 0) | (t < 0), -1, x.astype(np.int64) * self.n_treatments + t)
        row = np.minimum(np.searchsorted(self._code, code), len(self) - 1)
        return np.where((self._code[row] == code) & (t < self.n_treatments), row, -1)

    def take(self, rows: np.ndarray) -> Pairs:
        """Choose some of the pairs, by ascending rows or a mask."""
        return replace(self, stratum=self.stratum[rows], treatment=self.treatment[rows])

    def resized(self, n_strata: int, n_treatments: int) -> Pairs:
        """Hold the same pairs among more strata and treatments, whose codes follow."""
        return replace(self, n_strata=n_strata, n_treatments=n_treatments)

    def union(self, other: Pairs) -> Pairs:
        """All pairs of both tables, which have the same strata and treatments."""
        code = np.union1d(self._code, other._code)
        stratum, treatment = np.divmod(code, self.n_treatments)
        return replace(self, stratum=stratum, treatment=treatment)

    def sum_by_stratum(self, values: np.ndarray) -> np.ndarray:
        """Sum rows ``(n_pairs, ...)`` within strata, ``(n_strata, ...)``."""
        return self._by_stratum @ values

    def sum_by_treatment(self, values: np.ndarray) -> np.ndarray:
        """Sum rows ``(n_pairs, ...)`` within treatments, ``(n_treatments, ...)``."""
        return self._by_treatment @ values


def _indicator(code: np.ndarray, n: int) -> sparse.csr_matrix:
    """Which rows have which code, shape ``(n, n_rows)``."""
    entries = (np.ones(len(code)), (code, np.arange(len(code))))
    return sparse.csr_matrix(entries, shape=(n, len(code)))
