"""Sphinx: the page of the public names, from their docstrings."""

import re
from typing import Any

import esper

project = "Esper"
version = release = esper.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "alabaster"
html_sidebars = {"**": ["localtoc.html"]}
html_theme_options = {"nosidebar": False, "page_width": "1240px", "body_max_width": "none"}
html_show_copyright = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "undoc-members": False, "exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def readable(*event: Any) -> tuple[str | None, str | None]:
    """A signature without defaults that are no Python, such as ``<factory>``: Sphinx cannot lay it out with them."""
    signature, returns = event[-2:]
    return signature and re.sub(r"<factory>|<function \w+>", "...", signature), returns


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", readable)
