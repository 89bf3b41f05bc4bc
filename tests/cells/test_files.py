"""The code of users' cells on disk: where it is, what runs, and what tracebacks and help() show."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import linecache
import pickle
import pydoc
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.cells import CELLS, Cell, files, tanh
from fastrnn.cells.emit.backends import EMITTERS
from tests.cells.zoo import ZOO


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cells"


def plain() -> Cell:
    @fastrnn.cell
    def plain(x: Any, u: Any, h: Any) -> Any:
        """A gate, and no more."""
        return h + tanh(x.a + u.a)

    return plain


def scaled(scale: float) -> Cell:
    @fastrnn.cell
    def plain(x: Any, u: Any, h: Any) -> Any:
        return h + scale * tanh(x.a + u.a)

    return plain


def file_of(cell: Cell) -> str:
    return cell.step.__code__.co_filename


def test_a_cell_has_a_folder_with_a_module_in_it(place: Path) -> None:
    cell = plain()
    (folder,) = place.iterdir()
    assert folder.name.rpartition("-")[0] == "plain"
    assert Path(file_of(cell)) == folder / "pytorch.py"
    assert [file.name for file in folder.iterdir()] == ["pytorch.py"]
    spec = importlib.util.spec_from_file_location("imported", folder / "pytorch.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.CELLS["plain"].saved == cell.saved
    assert inspect.getsource(module.PLAIN.step) == inspect.getsource(cell.step)


def test_a_folder_belongs_to_what_the_cell_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {file_of(cell) for cell in (plain(), plain(), scaled(2), scaled(3))}
    assert len(files) == len(list(place.iterdir())) == 3
    monkeypatch.setattr("fastrnn.cells.files._compiler", lambda: b"another")
    assert file_of(plain()) not in files


def test_what_runs_is_what_was_made(place: Path) -> None:
    """Whatever is in the file; it is mended."""
    path = Path(file_of(plain()))
    text = path.read_text()
    path.write_text("raise SystemExit\n")
    cell, ones = plain(), torch.ones(1, 2)
    cell.step(ones[:, None], ones[:, None], (ones,))
    assert path.read_text() == text
    before = path.stat()
    plain()
    assert path.stat() == before, "it was written although it was there"


def test_a_traceback_shows_the_line(place: Path) -> None:
    cell = plain()
    with pytest.raises(TypeError) as caught:
        cell.step(None, None, ())
    shown = "".join(traceback.format_exception(caught.value))
    assert f'{file_of(cell)}", line' in shown
    assert "(a_a,) = (gx + gh).unbind(-2)" in shown


def test_where_nothing_can_be_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    cells_made = scaled(5), scaled(6)
    assert not place.exists()
    assert all(file_of(cell).startswith("<fastrnn cell plain-") for cell in cells_made)
    linecache.checkcache()
    for cell, number in zip(cells_made, "56", strict=True):
        assert f"h_before + {number} * a" in inspect.getsource(cell.step)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Path(file_of(scaled(7))).parents[2].parent == tmp_path, "the temporary files"


def test_built_in_cells_are_not_written(place: Path) -> None:
    """Nor is anything at the import of fastrnn, which traces none."""
    program = "import sys, fastrnn; assert not {'numba', 'fastrnn.cells.lstm'} & set(sys.modules)\n"
    program += "from fastrnn.cells import lstm, gru, rnn"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not place.exists()


def test_a_cell_has_its_authors_name_and_docstring(place: Path) -> None:
    cell = plain()
    assert cell.__name__ == "plain"
    assert cell.__module__ == __name__
    assert "A gate, and no more." in pydoc.render_doc(cell)
    assert "return h + tanh(x.a + u.a)" in inspect.getsource(cell)
    assert "return h + scale" in inspect.getsource(scaled(1))


def test_every_backend_has_a_file_of_its_own() -> None:
    files = [emitter.file for emitter in EMITTERS.values()]
    assert len(set(files)) == len(files)
    program = plain().program
    assert program is not None
    assert all(emitter.text(program).endswith("\n") for emitter in EMITTERS.values())


def test_a_name_that_no_file_can_have(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system's encoding lacks a letter."""

    def fails(*_: Any, **__: Any) -> Path:
        raise UnicodeEncodeError("ascii", "\u03bb", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr(files.trust, "directory", fails)
    assert file_of(plain()).startswith("<fastrnn cell plain-")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))])
def test_a_cell_is_copied_and_pickled_as_a_function_is(copied: Any) -> None:
    cell = ZOO["mgu"]
    assert copied(cell) is cell
    assert copied(CELLS["gru"]) == CELLS["gru"]
