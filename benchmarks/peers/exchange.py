"""What passes between the benchmark and a peer's process.

Plain arrays, because no AnnData file can be read by both sides: a peer's anndata is years older
than the benchmark's. Both sides import this file, so it keeps to numpy, scipy and an old Python.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import sparse

_COLUMNS = ("treatment", "stratum")


def write_cells(file, counts, obs, genes):
    """Write raw counts with the treatment, stratum and name of every cell."""
    counts = sparse.csr_matrix(counts)
    np.savez(
        file,
        data=counts.data,
        indices=counts.indices,
        indptr=counts.indptr,
        shape=counts.shape,
        cells=np.asarray(obs.index, dtype=str),
        genes=np.asarray(genes, dtype=str),
        **{key: np.asarray(obs[key], dtype=str) for key in _COLUMNS},
    )


def read_cells(file):
    """Read what :func:`write_cells` wrote, as an AnnData of counts in float32."""
    # Only a peer's process reads cells; the benchmark's own needs no anndata for this file.
    import pandas as pd
    from anndata import AnnData

    with np.load(file) as arrays:
        matrix = sparse.csr_matrix(
            (arrays["data"].astype(np.float32), arrays["indices"], arrays["indptr"]),
            shape=tuple(arrays["shape"]),
        )
        obs = pd.DataFrame(
            {key: arrays[key].astype(object) for key in _COLUMNS},
            index=arrays["cells"].astype(object),
        )
        var = pd.DataFrame(index=arrays["genes"].astype(object))
    return AnnData(matrix, obs=obs, var=var)


def read_request(folder):
    """Training cells, query cells and the request: control, treatments, seed and epochs."""
    folder = Path(folder)
    request = json.loads((folder / "request.json").read_text())
    return read_cells(folder / "train.npz"), read_cells(folder / "query.npz"), request


def write_prediction(folder, values, scale):
    """Write one array of query cells × genes for each treatment, in the order requested.

    The scale is ``"counts"`` (expected counts) or ``"log1p"`` (log1p of counts per 10,000).
    """
    np.savez(
        Path(folder) / "prediction.npz",
        values=np.stack(values).astype(np.float32),
        scale=scale,
    )


def read_prediction(folder):
    """Read what :func:`write_prediction` wrote."""
    with np.load(Path(folder) / "prediction.npz") as arrays:
        return arrays["values"], str(arrays["scale"])


def log_normalise(adata):
    """Turn counts into log1p of counts per 10,000, dense."""
    counts = adata.X.toarray()
    total = counts.sum(axis=1, keepdims=True)
    adata.X = np.log1p(1e4 * counts / np.where(total > 0, total, 1)).astype(np.float32)
