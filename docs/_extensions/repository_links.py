"""Links from a page to a Markdown file outside docs/, as ../CONTRIBUTING.md, lead to a copy of the file.

MyST takes any file of that name for a page; `path:` before it says that it is none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"\]\((\.\./[^)\s#]+\.md)(#[^)\s]*)?\)")


def _say_which_are_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    page = app.env.doc2path(docname)
    if page.suffix != ".md":
        return

    def link(found: re.Match[str]) -> str:
        target = (page.parent / found[1]).resolve()
        return found[0] if target.is_relative_to(Path(app.srcdir).resolve()) else f"](path:{found[1]})"

    source[0] = _LINK.sub(link, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _say_which_are_outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
