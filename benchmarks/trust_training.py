"""Kill trainings at random moments, let them go on, and compare with one that was not stopped.

    python benchmarks/trust_training.py --n-kills 50

Each training runs in a process of its own, which is killed (SIGKILL: nothing is cleaned up) after
a random time and started again from its checkpoint, until it ends. Weights, history, calibration
and predictions must be those of a training that was not stopped, to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import scvci
from scvci.model import VCI, ImageVCI
from scvci.train._resume import FILE_NAME

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False}
#: A start of Python would take longer than these trainings.
_PROCESSES = multiprocessing.get_context("fork")
KINDS = ("default", "critic", "images", "second training")


def build(kind: str) -> VCI | ImageVCI:
    """Build the model of a kind, the same in every process."""
    if kind == "images":
        rng = np.random.default_rng(0)
        digits = rng.random((300, 8, 8)).astype(np.float32)
        adata = scvci.datasets.simulate_perturbation(n_cells=300, n_genes=2, seed=0)
        adata.obsm["image"] = digits
        adata.obs["dose"] = rng.random(300)
        ImageVCI.setup_anndata(adata, treatment_keys=["dose"])
        architecture = {"width": 8, "n_latent": 8, "n_maps": 4, "depth": 1, "n_condition": 16}
        return ImageVCI(adata, architecture=architecture, seed=0)
    adata = scvci.datasets.simulate_perturbation(n_cells=1000, n_genes=50, seed=0)
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    term = "discriminator" if kind == "critic" else "moments"
    model = VCI(adata, covariate_term=term, seed=0)
    if kind == "second training":
        model.train(2, **QUIET)
    return model


def fingerprint(model: VCI | ImageVCI) -> str:
    """Digest of weights, history and predictions."""
    found = hashlib.sha256()
    for tensor in model.module.state_dict().values():
        found.update(tensor.numpy().tobytes())
    for name in sorted(model.history):
        found.update(model.history[name].to_numpy(float).tobytes())
    if isinstance(model, VCI):
        found.update(model.calibration.shift.tobytes())
        [layer] = model.predict_counterfactual("IFNb")
        found.update(model.adata.layers[layer].tobytes())
    return found.hexdigest()


def train(kind: str, folder: Path, n_epochs: int) -> None:
    """Train, from the checkpoint if there is one, and leave a digest."""
    model = build(kind)
    start = folder if (folder / FILE_NAME).exists() else None
    model.train(
        n_epochs,
        checkpoint_dir=folder,
        checkpoint_every_n_epochs=2,
        resume_from=start,
        **QUIET,
    )
    (folder / "digest").write_text(fingerprint(model))


def run(kind: str, folder: Path, n_epochs: int, seconds: float | None = None) -> bool:
    """Train in another process; kill it after some seconds. Say whether it was killed."""
    process = _PROCESSES.Process(target=train, args=(kind, folder, n_epochs))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    if process.exitcode:
        raise RuntimeError(f"Training {kind!r} ended with {process.exitcode}.")
    return False


def kill_and_resume(kind: str, n_kills: int, n_epochs: int, seed: int = 0) -> dict[str, object]:
    """Kill trainings until there were so many kills; compare each that ended.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    n_kills
        Number of kills.
    n_epochs
        Epochs of a training.
    seed
        Seed of the moments.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "reference"
        folder.mkdir()
        start = time.perf_counter()
        run(kind, folder, n_epochs)
        alone, reference = time.perf_counter() - start, (folder / "digest").read_text()
        kills = in_training = ended = same = temporary = 0
        while kills < n_kills:
            folder = Path(name) / str(ended)
            folder.mkdir()
            # The later kills of a training strike what was gone on from.
            while kills < n_kills and run(kind, folder, n_epochs, rng.uniform(0.0, 1.0) * alone):
                kills += 1
                in_training += (folder / FILE_NAME).exists()
                temporary += len(list(folder.glob("*.tmp")))
            if not (folder / "digest").exists():
                run(kind, folder, n_epochs)
            ended += 1
            same += (folder / "digest").read_text() == reference
    return {
        "kind": kind,
        "kills": kills,
        "after a checkpoint": in_training,
        "left-over files": temporary,
        "trainings ended": ended,
        "equal to the bit": same,
        "seconds alone": round(alone, 1),
    }


def main() -> None:
    """Print a row for each kind of model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-kills", type=int, default=50, help="kills in all")
    parser.add_argument("--n-epochs", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    n = -(-arguments.n_kills // len(KINDS))
    for i, kind in enumerate(KINDS):
        row = pd.DataFrame([kill_and_resume(kind, n, arguments.n_epochs)])
        print(row.to_csv(sep="\t", index=False, header=i == 0), end="", flush=True)


if __name__ == "__main__":
    main()
