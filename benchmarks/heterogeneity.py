"""Test of effect heterogeneity: how often it rejects, and whether it finds the right genes.

Simulated experiments in which the effects on cells are known. Without heterogeneity the treatment
multiplies a gene's expression by the same factor in every cell of a stratum; the composition of
the counts is then the only thing that differs. Rejection rates are of strata (one test of all
genes, one of the strength of the response) and of genes, at 5%, with the default margin and with
none; genes with q < 0.1 are compared with those whose true log-fold change varies between cells.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import numpy as np
import pandas as pd
import torch
from scipy import stats

import scvci
from scvci import tl
from scvci.model import VCI

#: Heterogeneity and inverse dispersion of the experiments; the last is as good as Poisson.
EXPERIMENTS = [(0.0, 5.0), (0.0, 1e6), (0.5, 5.0), (1.0, 5.0), (2.0, 5.0)]
#: Standard deviation of true log-fold changes from which a gene counts as one that differs; the
#: default margin of the test.
RELEVANT = 0.1


def run(heterogeneity: float, inverse_dispersion: float, seed: int, epochs: int) -> pd.DataFrame:
    """Table of one experiment, with the true standard deviation of each gene's effect."""
    adata = scvci.datasets.simulate_perturbation(
        n_cells=1200,
        n_genes=100,
        n_strata=2,
        n_treatments=2,
        heterogeneity=heterogeneity,
        inverse_dispersion=inverse_dispersion,
        depth=3000,
        seed=seed,
    )
    VCI.setup_anndata(adata, layer="counts", categorical_covariate_keys=["cell_type"])
    model = VCI(adata, n_latent=6, seed=seed)
    options = {"accelerator": "cpu", "enable_progress_bar": False}
    model.train(max_epochs=1, **options)
    table = tl.heterogeneity_test(
        model, "IFNb", n_folds=3, show_progress=False, max_epochs=epochs, **options
    )
    table["truth"] = np.nan
    log_fold = np.log(adata.layers["true_IFNb"] / adata.layers["true_control"])
    for stratum in model.strata:
        own = log_fold[(adata.obs["cell_type"] == stratum).to_numpy()]
        centred = own - own.mean(axis=0)
        # What all genes share is the composition.
        truth = (centred - np.median(centred, axis=1, keepdims=True)).std(axis=0)
        genes = (table["stratum"] == stratum) & table["gene"].isin(adata.var_names)
        table.loc[genes, "truth"] = truth
    return table


def summarise(tables: list[pd.DataFrame]) -> dict[str, float]:
    """Rates over strata and genes, and agreement with the truth."""
    rows = pd.concat(tables).dropna(subset="estimate")
    z = rows["estimate"] / rows["std_error"]
    rows = rows.assign(no_margin=stats.norm.sf(z) < 0.05, rejected=rows["p_value"] < 0.05)
    joint, signature = (rows[rows["gene"] == name] for name in ("all", "signature"))
    genes = rows.dropna(subset="truth")
    found, differs = genes["q_value"] < 0.1, genes["truth"] > RELEVANT
    return {
        "all": joint["rejected"].mean(),
        "all, no margin": joint["no_margin"].mean(),
        "signature": signature["rejected"].mean(),
        "genes": genes["rejected"].mean(),
        "genes, no margin": genes["no_margin"].mean(),
        "estimate": joint["estimate"].mean(),
        "leakage": joint["leakage"].mean(),
        "listed": found.sum() / len(joint),
        "right": differs[found].mean(),
        "recall": found[differs].mean(),
        "r truth": np.corrcoef(genes["truth"], genes["confirmed_sd"])[0, 1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    start = time.perf_counter()
    table = {}
    for heterogeneity, inverse_dispersion in EXPERIMENTS:
        tables = [
            run(heterogeneity, inverse_dispersion, seed, arguments.epochs)
            for seed in range(arguments.seeds)
        ]
        table[heterogeneity, inverse_dispersion] = summarise(tables)
    result = pd.DataFrame(table).T.rename_axis(["heterogeneity", "inverse dispersion"])
    print(result.round(3).to_string())
    print(f"{arguments.seeds} seeds, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
