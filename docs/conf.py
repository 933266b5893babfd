"""The documentation as a site, which `make docs` builds. Any warning, such as a link that leads nowhere, ends that."""

from __future__ import annotations

import re
from typing import Any

from depoison import __version__

# Sphinx, because MkDocs has had no release since 2024 and its theme Material ends in 2027.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]

project = "depoison"
author = "The depoison developers"
copyright = author
release = __version__

myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
python_use_unqualified_type_names = True

mermaid_fullscreen = False
mermaid_height = "auto"

html_theme = "sphinx_book_theme"
html_title = project
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navbar_persistent": [], "use_fullscreen_button": False}


def link_home(app: Any, name: str, source: list[str]) -> None:
    """The README is the first page."""
    source[0] = re.sub(r"\]\(\.\./((\.\./)*)README\.md", r"](\1index.md", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", link_home)
