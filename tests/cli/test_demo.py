"""The demo in one command, on the simulation and on a user's file."""

from __future__ import annotations

import subprocess
import sys
import warnings

import anndata
import pandas as pd
import pytest
import scanpy as sc

import scvci
from scvci.__main__ import main

FILES = {
    "counterfactuals.h5ad",
    "effects.png",
    "metrics.csv",
    "training_curves.png",
    "umap.png",
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_simulation(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--n-cells", "400", "--n-genes", "40", "--max-epochs", "3", "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    adata = anndata.read_h5ad(out / "counterfactuals.h5ad")
    assert "counterfactual_IFNb" in adata.layers
    sc.pl.dotplot(
        adata,
        list(adata.var_names[:2]),
        groupby="cell_type",
        layer="counterfactual_IFNb",
        return_fig=True,
    )
    table = pd.read_csv(out / "metrics.csv", index_col=0)
    assert list(table.index) == ["VCI", *scvci.metrics.BASELINES]
    assert "ite_corr (held out)" in table
    printed, errors = capsys.readouterr()
    assert "the best baseline" in printed
    # One line for each step, and no frame of a progress bar where there is no terminal.
    lines = printed.splitlines()
    assert lines[0].startswith("Loading libraries")
    assert "Simulating 400 cells of 40 genes ..." in lines
    assert any(line.startswith("Trained for 3 epochs") for line in lines)
    for frame in ("\r", "Epoch ", "it/s"):
        assert frame not in printed + errors


def test_help_loads_no_library():
    code = (
        "import sys; from scvci.__main__ import build_parser; build_parser().format_help(); "
        "sys.exit('torch' in sys.modules or 'scanpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_file(adata, tmp_path, capsys):
    """Other column names, counts in X; scores need no known counterfactual."""
    own = anndata.AnnData(adata.X, obs=adata.obs[["treatment", "cell_type"]], var=adata.var)
    own.obs.columns = ["drug", "tissue"]
    own.obs["drug"] = own.obs["drug"].cat.rename_categories({"control": "DMSO"})
    own.write_h5ad(tmp_path / "own.h5ad")
    arguments = [
        "--data",
        str(tmp_path / "own.h5ad"),
        "--treatment-key",
        "drug",
        "--control",
        "DMSO",
        "--covariate-keys",
        "tissue",
        "--max-epochs",
        "3",
        "--out",
    ]
    assert main(["demo", *arguments, str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "metrics.csv", index_col=0)
    assert "mean of the pair" in table.index
    assert set(table.columns) == {"r2_delta", "pearson_delta"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.h5ad"], "no file nowhere.h5ad"),
        (["--data", "own.h5ad", "--treatment-key", "drug"], "no column 'drug'"),
    ],
)
def test_errors_are_sentences(adata, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("own.h5ad")
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
