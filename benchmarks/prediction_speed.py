"""Time and memory of predicting one treatment for many cells.

Weights do not matter to either, so the model is trained on a few of the cells for one epoch.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from scvci.model import VCI


class PeakMemory:
    """Peak resident memory of the process while the block runs, in MB, above what it began with.

    Sampled every 10 ms: the kernel's own high-water mark would hold the set-up's peak.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.added = self.peak - self.start

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._resident())

    @staticmethod
    def _resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-cells", type=int, default=100_000)
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--density", type=float, default=0.15)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(0)
    blocks = [
        sparse.random(
            5000, arguments.n_genes, arguments.density, format="csr", dtype=np.float32, rng=rng
        ).ceil()
        for _ in range(-(-arguments.n_cells // 5000))
    ]
    counts = sparse.vstack(blocks, format="csr")[: arguments.n_cells]
    n = counts.shape[0]
    adata = anndata.AnnData(
        counts,
        obs=pd.DataFrame(
            {
                "treatment": rng.choice(["control", "drug_a", "drug_b"], n),
                "cell_type": rng.choice(list("abcde"), n),
            },
            index=[f"cell{i}" for i in range(n)],
        ),
    )
    VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=0)
    few = rng.permutation(n)
    parts = [few[:2000], few[2000:2200], few[2200:]]
    model.train(
        max_epochs=1,
        datasplitter_kwargs={"external_indexing": parts},
        enable_progress_bar=False,
        accelerator="cpu",
    )
    layer = n * arguments.n_genes * 4 / 2**20
    with PeakMemory() as memory:
        start = time.perf_counter()
        model.predict_counterfactual("drug_a")
        seconds = time.perf_counter() - start
    print(f"{n} cells x {arguments.n_genes} genes: {seconds:.1f} s ({n / seconds:.0f} cells/s)")
    print(f"added memory: {memory.added:.0f} MB, of which the layer {layer:.0f} MB")


if __name__ == "__main__":
    main()
