import os
import shutil
from importlib.metadata import version as package_version
from pathlib import Path

_HERE = Path(__file__).parent

# The notebooks live beside the documentation, in tutorials/; Sphinx wants them inside.
_NOTEBOOKS = _HERE / "tutorials"
shutil.rmtree(_NOTEBOOKS, ignore_errors=True)
shutil.copytree(_HERE.parent / "tutorials", _NOTEBOOKS, ignore=shutil.ignore_patterns(".ipynb*"))

project = "scvci"
author = "the scvci developers"
copyright = "2026, the scvci developers"
release = package_version("scvci")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
# The notebooks are executed by the tests and kept without outputs.
nb_execution_mode = "off"

# Links to other projects need the network, so that a build does not by default.
if os.environ.get("SCVCI_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    }

html_theme = "furo"
html_static_path = ["_static"]
html_title = "scvci"
