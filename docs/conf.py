"""How Sphinx builds the site: `sphinx-build -W docs docs/_build`. What it loads comes from the site itself."""

from __future__ import annotations

import sys
from pathlib import Path

import fastrnn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import programs  # noqa: E402

project = "fastrnn"
copyright = "the authors of fastrnn"
release = version = fastrnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "mathml",
    "programs",
    "repository_links",
]
exclude_patterns = ["_build"]
# It means programs of one name here and in examples/advanced, which gets no pages.
suppress_warnings = ["sphinx_gallery.duplicate_filename"]
highlight_language = "text"  # of blocks that name none: equations
default_role = "py:obj"  # `fastrnn.LSTM` in a docstring is a link, what names nothing is code

html_theme = "furo"
html_title = "fastrnn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"member-order": "bysource"}
autodoc_mock_imports = ["opacus"]  # large, and asked for nothing but its decorators
autodoc_typehints = "none"  # docstrings tell what each argument is, in words and shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # several arguments of one line have one description
napoleon_use_rtype = False
napoleon_custom_sections = [("Inputs", "params_style")]

# Programs take minutes to run: run_gallery.py has done it, and `programs` puts in what it wrote.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "programs",
    "plot_gallery": False,
    "ignore_pattern": programs.others(),
    "nested_sections": False,
    "within_subsection_order": "programs.place",
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
}
