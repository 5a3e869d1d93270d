"""Speed and memory of training: cells per second, peak memory, and the cost of the loader.

The ratio compares an epoch of ``train()`` with a bare torch loop of the same module, loss and
optimiser over tensors made beforehand, in the same process and alternating, so that a noisy
machine slows both.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import time
import warnings

import numpy as np
import torch

import scvci
from scvci.data._sampler import CounterfactualSampler
from scvci.data._splitter import CounterfactualSplitter
from scvci.data._statistics import compute_statistics
from scvci.model import VCI
from scvci.train import VCITrainingPlan


def bare_epoch(model: VCI, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of one pass over pre-made batches."""
    module = model.module.train()
    (optimizer,), _ = VCITrainingPlan(module, lr_decay=None).configure_optimizers()
    start = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        module(batch)[2].loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def train_epochs(model: VCI, epochs: int) -> float:
    """Seconds per epoch of ``train()``, without validation, beyond the time of a single one."""
    seconds = []
    for n in (1, 1 + epochs):
        start = time.perf_counter()
        model.train(
            max_epochs=n,
            train_size=1.0,
            early_stopping=False,
            enable_progress_bar=False,
            accelerator="cpu",
        )
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-cells", type=int, default=6000)
    parser.add_argument("--n-genes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    adata = scvci.datasets.simulate_perturbation(arguments.n_cells, arguments.n_genes, held_out=2)
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=0)
    cells = model.cells()
    sampler = CounterfactualSampler(cells, compute_statistics(cells, uses_size=True))
    nothing = np.zeros(0, dtype=np.int64)
    parts = (cells.rows, nothing, nothing)
    splitter = CounterfactualSplitter(sampler, parts, batch_size=128, seed=0)
    batches = [
        {name: torch.as_tensor(value) for name, value in batch.items()}
        for batch in splitter.train_dataloader()
    ]
    bare, full = [], []
    for _ in range(arguments.repeats):
        full.append(train_epochs(model, arguments.epochs))
        bare.append(statistics.median(bare_epoch(model, batches) for _ in range(arguments.epochs)))
    ratio = [f / b for f, b in zip(full, bare, strict=True)]
    epoch = statistics.median(full)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"epoch: {epoch:.3f} s median of {arguments.repeats} ({min(full):.3f}-{max(full):.3f})")
    print(f"cells per second: {arguments.n_cells / epoch:.0f}")
    print(f"peak memory: {peak:.0f} MB (the simulated truth included)")
    print(
        f"epoch / bare loop: {statistics.median(ratio):.2f} median "
        f"({min(ratio):.2f}-{max(ratio):.2f}); bare {statistics.median(bare):.3f} s"
    )


if __name__ == "__main__":
    main()
