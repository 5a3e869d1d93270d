"""The notebooks run from top to bottom, and are stored with what they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
CLEAN = "import matplotlib.pyplot\nmatplotlib.pyplot.close('all')\n%reset -f"

of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel, emptied before each notebook: imports take as long as a notebook."""
    with pytest.MonkeyPatch.context() as patch:
        # numba would raise the number of torch's threads to that of the cores.
        patch.setenv("NUMBA_NUM_THREADS", "1")
        manager, client = start_new_kernel(cwd=str(tmp_path_factory.mktemp("tutorials")))
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _n_pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in _outputs(notebook))


@of_each
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    n_pictures = _n_pictures(notebook)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(CLEAN))
    NotebookClient(notebook, km=kernel, timeout=900).execute()
    assert _n_pictures(notebook) == n_pictures


@of_each
def test_notebook_is_stored_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), "not executed from top to bottom"
    assert _n_pictures(notebook) >= 2
    for output in _outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", "warnings or progress are stored"
