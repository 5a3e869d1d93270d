"""Whether files of models survive whatever happens to them.

    uv run python benchmarks/trust.py --kills 50 --flips 200 --truncations 50

Each section tries something many times and counts how it ends. What must not happen is in the
column ``wrong``. Times are medians.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import resource
import shutil
import signal
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scvci.datasets import simulate_perturbation
from scvci.model import VCI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

type Row = dict[str, Any]
type Section = Callable[[argparse.Namespace, Path], Iterator[Row]]


def fit(n_cells: int, n_genes: int, seed: int) -> VCI:
    """Train a model a little."""
    adata = simulate_perturbation(n_cells=n_cells, n_genes=n_genes, seed=seed)
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, seed=seed)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model


def held(folder: Path) -> str:
    """Say what a folder holds: the model of which seed, with how many cells, or the error."""
    try:
        model = VCI.load(folder, accelerator="cpu")
    except ValueError as error:
        return "no model" if "No saved model" in str(error) else f"ValueError: {error}"
    return f"seed {model.seed_}, {model.adata.n_obs if model.adata is not None else 'no'} cells"


def in_process(work: Callable[[], None], seconds: float | None = None) -> int:
    """Exit status of a process that does some work, killed after a while."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def row(section: str, found: collections.Counter, right: set[str], **more: Any) -> Row:
    """Count what is right and what is not."""
    return {
        "section": section,
        "tried": found.total(),
        **{name: found[name] for name in sorted(right) if found[name]},
        "wrong": sum(n for name, n in found.items() if name not in right),
        **more,
    }


def elapsed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# -- sections -------------------------------------------------------------------------------------


def killed(chosen: argparse.Namespace, scratch: Path, cells: bool) -> Row:
    """Save over a model and be killed at a random moment."""
    old, new = fit(1500, 200, seed=1), fit(2000, 200, seed=2)
    old.save(scratch / "old", save_anndata=cells)
    new.save(scratch / "new", save_anndata=cells)
    names = {held(scratch / name): name for name in ("old", "new")}
    work = scratch / "work"

    def save() -> None:
        new.save(work, overwrite=True, save_anndata=cells)

    shutil.copytree(scratch / "old", work)
    typical = statistics.median(elapsed(lambda: in_process(save)) for _ in range(5))
    rng, found = np.random.default_rng(0), collections.Counter()
    for _ in range(chosen.kills):
        shutil.rmtree(work)
        shutil.copytree(scratch / "old", work)
        in_process(save, seconds=rng.uniform(0, 1.1 * typical))
        now = held(work)
        found[names.get(now, now)] += 1
        save()
        if names.get(held(work)) != "new" or len(os.listdir(work)) != 1 + cells:
            found["left something behind"] += 1
    return row("save, with cells" if cells else "save", found, {"old", "new"})


def save_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    yield killed(chosen, scratch, cells=False)


def cells_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    yield killed(chosen, scratch, cells=True)


def disk_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Files that may not grow beyond a limit, as on a full disk."""
    old, new = fit(300, 50, seed=1), fit(400, 50, seed=2)
    old.save(scratch / "old", save_anndata=True)
    before = held(scratch / "old")
    sizes = [path.stat().st_size for path in (scratch / "old").iterdir()]
    found: collections.Counter = collections.Counter()
    for limit in np.geomspace(1, min(sizes) - 1, 40, dtype=int):

        def save(limit: int = int(limit)) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                new.save(scratch / "old", overwrite=True, save_anndata=True)
            except OSError as error:
                os._exit(3 if str(scratch / "old") in str(error) else 1)

        status = in_process(save)
        whole = held(scratch / "old") == before and len(os.listdir(scratch / "old")) == 2
        found["old" if whole and status == 3 else f"status {status}"] += 1
    yield row("full disk", found, {"old"})


def damaged(scratch: Path, n: int, damage: Callable[[bytes, np.random.Generator], bytes]) -> Any:
    """How loading a damaged file of a model ends, by whether predictions are the same."""
    model = fit(120, 6, seed=1)
    model.save(scratch / "model")
    file = scratch / "model" / "model.pt"
    good, rng, cells = file.read_bytes(), np.random.default_rng(0), model.adata.copy()
    (layer,) = model.predict_counterfactual(["IFNb"], cells)
    want, found = cells.layers[layer].copy(), collections.Counter()
    for _ in range(n):
        file.write_bytes(damage(good, rng))
        try:
            VCI.load(file.parent, adata=False, accelerator="cpu").predict_counterfactual(
                "IFNb", cells
            )
        except Exception as error:  # noqa: BLE001
            named = str(file) in str(error)
            found[type(error).__name__ if named else f"unnamed {error!r}"] += 1
        else:
            found["same" if np.array_equal(cells.layers[layer], want) else "silent"] += 1
    return found


def flips_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    def flip(content: bytes, rng: np.random.Generator) -> bytes:
        changed = bytearray(content)
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        return bytes(changed)

    yield row("bit flips", damaged(scratch, chosen.flips, flip), {"ValueError"})


def truncations_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    def cut(content: bytes, rng: np.random.Generator) -> bytes:
        return content[: rng.integers(len(content))]

    yield row("truncations", damaged(scratch, chosen.truncations, cut), {"ValueError"})


def cost_section(chosen: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Time of saving and loading, beside that of torch and anndata alone."""
    model = fit(4000, 1000, seed=1)
    folder, bare = scratch / "model", scratch / "bare"
    bare.mkdir()
    model.save(folder)
    payload = torch.load(folder / "model.pt", weights_only=True)

    def save_with_cells() -> None:
        model.save(folder, overwrite=True, save_anndata=True)

    pairs = {
        "save": (
            lambda: model.save(folder, overwrite=True),
            lambda: torch.save(payload, bare / "model.pt"),
        ),
        "load without cells": (
            lambda: VCI.load(folder, adata=False, accelerator="cpu"),
            lambda: torch.load(bare / "model.pt", weights_only=True),
        ),
        "save with cells": (
            save_with_cells,
            lambda: model.adata.write_h5ad(bare / "adata.h5ad"),
        ),
    }
    for name, (ours, alone) in pairs.items():
        times = [
            1e3 * statistics.median(elapsed(work) for _ in range(chosen.repeats))
            for work in (ours, alone)
        ]
        yield {"section": name, "ms": round(times[0], 1), "ms alone": round(times[1], 1)}


SECTIONS: dict[str, Section] = {
    "save": save_section,
    "cells": cells_section,
    "disk": disk_section,
    "flips": flips_section,
    "truncations": truncations_section,
    "cost": cost_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=9, help="of what is timed")
    chosen = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in chosen.sections:
        with tempfile.TemporaryDirectory() as scratch:
            rows += SECTIONS[name](chosen, Path(scratch))
    print(pd.DataFrame(rows).fillna("").to_string(index=False))


if __name__ == "__main__":
    main()
