"""Files are written whole or not at all."""

from __future__ import annotations

import os

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvci._files import write_h5ad, write_whole
from scvci.pl._panels import finish


def test_a_file_takes_the_place_of_another_when_it_is_complete(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    path.chmod(0o640)

    def fail(part):
        part.write_text("half")
        assert path.read_text() == "old"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"table\.csv cannot be written \(No space left"):
        write_whole(path, fail)
    assert os.listdir(tmp_path) == ["table.csv"]
    (tmp_path / ".scvci-part-0123abcd-table.csv").write_text("left by a killed process")
    (tmp_path / ".scvci-part-0123abcd-other.csv").write_text("of another file")
    write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == [".scvci-part-0123abcd-other.csv", "table.csv"]


@pytest.mark.parametrize("name", ["plot.pdf", "plot"])
def test_plots_have_the_format_of_their_name(tmp_path, name):
    _, ax = plt.subplots()
    finish(ax, False, tmp_path / name, False, False)
    plt.close("all")
    (file,) = tmp_path.iterdir()
    assert file.name == (name if "." in name else "plot.png")
    assert file.read_bytes()[:4] == (b"%PDF" if "." in name else b"\x89PNG")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_cells_come_back_as_anndata_writes_them(tmp_path, options, rng):
    cells = anndata.AnnData(
        sparse.random(20, 5, 0.4, format="csr", rng=rng),
        obs=pd.DataFrame({"text": ["a", "b"] * 10}, index=[f"cell{i}" for i in range(20)]),
        layers={"dense": rng.normal(size=(20, 5))},
        obsm={"frame": pd.DataFrame({"x": range(20)}, index=[f"cell{i}" for i in range(20)])},
        uns={"nothing": None, "deep": {"number": 1.5, "names": np.array(["a", "b"])}},
    )
    cells.raw = cells.copy()
    write_h5ad(tmp_path / "ours.h5ad", cells, **options)
    cells.write_h5ad(tmp_path / "theirs.h5ad", **options)
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    pd.testing.assert_frame_equal(ours.obsm["frame"], theirs.obsm["frame"])
    for name in ("X", "dense", "raw"):
        found, expected = (
            a.raw.X if name == "raw" else a.X if name == "X" else a.layers[name]
            for a in (ours, theirs)
        )
        assert type(found) is type(expected)
        np.testing.assert_array_equal(
            *(x if name == "dense" else x.toarray() for x in (found, expected))
        )
    assert ours.uns["nothing"] is None
    assert ours.uns["deep"]["number"] == 1.5
    assert ours.uns["deep"]["names"].tolist() == ["a", "b"]
