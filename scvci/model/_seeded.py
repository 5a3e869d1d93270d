"""Torch's one generator, lent to one block at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import RLock
from typing import Any

import torch

#: Torch has one generator for all threads, and layers such as dropout draw from no other: seeded
#: blocks of one process take turns. A block may hold further ones of its own thread, but must not
#: wait for another thread that is about to enter one.
_TURN = RLock()


class Seeded(AbstractContextManager):
    """Run a block under a torch seed and leave the caller's generators as they were.

    Blocks of several threads run one after the other, so that each draws what it would alone.

    Parameters
    ----------
    seed
        The seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._fork = torch.random.fork_rng()

    def __enter__(self) -> None:
        _TURN.acquire()
        try:
            self._fork.__enter__()
            torch.manual_seed(self.seed)
        except BaseException:
            _TURN.release()
            raise

    def __exit__(self, *exc: Any) -> None:
        try:
            self._fork.__exit__(*exc)
        finally:
            _TURN.release()
