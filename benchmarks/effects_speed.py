"""Time and memory of the effects of many treatments in many strata.

OMP_NUM_THREADS=2 uv run python benchmarks/effects_speed.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from prediction_speed import PeakMemory
from scipy import sparse

from scvci.effects import estimate_effects


def random_cells(n_cells: int, n_genes: int, density: float, seed: int = 0) -> sparse.csr_matrix:
    """Draw sparse normalised counts."""
    rng = np.random.default_rng(seed)
    blocks = [
        sparse.random_array((n, n_genes), density=density, format="csr", rng=rng, dtype=np.float32)
        for n in np.diff(np.linspace(0, n_cells, 11).astype(int))
    ]
    cells = sparse.csr_matrix(sparse.vstack(blocks))
    cells.data = np.ceil(4 * cells.data)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-cells", type=int, default=50_000)
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--n-treatments", type=int, default=20, help="besides the control")
    parser.add_argument("--n-strata", type=int, default=10)
    parser.add_argument("--n-clusters", type=int, default=12)
    parser.add_argument("--density", type=float, default=0.1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    n, n_genes = arguments.n_cells, arguments.n_genes
    cells = random_cells(n, n_genes, arguments.density)
    stratum = rng.integers(arguments.n_strata, size=n)
    treatment = rng.integers(arguments.n_treatments + 1, size=n)
    common = {
        "reference": "control",
        "treatments": ["control", *(f"drug {i}" for i in range(arguments.n_treatments))],
        "strata": [f"type {i}" for i in range(arguments.n_strata)],
        "genes": [f"gene {i}" for i in range(n_genes)],
        "groups": stratum,
        "group_names": [f"type {i}" for i in range(arguments.n_strata)],
    }
    noise = np.random.default_rng(1)
    runs = {
        "observed": {},
        "observed, clusters": {"clusters": rng.integers(arguments.n_clusters, size=n)},
        "robust": {
            "estimator": "robust",
            "predictions": lambda code, genes: noise.random(
                (n, genes.stop - genes.start), dtype=np.float32
            ),
        },
    }
    rows = []
    for name, options in runs.items():
        with PeakMemory() as memory:
            start = time.perf_counter()
            table = estimate_effects(cells, treatment, stratum, **common, **options)
            seconds = time.perf_counter() - start
        rows.append(
            {"estimator": name, "rows": len(table), "seconds": seconds, "peak MB": memory.added}
        )
        del table
    print(f"{n} cells x {n_genes} genes, {arguments.density:.0%} of counts are not 0")
    print(pd.DataFrame(rows).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
