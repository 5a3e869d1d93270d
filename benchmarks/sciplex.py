"""The paper's Sciplex experiment: 188 drugs at four doses in three cell lines.

    python benchmarks/sciplex.py --smoke                   # simulated raw files, about a minute
    python benchmarks/sciplex.py --data FOLDER_OR_FILES    # sciplex_raw_chunk_{0..4}.h5ad
    python benchmarks/sciplex.py --download FOLDER         # fetches and checks them first
    python benchmarks/sciplex.py --rehearse --methods VCI  # full size, simulated counts

Rules are in ``paper_rules.py``, methods in ``paper_methods.py``. The table is printed, and its
rows are written to ``benchmarks/results/sciplex.csv``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paper_run import Study, main

from scvci.datasets import download_sciplex, prepare_sciplex, simulate_sciplex_raw

if TYPE_CHECKING:
    from anndata import AnnData


def smoke() -> AnnData:
    """Three drugs, one of them held out of one cell line."""
    raw = simulate_sciplex_raw(n_drugs=3)
    return prepare_sciplex(raw, n_genes=200, fraction=1.0, n_ood=1)


STUDY = Study(
    name="sciplex",
    control="Vehicle",
    covariates={"cell_type": ["A549", "K562", "MCF7"], "replicate": ["rep1", "rep2"]},
    files="sciplex_raw_chunk_*.h5ad",
    prepare=prepare_sciplex,
    download=download_sciplex,
    smoke=smoke,
    n_cells=122_278,
    n_genes=2000,
    n_treatments=188,
    doses=[0.001, 0.01, 0.1, 1.0],
    held_out=("cell_type", "MCF7"),
    density=0.1,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
