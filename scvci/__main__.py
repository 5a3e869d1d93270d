"""Entry point of ``scvci`` and ``python -m scvci``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="scvci", description="Counterfactual expression for every cell."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train, predict, plot and score on a simulation or on your data",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("scvci_demo"), help="folder to write to")
    demo.add_argument("--data", type=Path, help="an .h5ad of raw counts; omit it to simulate")
    demo.add_argument("--layer", help="layer with the counts; X by default")
    demo.add_argument("--treatment-key", default="treatment", help="column of the treatments")
    demo.add_argument("--control", default="control", help="label of the untreated cells")
    demo.add_argument(
        "--covariate-keys",
        nargs="*",
        default=[],
        help="columns within whose combinations treated and control cells compare",
    )
    demo.add_argument(
        "--max-epochs", type=int, help="most epochs; by default from the data's size"
    )
    demo.add_argument("--n-cells", type=int, default=4000, help="cells to simulate")
    demo.add_argument("--n-genes", type=int, default=400, help="genes to simulate")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are printed without a traceback."""
    options = vars(build_parser().parse_args(arguments))
    options.pop("command")
    # The libraries take seconds to load; asking for help should not.
    print("Loading libraries ...", flush=True)
    from scvci.cli import DemoOptions, run_demo

    keys = [key for item in options["covariate_keys"] for key in item.split(",") if key]
    options["covariate_keys"] = tuple(keys)
    try:
        run_demo(DemoOptions(**options))
    except (FileNotFoundError, KeyError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"scvci demo: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
