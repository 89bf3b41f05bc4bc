"""The pages of the documentation and README: their Python blocks run as written, and their pictures are there.

The blocks of a page run in order in one namespace, in an empty directory: `python` ones by themselves, `pycon` ones as
doctests, whose errors may end in three dots.
"""

from __future__ import annotations

import doctest
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pytest
import torch
from markdown_it import MarkdownIt

import fastrnn
from benchmarks.checkout import ROOT
from tests.examples.programs import PICTURE_BYTES

DOCS = ROOT / "docs"
ELSEWHERE = ("cells.md", "design.md", "equations.md", "history.md")
"""Pages that another test runs, or whose Python stands for code that is elsewhere."""
NEEDS = {"onnx-and-keras.md": ("onnx", "onnxscript", "onnxruntime", "keras")}
"""Packages without which the blocks of a page are skipped."""
OTHER_CELLS = ("README.md", "audio.md", "faq.md", "overfitting.md", "own-cells.md", "start.md", "is-it-for-me.md")
"""Pages with cells whose kernels take longer to compile than all else of them: the reference computes."""
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
PICTURES = DOCS / "pictures"
DRAWING = sorted(PICTURES.glob("draw_*.py"))


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int
    """of its fence, from 0"""
    code: str


def blocks(page: Path) -> Iterator[Block]:
    """Python's, also those within colon fences, whose text is Markdown again."""
    for token in MarkdownIt().parse(re.sub(r"^:{3,}.*$", "", page.read_text(), flags=re.MULTILINE)):
        if token.type == "fence" and token.info in ("python", "pycon"):
            assert token.map is not None
            yield Block(token.info, token.map[0], token.content)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Line numbers of errors are those of the page."""
    if block.language == "python":
        exec(compile("\n" * (block.line + 1) + block.code, named(page), "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(block.code, {}, named(page), str(page), block.line + 1)
    test.globs = namespace
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


PROGRAMS = [page for page in PAGES if page.name not in ELSEWHERE and any(blocks(page))]


@pytest.mark.parametrize("page", PROGRAMS, ids=named)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None) -> None:
    missing = [name for name in NEEDS.get(page.name, ()) if find_spec(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    # Graphs are what pages are about; the code that inductor makes of them takes a compiler, and longer.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with fastrnn.use_backend("reference") if page.name in OTHER_CELLS else nullcontext():
        for block in blocks(page):
            run(page, block, namespace)


@pytest.mark.parametrize(
    ("code", "raises"),
    [("1 / 0", ZeroDivisionError), ("assert y == 1", NameError), ("assert x == 2", AssertionError)],
)
def test_a_block_that_fails_is_found(code: str, raises: type[Exception], tmp_path: Path) -> None:
    page = DOCS / "index.md"
    with pytest.raises(raises):
        run(page, Block("python", 0, code), {"x": 1})


def test_a_doctest_that_fails_is_found() -> None:
    page, namespace = DOCS / "index.md", {"x": 1}
    run(page, Block("pycon", 0, ">>> x\n1\n>>> {}[x]\nTraceback (most recent call last):\nKeyError: ...\n"), namespace)
    with pytest.raises(AssertionError, match="Expected"):
        run(page, Block("pycon", 0, ">>> x\n2\n"), namespace)


def test_blocks_within_directives_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n::::{grid} 2\n:::{card} B\n```python\nx = 1\n```\n:::\n::::\n\n```text\ny\n```\n")
    assert [block.code for block in blocks(page)] == ["x = 1\n"]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pages_show_files_that_are_there(page: Path) -> None:
    """Links between pages of the site are `links.py`'s business."""
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)|^:img-top: (\S+)", page.read_text(), flags=re.MULTILINE):
        shown = next(filter(None, target))
        assert "://" in shown or (page.parent / shown).is_file(), shown


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=named)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, place = target.partition("#")
        file = page.parent / path if path else page
        assert "://" in target or file.exists(), target
        if place and file.suffix == ".md" and "://" not in target:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("program", DRAWING, ids=lambda program: program.stem)
def test_pictures_are_drawn_by_their_programs(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of the folder, to which they write."""
    folder = tmp_path / "docs" / "pictures"
    shutil.copytree(PICTURES, folder, ignore=shutil.ignore_patterns("*.svg", "*.png", "__pycache__", "gallery"))
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(str(folder))
    loaded = set(sys.modules)
    try:
        with mpl.rc_context():
            runpy.run_path(str(folder / program.name), run_name="__main__")
    finally:
        for helper in folder.glob("*.py"):
            if helper.stem not in loaded:
                sys.modules.pop(helper.stem, None)
    drawn = [path for path in folder.iterdir() if path.suffix == ".svg"]
    assert drawn
    for path in drawn:
        committed = PICTURES / path.name
        assert 0 < committed.stat().st_size < PICTURE_BYTES
        if f"matplotlib=={mpl.__version__}\n" in (ROOT / ".ci" / "constraints.txt").read_text():
            assert coordinates(committed) == pytest.approx(coordinates(path), abs=0.01)


def coordinates(picture: Path) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", picture.read_text())]


def test_every_picture_has_its_program() -> None:
    text = "".join(program.read_text() for program in DRAWING)
    for picture in PICTURES.glob("*.svg"):
        assert f'"{picture.stem}"' in text, picture
