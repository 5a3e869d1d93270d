"""House rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import scvci
from scvci.model import VCI
from scvci.module import BACKBONES, COVARIATE_TERMS, DOSE_RESPONSES, LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(scvci.__file__).parent
API = PACKAGE.parent / "docs" / "api.md"
PUBLIC = sorted(set(scvci.__all__) - {"__version__"})
#: Which folders a folder may import from.
ALLOWED = {
    "pooling": set(),
    "effects": set(),
    # `evaluate` reads AnnData by the same names and with the same errors.
    "metrics": {"data"},
    "datasets": set(),
    "data": {"pooling"},
    # Names of tensors only, see below.
    "module": {"data"},
    "train": {"data", "module"},
    "model": {"data", "module", "pooling", "train"},
    "tl": {"data", "effects", "metrics", "model", "module", "pooling", "train"},
    "pl": {"data", "model", "module", "pooling", "tl", "train"},
    "cli": {"data", "datasets", "effects", "metrics", "model", "module", "pl", "pooling", "tl"},
}
#: Files that belong to no folder.
SHARED = {"_files", "_names", "_numbers", "_version"}
#: Settings that name a kind; what follows from them is said by the kind itself.
KIND_SETTINGS = {"architecture": "kind", "config": "likelihood", "objective": "covariate_term"}
LONG_FILE = 400
_DOCUMENTS = re.compile(r"auto\w+|(py:)?(class|data|exception|function)")


def _trees(folder: str = "") -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _nodes(kind: type | tuple[type, ...], folder: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Nodes of some kinds and where they are."""
    for path, tree in _trees(folder):
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def _ours(cls: type) -> list[type]:
    """Classes of this package among those that a class inherits from."""
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] == "scvci"]


# -- what is public -------------------------------------------------------------------------------


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
    if not inspect.isclass(item):
        for parameter in inspect.signature(item).parameters:
            if parameter not in ("args", "kwargs"):
                assert parameter in doc, f"{name} does not document {parameter}"


def _documented(text: str) -> set[str]:
    """Full names that the directives of a page document, whatever their style.

    Read are ``automodule`` with its members, ``autoclass``, ``function``, ``data`` and the like,
    and the entries of ``autosummary``; names may be relative to a ``currentmodule``.
    """
    names: set[str] = set()
    module, directive, members = "scvci", "", None

    def full(name: str) -> str:
        return name if name.startswith("scvci.") else f"{module}.{name}"

    def close() -> None:
        if directive == "automodule" and members is not None:
            given = members or ", ".join(importlib.import_module(module).__all__)
            names.update(f"{module}.{member}" for member in re.findall(r"\w+", given))

    for line in [*text.splitlines(), ".. end::"]:
        start = re.match(r"\s*\.\. ([\w:]+)::\s*(\S*)", line)
        option = re.match(r"\s+:(\w[\w-]*):\s*(.*)", line)
        if start:
            close()
            directive, members = start[1], None
            if directive in ("automodule", "currentmodule", "module", "py:currentmodule"):
                module = start[2]
            elif directive != "autosummary" and _DOCUMENTS.fullmatch(directive):
                names.add(full(start[2]))
        elif option and option[1] == "members":
            members = option[2]
        elif directive == "autosummary" and re.fullmatch(r"\s+~?[\w.]+", line):
            names.add(full(line.strip().lstrip("~")))
        elif members is not None and re.fullmatch(r"\s+[\w, ]+", line):
            members += f" {line.strip()}"  # a list that goes on
    return names


def test_the_page_of_the_api_is_read_in_any_style():
    text = """
.. automodule:: scvci.train
   :members:
   :imported-members:

.. automodule:: scvci.data
   :members: Cells, Condition,
      Treatments

.. currentmodule:: scvci

.. autosummary::
   :toctree: generated

   tl.evaluate
   ~scvci.pl.forest

.. autoclass:: scvci.model.VCI
   :members: train, save
.. autofunction:: tl.check_overlap
.. py:currentmodule:: scvci.metrics
.. data:: METRICS

   Names of metrics.
"""
    assert _documented(text) == {
        *(f"scvci.train.{name}" for name in scvci.train.__all__),
        "scvci.data.Cells",
        "scvci.data.Condition",
        "scvci.data.Treatments",
        "scvci.tl.evaluate",
        "scvci.pl.forest",
        "scvci.model.VCI",
        "scvci.tl.check_overlap",
        "scvci.metrics.METRICS",
    }


