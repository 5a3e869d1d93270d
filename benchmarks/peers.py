"""Other groups' methods, each in a Python environment of its own.

    uv run python benchmarks/peers.py    # make all environments ahead

Their packages pin versions that cannot be installed beside this project's. So a script in
``peers/`` runs each one as a process, in an environment that is made the first time it is asked
for, from the versions in ``peers/<name>.txt``; :mod:`exchange` is what passes between the two.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from cases import Case

SCRIPTS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent / "results" / "envs"
_HOUR = 3600.0

sys.path.insert(0, str(SCRIPTS))
from exchange import read_prediction, write_cells  # noqa: E402


@dataclass(frozen=True)
class Peer:
    """A method and what it needs.

    Attributes
    ----------
    script
        Name of its script and of its list of versions in ``peers/``.
    python
        Version of Python it runs on.
    epochs
        Its tutorial's, cut so that 6,000 cells of 500 genes take some six minutes on one core;
        steps where it counts those, 0 where nothing is trained.
    new_strata
        Whether it predicts for a stratum that has no training cells.
    new_cells
        Whether it predicts for cells that are not training cells.
    held_out
        Whether it predicts a treatment for a stratum that has no training cells of both. If not,
        its prediction there is NaN, and such pairs are not scored.
    """

    script: str
    python: str
    epochs: int
    new_strata: bool = False
    new_cells: bool = True
    held_out: bool = True


#: Peers by name.
PEERS = {
    "CPA": Peer("cpa", "3.10", epochs=200),
    "scGen": Peer("scgen", "3.12", epochs=100, new_strata=True),
    "biolord": Peer("biolord", "3.10", epochs=150, new_cells=False),
    "CellFlow": Peer("cellflow", "3.12", epochs=1000),
    "STATE": Peer("state", "3.12", epochs=2000, new_strata=True),
    "CINEMA-OT": Peer("cinemaot", "3.12", epochs=0, new_cells=False, held_out=False),
}


def predict(
    case: Case, treatments: list[str], seed: int, name: str, epochs: int | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Train a peer on a case, and predict its query cells under each treatment.

    Parameters
    ----------
    case
        What to train on and predict for.
    treatments
        Treatments to predict, the control among them.
    seed
        Seed of the peer.
    name
        Peer, one of :data:`PEERS`.
    epochs
        Passes over the training cells, or steps; the peer's own number when ``None``.

    Returns
    -------
    dict
        Expression of every query cell, by treatment.
    str
        Its scale: ``"counts"`` (expected counts) or ``"log1p"`` (log1p of counts per 10,000).
    """
    peer = PEERS[name]
    check_supported(case, name)
    python = environment(peer)
    with tempfile.TemporaryDirectory() as folder:
        for file, cells in (("train.npz", case.train), ("query.npz", case.query)):
            write_cells(Path(folder) / file, cells.X, cells.obs, cells.var_names)
        request = {
            "control": case.control,
            "treatments": treatments,
            "seed": seed,
            "epochs": epochs or peer.epochs,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request))
        run([str(python), str(SCRIPTS / f"run_{peer.script}.py"), folder], cwd=folder)
        values, scale = read_prediction(folder)
    return dict(zip(treatments, values, strict=True)), scale


def check_supported(case: Case, name: str) -> None:
    """Raise what the peer cannot do before its process fails over it less clearly."""
    peer = PEERS[name]
    new = sorted(set(case.query.obs["stratum"]) - set(case.train.obs["stratum"]))
    if new and not peer.new_strata:
        raise NotImplementedError(f"{name} cannot predict for strata it was not trained on: {new}")
    if not peer.new_cells and not case.query.obs_names.isin(case.train.obs_names).all():
        raise NotImplementedError(f"{name} cannot predict for cells it was not trained on")
    if not peer.held_out and set(case.pairs.values()) == {"held out"}:
        raise NotImplementedError(f"{name} cannot predict for pairs it has no cells of")


def environment(peer: Peer) -> Path:
    """Python of the peer's environment, which is made unless its versions are installed."""
    folder = ENVIRONMENTS / peer.script
    python = folder / "bin" / "python"
    versions = SCRIPTS / f"{peer.script}.txt"
    installed = folder / "versions.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Jobs run in parallel: one of them makes the environment and the others wait for it.
    with (folder.parent / f"{peer.script}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != versions.read_text():
            interpreter = _interpreter(peer.python)
            run(["uv", "venv", "--no-project", "--clear", "--python", interpreter, str(folder)])
            run(["uv", "pip", "install", "--python", str(python), "-r", str(versions)])
            installed.write_text(versions.read_text())
    return python


def _interpreter(version: str) -> str:
    """Return pyenv's Python of that version if there is one, else leave it to uv."""
    if shutil.which("pyenv"):
        # uv sees pyenv's shims, not the versions behind them.
        prefix = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True)
        if prefix.returncode == 0:
            return str(Path(prefix.stdout.strip()) / "bin" / "python")
    return version


def run(command: list[str], cwd: str | None = None) -> None:
    """Run a process to its end; if it fails, say the last lines it wrote."""
    # Neither this project's modules nor its environment are the peer's; nor does it need a GPU,
    # which the peers' old builds may not know.
    apart = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    apart |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=cwd, env=apart, capture_output=True, text=True, timeout=_HOUR
    )
    # The most of any process so far, this one's own size at its start included.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # from KiB, on Linux
    print(f"{Path(command[1]).name}: at most {peak:.1f} GiB of memory", file=sys.stderr)
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise RuntimeError(f"exit status {done.returncode}: {last}")


if __name__ == "__main__":
    for peer in PEERS.values():
        print(peer.script, environment(peer))
