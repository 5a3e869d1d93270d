"""CPU seconds of a screen by its arms: setup, training, what follows, prediction.

    python benchmarks/many_arms.py --arms 5 50 500 2000

60,000 cells × 200 genes in 3 strata by default, on one thread. Each size runs in a process of its
own, and seconds are the processor's, so that other processes disturb little.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import warnings

import anndata
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvci.model import VCI


class _Clock(pl.Callback):
    """CPU time at which the epochs start and end."""

    def on_train_start(self, *_: object) -> None:
        self.start = time.process_time()

    def on_train_end(self, *_: object) -> None:
        self.end = time.process_time()


def simulate(n_arms: int, n_cells: int, n_genes: int, n_strata: int) -> anndata.AnnData:
    """Draw counts without effects, with every arm in every stratum."""
    rng = np.random.default_rng(0)
    arm, stratum = rng.integers(n_arms, size=n_cells), rng.integers(n_strata, size=n_cells)
    rate = rng.gamma(2, 1, n_genes) * np.exp(0.3 * rng.normal(size=(n_strata, n_genes)))
    names = np.array(["control", *(f"T{i}" for i in range(1, n_arms))])
    obs = pd.DataFrame(
        {"treatment": names[arm], "cell_type": np.array(list("abcdefghij"))[stratum]},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    counts = sparse.csr_matrix(rng.poisson(rate[stratum]).astype(np.float32))
    return anndata.AnnData(counts, obs=obs)


def measure(n_arms: int, n_cells: int, n_genes: int, n_strata: int) -> dict[str, float]:
    """CPU seconds of each step."""
    adata, seconds = simulate(n_arms, n_cells, n_genes, n_strata), {}

    def timed(step: str, run: object) -> object:
        start = time.process_time()
        result = run()
        seconds[step] = time.process_time() - start
        return result

    timed("setup", lambda: VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"]))
    model = timed("construction", lambda: VCI(adata, seed=0))
    timed("list of arms", lambda: model.treatments)
    clock = _Clock()
    model.train(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[clock], logger=False
    )
    seconds["one epoch"] = clock.end - clock.start
    seconds["after training"] = time.process_time() - clock.end
    timed("one prediction", lambda: model.predict_counterfactual("T1"))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", type=int, nargs="+", default=[5, 50, 500, 2000])
    parser.add_argument("--n-cells", type=int, default=60_000)
    parser.add_argument("--n-genes", type=int, default=200)
    parser.add_argument("--n-strata", type=int, default=3)
    chosen = parser.parse_args()
    sizes = (chosen.n_cells, chosen.n_genes, chosen.n_strata)
    if len(chosen.arms) == 1:
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        torch.set_num_threads(1)
        seconds = measure(chosen.arms[0], *sizes)
        print(f"{chosen.arms[0]} arms")
        print("\n".join(f"  {step}: {value:.2f} CPU s" for step, value in seconds.items()))
        return
    for n_arms in chosen.arms:
        options = [
            f"--n-{k}={v}" for k, v in zip(("cells", "genes", "strata"), sizes, strict=True)
        ]
        subprocess.run([sys.executable, __file__, "--arms", str(n_arms), *options], check=True)


if __name__ == "__main__":
    main()
