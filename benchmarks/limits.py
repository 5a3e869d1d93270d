"""How well held-out pairs of the simulator can be predicted at all.

    uv run python benchmarks/limits.py --seeds 5

What is particular to a (treatment, stratum) cannot be known without its cells. The limit knows
everything else: every cell's latent state, and the simulator's parameters but for that deviation.
Who has to learn the effect from the n strata that were measured also carries over the mean of
their deviations, which adds 1/n of the limit's error.
"""

from __future__ import annotations

import argparse

import pandas as pd
from cases import REGIMES

from scvci.datasets import simulate_perturbation
from scvci.metrics import log_normalise, per_cell_mse, pseudobulk, r2_delta


def limits(regime: str, seed: int) -> pd.DataFrame:
    """Scores of the limit on the held-out pairs of one simulation."""
    settings = {"held_out": 2, "seed": seed, **REGIMES[regime]}
    adata = simulate_perturbation(**settings)
    # The same draws of everything, with the deviations of pairs multiplied by zero.
    twin = simulate_perturbation(**{**settings, "stratum_interaction": 0.0})
    rows = []
    for treatment, stratum in adata.uns["simulation"]["held_out"]:
        cells = (adata.obs["cell_type"] == stratum).to_numpy()
        true, guess, control = (
            source.layers[f"true_{t}"][cells]
            for source, t in ((adata, treatment), (twin, treatment), (adata, "control"))
        )
        n_measured = adata.obs.loc[adata.obs["treatment"] == treatment, "cell_type"].nunique()
        rows.append(
            {
                "regime": regime,
                "seed": seed,
                "r2_delta": r2_delta(pseudobulk(true), pseudobulk(guess), pseudobulk(control)),
                "mse": per_cell_mse(log_normalise(true), log_normalise(guess)),
                "n_measured": n_measured,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regimes", nargs="+", default=["default"], choices=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    table = pd.concat(limits(r, s) for r in chosen.regimes for s in range(chosen.seeds))
    learned = 1 + 1 / table["n_measured"]
    table["mse_learned"] = table["mse"] * learned
    table["r2_learned"] = 1 - (1 - table["r2_delta"]) * learned
    by_seed = table.groupby(["regime", "seed"]).mean()
    with pd.option_context("display.float_format", "{:.4f}".format):
        print(by_seed.groupby("regime").agg(["mean", "std"]).to_string())


if __name__ == "__main__":
    main()
