"""Sphinx: the page of the public names, from their docstrings."""

import esper

project = "Esper"
version = release = esper.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "alabaster"
html_sidebars = {"**": ["localtoc.html"]}
html_theme_options = {"nosidebar": False, "page_width": "1100px"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "undoc-members": False, "exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True
