import os
import shutil
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).parent

# The notebooks live beside the documentation, in tutorials/; Sphinx wants them inside.
_NOTEBOOKS = _HERE / "tutorials"
shutil.rmtree(_NOTEBOOKS, ignore_errors=True)
_IGNORED = shutil.ignore_patterns(".ipynb*", "*.py")
shutil.copytree(_HERE.parent / "tutorials", _NOTEBOOKS, ignore=_IGNORED)

project = "scvci"
author = "the scvci developers"
copyright = "2026, the scvci developers"
release = package_version("scvci")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = False
napoleon_use_ivar = True
# What a function returns is described in sentences.
napoleon_custom_sections = ["Returns"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
# The notebooks are kept with their outputs; the tests execute them.
nb_execution_mode = "off"

# Formulas need no network: a copy of MathJax, one file, is part of the site.
_MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js"
mathjax_path = _MATHJAX.name

# Links to other projects need the network, so that a build does not by default.
if os.environ.get("SCVCI_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    }

html_theme = "furo"
html_static_path = ["_static", str(_MATHJAX)]
html_title = "scvci"
