"""The API page lists what the package exports, and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import scvci

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
DIRECTIVE = re.compile(r"\.\. (currentmodule|autofunction|autoclass|data):: (\S+)")


def _listed():
    module, names = "", []
    for directive, name in DIRECTIVE.findall(PAGE.read_text()):
        if directive == "currentmodule":
            module = name
        else:
            names.append(f"{module}.{name}")
    return names


def _exported():
    for module in pkgutil.iter_modules(scvci.__path__, "scvci."):
        if module.ispkg and module.name != "scvci.cli":
            folder = importlib.import_module(module.name)
            yield from (f"{module.name}.{name}" for name in folder.__all__)


def test_page_lists_exactly_the_exported_names():
    assert sorted(_listed()) == sorted(_exported())
