"""The pages of the programs of examples/: what `run_gallery.py` wrote down of them, and the table of the gallery.

Sphinx-Gallery makes a page and a notebook of each program and does not run it. This adds the picture and the printed
lines to the page, gives the picture to Sphinx-Gallery as the thumbnail, and has a directive for the table,
`gallery-table`. docs/gallery/topics.json says which program is about what, in the order of the gallery.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
PICTURES = "pictures/gallery"
RESULTS = "gallery/results.json"
TOPICS = "gallery/topics.json"
PAGES = "programs"


def topics() -> list[dict[str, Any]]:
    """A row of the table each: `program`, `topic`, and the `item` of the list of topics that the gallery is to show.

    `item` is None of a program that the list does not ask for.
    """
    return json.loads((DOCS / TOPICS).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def results() -> dict[str, Any]:
    """What run_gallery.py found, by program."""
    path = DOCS / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def title_of(program: Path) -> str:
    """The first line of the docstring."""
    return (ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or program.stem).partition("\n")[0]


@cache
def _places() -> dict[str, int]:
    return {row["program"]: place for place, row in enumerate(topics())}


def others() -> str:
    """A pattern that finds the file names of programs without a topic, which get no page."""
    return rf"^(?!({'|'.join(_places())})\.py$)"


def place(filename: str) -> int:
    """Of a program in the gallery."""
    return _places()[Path(filename).stem]


def _give_thumbnails(app: Sphinx) -> None:
    """Begins with an empty folder of pages; in it a program's picture lies where Sphinx-Gallery would have put it."""
    pages = Path(app.srcdir, PAGES)
    shutil.rmtree(pages, ignore_errors=True)
    images = pages / "images"
    images.mkdir(parents=True)
    for picture in Path(app.srcdir, PICTURES).glob("*.png"):
        shutil.copy(picture, images / f"sphx_glr_{picture.stem}_001.png")


_CODE = re.compile(r"^\.\. GENERATED FROM PYTHON SOURCE LINES", re.MULTILINE)
_WITHOUT_CONTENTS = ":hide-toc:\n\n"
"""of the page beside it: code is wide"""
_END = re.compile(r"^\.\. _sphx_glr_download_", re.MULTILINE)


def _add_results(app: Sphinx, docname: str, source: list[str]) -> None:
    folder, _, name = docname.rpartition("/")
    if folder != PAGES or name == "index":
        return
    app.env.note_dependency(str(DOCS / RESULTS))
    result = results().get(name)
    if result is None:
        return
    text = source[0]
    code, end = _CODE.search(text), _END.search(text)
    assert code is not None, docname
    assert end is not None, docname
    about, blocks, downloads = text[: code.start()], text[code.start() : end.start()], text[end.start() :]
    source[0] = _WITHOUT_CONTENTS + about + _picture(name, result) + blocks + _printed(result) + downloads


def _picture(name: str, result: dict[str, Any]) -> str:
    alt = result["line"].replace("\n", " ")
    return f".. image:: /{PICTURES}/{name}.png\n   :alt: {alt}\n   :class: program-picture\n\n"


def _printed(result: dict[str, Any]) -> str:
    lines = "".join(f"   {line}\n" for line in result["printed"])
    took = f"{result['seconds']:.0f} s by the clock and {result['cpu_seconds']:.0f} s of processor time"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    said = f"It took {took}: {result['processor']}, {versions}."
    return f"**What it printed**\n\n.. code-block:: text\n\n{lines}\n{said}\n\n"


class GalleryTable(SphinxDirective):
    """Topic, program and what it found, a row each."""

    def run(self) -> list[nodes.Node]:
        for path in (RESULTS, TOPICS):
            self.env.note_dependency(str(DOCS / path))
        found = results()
        rows = [row for row in topics() if self._is_there(row["program"])]
        titles = [nodes.paragraph("", title) for title in ("", "Topic", "What it found", "Time")]
        head = nodes.thead("", self._row(titles))
        body = nodes.tbody("", *(self._row(self._cells(row, found.get(row["program"]))) for row in rows))
        columns = [nodes.colspec(colwidth=width) for width in (24, 30, 38, 8)]
        return [nodes.table("", nodes.tgroup("", *columns, head, body, cols=4), classes=["gallery-table"])]

    @staticmethod
    def _is_there(name: str) -> bool:
        there = (EXAMPLES / f"{name}.py").exists()
        if not there:
            logger.warning("%s names examples/%s.py, which is not there", TOPICS, name)
        return there

    @staticmethod
    def _row(cells: list[nodes.Element]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", cell) for cell in cells))

    def _cells(self, row: dict[str, Any], result: dict[str, Any] | None) -> list[nodes.Element]:
        name = row["program"]
        title = title_of(EXAMPLES / f"{name}.py")
        link = nodes.paragraph("", "", nodes.Text(f"{row['topic']}: "), self._link(name, nodes.Text(title)))
        if result is None:
            return [nodes.paragraph(), link, nodes.paragraph(), nodes.paragraph()]
        shown = nodes.paragraph("", "", self._link(name, nodes.image(uri=f"/{PICTURES}/{name}.png", alt=title)))
        return [shown, link, nodes.paragraph("", result["line"]), nodes.paragraph("", f"{result['seconds']:.0f} s")]

    def _link(self, name: str, content: nodes.Node) -> nodes.reference:
        page = self.env.app.builder.get_relative_uri(self.env.docname, f"{PAGES}/{name}")
        return nodes.reference("", "", content, internal=True, refuri=page)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", _give_thumbnails, priority=400)  # before Sphinx-Gallery's
    app.connect("source-read", _add_results)
    app.add_directive("gallery-table", GalleryTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
