"""The paper's Marson experiment: 69 genes activated in primary human T cells (CRISPRa).

    python benchmarks/marson.py --smoke                   # simulated raw file, about a minute
    python benchmarks/marson.py --data FOLDER_OR_FILE     # marson_formatted_raw.h5ad
    python benchmarks/marson.py --download FOLDER         # fetches and checks it first
    python benchmarks/marson.py --rehearse --methods VCI  # full size, simulated counts

Rules are in ``paper_rules.py``, methods in ``paper_methods.py``. The table is printed, and its
rows are written to ``benchmarks/results/marson.csv``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paper_run import Study, main

from scvci.datasets import download_marson, prepare_marson, simulate_marson_raw

if TYPE_CHECKING:
    from anndata import AnnData


def smoke() -> AnnData:
    """Three targets, two of them held out of one kind of cell."""
    raw = simulate_marson_raw(n_cells=7000, n_targets=3)
    return prepare_marson(raw, n_genes=200, n_ood=2)


STUDY = Study(
    name="marson",
    control="NTC",
    covariates={
        "cell_type": ["CD4", "CD8"],
        "donor": ["Donor1", "Donor2"],
        "stimulation": ["Re-stimulated", "Resting"],
    },
    files="marson_formatted_raw.h5ad",
    prepare=prepare_marson,
    download=download_marson,
    smoke=smoke,
    n_cells=39_616,
    n_genes=2013,
    n_treatments=69,
    doses=[1.0],
    held_out=("stimulation", "Re-stimulated"),
    density=0.2,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
