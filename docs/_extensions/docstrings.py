"""Docstrings as they are written for `help()`, made fit for pages: examples have colours, files of docs/ are links."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_PAGE = re.compile(r"`docs/([\w-]+)\.md(?:#[\w-]+)?`")


def _fit(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    for place, line in enumerate(lines):
        if line == "Example::":
            lines[place] = "Example:"  # a section: what follows is a doctest and no block of text
        else:
            lines[place] = _PAGE.sub(r":doc:`/\1`", line)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _fit, priority=400)  # before napoleon, which looks for sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
