"""House rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import scvci

PACKAGE = Path(scvci.__file__).parent
PUBLIC = ["data", "datasets", "effects", "metrics", "model", "module", "pl", "pooling", "train"]
#: Which folders a folder may import from; everything may use metrics.
ALLOWED = {
    "data": {"pooling"},
    "datasets": set(),
    "effects": set(),
    # `evaluate` reads AnnData by the same names and errors; the metrics themselves take arrays.
    "metrics": {"data"},
    "pooling": set(),
    "module": {"data"},
    "train": {"module"},
    "model": {"train", "module", "data", "effects", "pooling"},
    "pl": {"model"},
    "cli": {"model", "data", "datasets", "pl"},
}


def _public_objects():
    for name in PUBLIC:
        folder = importlib.import_module(f"scvci.{name}")
        for public in folder.__all__:
            yield f"{name}.{public}", getattr(folder, public)


@pytest.mark.parametrize(("name", "item"), list(_public_objects()))
def test_public_objects_are_documented(name, item):
    if isinstance(item, dict | tuple):
        return
    doc = inspect.getdoc(item)
    assert doc, f"{name} has no docstring"
    for leftover in ("%(", "TODO", "FIXME"):
        assert leftover not in doc
    parameters = inspect.signature(item).parameters
    if not inspect.isclass(item):
        for parameter in parameters:
            if parameter not in ("args", "kwargs"):
                assert parameter in doc, f"{name} does not document {parameter}"


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_run_one_way(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scvci."):
                source = node.module.split(".")[1]
                assert source in ALLOWED[folder] | {folder, "metrics", "_version", "_names"} or (
                    # Names of tensors are shared constants.
                    node.module == "scvci.data" and node.names[0].name == "_constants"
                ), f"{path.name} imports {node.module}"


def test_files_are_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_every_module_imports():
    for module in pkgutil.walk_packages(scvci.__path__, "scvci."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_no_warning_is_raised_as_an_exception():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert getattr(node.exc.func, "id", "") not in {"Warning", "UserWarning"}