@pytest.mark.skipif(not API.exists(), reason="the documentation is not beside the tests")
@pytest.mark.parametrize("folder", PUBLIC)
def test_what_is_exported_is_what_the_documentation_lists(folder):
    # Parts of a private file, such as the kinds of a setting, may be shown beside what is public.
    pattern = re.compile(rf"scvci\.{folder}\.([A-Za-z]\w*)")
    documented = {
        match[1] for match in map(pattern.fullmatch, _documented(API.read_text())) if match
    }
    exported = set(importlib.import_module(f"scvci.{folder}").__all__)
    assert not sorted(exported - documented), "exported, but not documented"
    assert not sorted(documented - exported), "documented, but not exported"


def test_no_public_function_is_taken_for_a_test():
    # Lightning's and scvi-tools' names.
    hooks = {"test_dataloader", "test_indices"}
    for name, item in _public_objects():
        methods = [m for cls in _ours(item) for m in vars(cls)] if inspect.isclass(item) else []
        names = {name.split(".")[-1], *methods} - hooks
        assert not [n for n in names if n.startswith("test_")], name
    for path, tree in _trees():
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert not [n for n in functions if n.startswith("test_")], path.name


# -- the folders ----------------------------------------------------------------------------------


def test_every_folder_has_a_place():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_run_one_way(folder):
    for where, node in _nodes((ast.Import, ast.ImportFrom), folder):
        if isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.split(".")[0] == "scvci"], where
            continue
        assert node.level < 2, f"{where} names another folder by dots"
        parts = (node.module or "").split(".")
        if node.level or parts[0] != "scvci":
            continue
        assert len(parts) > 1, f"{where} imports the whole package"
        assert parts[1] in ALLOWED[folder] | {folder} | SHARED, f"{where} imports {node.module}"
        if (folder, parts[1]) == ("module", "data"):
            assert [a.name for a in node.names] == ["_constants"], f"{where} imports {node.module}"


def test_every_module_imports():
    for module in pkgutil.walk_packages(scvci.__path__, "scvci."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_long_files_are_told():
    """A hint: a file is split where a seam is."""
    for path, _ in _trees():
        n = len(path.read_text().splitlines())
        if n > LONG_FILE:
            warnings.warn(f"{path.relative_to(PACKAGE)} has {n} lines.", UserWarning, stacklevel=1)


# -- classes --------------------------------------------------------------------------------------


def test_the_model_is_made_of_few_classes():
    assert len(_ours(VCI)) <= 6, _ours(VCI)


def test_mixins_do_not_declare_the_methods_of_others():
    """What a mixin calls is in a class that it inherits from."""
    for where, node in _nodes(ast.ClassDef, "model"):
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                assert "Callable" not in ast.unparse(item.annotation), f"{where}: {node.name}"


def _kinds() -> dict[str, str]:
    """File in which each kind, and each class of ours that it inherits from, is defined."""
    tables = (BACKBONES, COVARIATE_TERMS, DOSE_RESPONSES, LIKELIHOODS)
    classes = {base for table in tables for kind in table.values() for base in _ours(kind)}
    return {cls.__name__: inspect.getsourcefile(cls) for cls in classes}


def test_no_class_of_a_kind_is_asked_for_outside_its_file():
    kinds = _kinds()
    assert {"EffectBackbone", "Likelihood"} <= set(kinds)
    for where, node in _nodes(ast.Call):
        if getattr(node.func, "id", "") not in ("isinstance", "issubclass"):
            continue
        asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
        asked |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
        file = str(PACKAGE / where.split(":")[0])
        assert not [name for name in asked & set(kinds) if kinds[name] != file], where


def test_no_kind_is_told_by_its_name():
    """What follows from ``architecture.kind`` and its like is said by the kind's own class."""
    for where, node in _nodes((ast.Compare, ast.Match)):
        compared = (
            [node.subject] if isinstance(node, ast.Match) else [node.left, *node.comparators]
        )
        for part in compared:
            if isinstance(part, ast.Attribute):
                holder = ast.unparse(part.value).split(".")[-1]
                assert KIND_SETTINGS.get(holder) != part.attr, where


def test_no_warning_is_raised_as_an_exception():
    for where, node in _nodes(ast.Raise):
        if isinstance(node.exc, ast.Call):
            assert getattr(node.exc.func, "id", "") not in {"Warning", "UserWarning"}, where
