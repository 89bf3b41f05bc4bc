"""The programs of the gallery: each runs with few steps, draws its picture, and becomes a notebook.

That they learn what they say is what they assert themselves where they run whole, which docs/run_gallery.py does.
"""

from __future__ import annotations

import ast
import runpy
import sys
import types
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrnn
from benchmarks.checkout import ROOT
from tests.examples.programs import PICTURE_BYTES

matplotlib = pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt  # noqa: E402

FOLDER = ROOT / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))
LINES = 120
every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program may set what all of its process shares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    threads, backend = torch.get_num_threads(), plt.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
    torch.set_num_threads(threads)


def run(program: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(program), *arguments])
    runpy.run_path(str(program), run_name="__main__")


@every_program
def test_a_few_steps(program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with fastrnn.use_backend("reference"):  # kernels of their cells take longer to compile than all else here
        run(program, monkeypatch, "--steps", "2", "--picture", "drawn.png")
    picture = Path("drawn.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < PICTURE_BYTES
    assert capsys.readouterr().out.strip()
    assert {path.stem for path in Path().iterdir()} == {"drawn"}  # a page may lie beside it


@every_program
def test_the_command_line(program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        run(program, monkeypatch, "--help")
    told = capsys.readouterr().out
    assert "--steps" in told
    assert "--picture" in told
    with pytest.raises(SystemExit, match=r"^2$"):
        run(program, monkeypatch, "--steps", "0")
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err


@every_program
def test_it_is_read_in_one_sitting(program: Path) -> None:
    text = program.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    title, underline, *_ = (ast.get_docstring(ast.parse(text)) or "\n").splitlines()
    assert set(underline) == {"="}
    assert len(underline) >= len(title) > 0


def notebook(program: Path) -> list[dict[str, Any]]:
    """The cells of the notebook that the site gives of a program."""
    gallery, converter = (
        pytest.importorskip("sphinx_gallery.gen_gallery"),
        pytest.importorskip("sphinx_gallery.notebook"),
    )
    parser = pytest.importorskip("sphinx_gallery.py_source_parser")
    _, blocks = parser.split_code_and_text_blocks(str(program))
    cells: list[dict[str, Any]] = converter.jupyter_notebook(
        blocks, deepcopy(gallery.DEFAULT_GALLERY_CONF), str(FOLDER)
    )["cells"]
    return cells


@every_program
def test_the_notebook_has_text_and_code(program: Path) -> None:
    cells = notebook(program)
    assert "".join(cells[0]["source"]).startswith("\n# ")
    assert sum(cell["cell_type"] == "code" for cell in cells) > 1


def test_a_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook(FOLDER / "hello.py"):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert Path("hello.png").exists()
