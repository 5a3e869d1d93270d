"""Files of checkpoints: whole, plain, of this training."""

from __future__ import annotations

import os

import pytest
import torch

from scvci.train._resume import WholeFiles, digest


def test_a_file_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "file"
    files = WholeFiles({"seed": 1, "cells": digest(b"a")})
    files.save_checkpoint({"weights": torch.arange(3), "epoch": 2**100}, path)
    found = files.load_checkpoint(path)
    assert found["epoch"] == 2**100
    assert torch.equal(found["weights"], torch.arange(3))
    assert os.listdir(path.parent) == ["file"]
    other = WholeFiles({"seed": 2, "cells": digest(b"b"), "lr": 0.1})
    with pytest.raises(ValueError, match=r"seed \(1 then, 2 now\); cells; lr \(None then"):
        other.load_checkpoint(path)
    files.remove_checkpoint(path)
    assert not path.exists()


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path, files = tmp_path / "file", WholeFiles({})
    files.save_checkpoint({"epoch": 1}, path)
    with pytest.raises(ValueError, match="more than tensors and plain data"):
        files.save_checkpoint({"epoch": object()}, path)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save_checkpoint({"epoch": 2}, path)
    assert files.load_checkpoint(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_told_apart_by_where_parts_end():
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
