"""Kernels of users' cells: found again on disk, and never mistaken for those of other cells or other texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("numba", exc_type=ImportError)

import fastrnn
from fastrnn.backends.numba import cell_code, kernel_files
from fastrnn.backends.numba.compile import _build
from fastrnn.backends.numba.kernel_files import Places
from fastrnn.cells import mix, sigmoid, tanh
from fastrnn.cells.emit import numba as emitter
from fastrnn.cells.emit.backends import EMITTERS, Emitter
from fastrnn.cells.known import known


def two_of_one_name() -> list[str]:
    """Their names in `KNOWN`."""

    def first() -> Any:
        @fastrnn.cell
        def twin(x: Any, u: Any, h: Any) -> Any:
            return tanh(x.a + u.a)

        return twin

    def second() -> Any:
        @fastrnn.cell
        def twin(x: Any, u: Any, h: Any) -> Any:
            return sigmoid(x.a + u.a)

        return twin

    return [known(make()).key for make in (first, second)]


@fastrnn.cell
def ünüsual_name_which_is_longer_than_file_names_should_be(x: Any, h: Any) -> Any:
    return mix(sigmoid(x.z), x.n, h)


def symbols(name: str) -> set[str]:
    kernel = cell_code.cell_code(name).kernel
    return {function.py_func.__qualname__ for function in (kernel.step, kernel.derivative)}


def test_cells_of_one_name_share_no_file_and_no_symbol() -> None:
    one, two = two_of_one_name()
    assert cell_code.cell_code(one).title == cell_code.cell_code(two).title == "twin"
    assert cell_code.cell_code(one).file != cell_code.cell_code(two).file
    assert not symbols(one) & symbols(two)


def test_an_emitter_that_changes_loads_no_stale_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    name = two_of_one_name()[0]
    before = cell_code.cell_code(name).file
    changed = Emitter("numba.py", lambda programs, about: emitter.module(programs, about) + "# Another compiler.\n")
    monkeypatch.setitem(EMITTERS, "numba", changed)  # type: ignore[arg-type]
    after = cell_code.cell_code.__wrapped__(name).file
    assert after != before
    assert after[:17] == before[:17]  # which cell it is


def test_a_file_whatever_the_cell_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = known(ünüsual_name_which_is_longer_than_file_names_should_be)
    monkeypatch.setattr(kernel_files, "places", lambda: Places((tmp_path,), tmp_path))
    assert _build(cell.key, "pointwise", torch.float32).address
    assert f"compiling the kernel {cell.name} pointwise float32, once" in capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert file.name.isascii()
    assert file.name.startswith("_n_sual_name_which_is_longer_tha")
    assert _build(cell.key, "pointwise", torch.float32).address
    assert capsys.readouterr().err == ""


RUN = """
import sys, torch
from fastrnn.backends.numba import step
from fastrnn.cells.known import KNOWN
from tests.backends.test_numba_cell_code import two_of_one_name
names = two_of_one_name()
x, h, w = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4, 4)
for number in map(int, sys.argv[1:]):
    cell = KNOWN[names[number]]
    (after, *_), _ = step.forward(names[number], x, (h,), [w, w])
    (expected,), _ = cell.step((x @ w.T)[:, None], (h @ w.T)[:, None], (h,))
    torch.testing.assert_close(after, expected)
"""


@pytest.mark.exhaustive
def test_what_processes_compiled_of_cells_of_one_name_stays_apart(tmp_path: Path) -> None:
    """The one compiled here, the other loaded from disk, and both loaded, in either order."""
    environment = os.environ | {"FASTRNN_CACHE_DIR": str(tmp_path)}
    for numbers in ("0", "01", "01", "10"):
        run = [sys.executable, "-c", RUN, *numbers]
        result = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
