"""Command line."""

from ._demo import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
