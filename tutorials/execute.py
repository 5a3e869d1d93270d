"""Execute the notebooks of this folder and store them with their outputs.

Run ``python tutorials/execute.py [NAME ...]`` after a change that the notebooks show, and look at
the figures. Warnings and messages of progress are not stored.
"""

from __future__ import annotations

import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
    """Execute a notebook in an empty folder, and store it.

    Parameters
    ----------
    path
        The notebook; it is overwritten.
    """
    notebook = nbformat.read(path, as_version=4)
    metadata = deepcopy(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        options = {"timeout": 900, "record_timing": False}
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        execute(FOLDER / f"{name}.ipynb")
