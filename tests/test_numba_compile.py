"""Kernels on disk: compiled once, found again, and no worse than a warning where nothing can be kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", exc_type=ImportError)

from fastrnn.backends.numba import compile as kernels  # noqa: E402

CALL = """
import sys, torch
from fastrnn.backends.numba.compile import kernel
import fastrnn
assert "numba" not in sys.modules, "importing fastrnn imported numba"
for _ in range(2):
    assert kernel("rnn_relu", "pack", torch.float32).address
import numba
assert numba.config.CACHE_DIR == sys.argv[1]
"""


def call(environment: dict[str, str], numba_directory: str = "") -> subprocess.CompletedProcess[str]:
    """Loads one kernel twice in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name not in ("FASTRNN_CACHE_DIR", "NUMBA_CACHE_DIR")}
    result = subprocess.run(
        [sys.executable, "-c", CALL, numba_directory], env=clean | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result


def test_compiled_once_and_kept(tmp_path: Path) -> None:
    first = call({"FASTRNN_CACHE_DIR": str(tmp_path)})
    (directory,) = tmp_path.iterdir()
    assert first.stderr == f"fastrnn: compiling the kernel pack float32, once; it is kept in {directory}\n"
    assert [path.name.split(".")[0] for path in directory.iterdir()] == ["pack_float32"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert call({"FASTRNN_CACHE_DIR": str(tmp_path)}).stderr == ""
    (kept,) = directory.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert "is unreadable and will be replaced" in call({"FASTRNN_CACHE_DIR": str(tmp_path)}).stderr
    assert call({"FASTRNN_CACHE_DIR": str(tmp_path)}).stderr == ""


def test_other_directories(tmp_path: Path) -> None:
    numbas, users = tmp_path / "numba", tmp_path / "user"
    call({"NUMBA_CACHE_DIR": str(numbas)}, str(numbas))
    call({"XDG_CACHE_HOME": str(users)})
    assert list(numbas.glob("kernels-*/pack_float32*"))
    assert list(users.glob("fastrnn/kernels-*/pack_float32*"))


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    blocked, temporary = tmp_path / "a file", tmp_path / "tmp"
    blocked.touch()
    temporary.mkdir()
    result = call({"FASTRNN_CACHE_DIR": str(blocked), "TMPDIR": str(temporary)})
    assert f"cannot write to {blocked}: kernels are kept in {temporary}" in result.stderr
    assert list(temporary.glob("fastrnn-*/kernels-*/pack_float32*"))


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_make_private", lambda directory: False)
    with pytest.warns(UserWarning, match="kernels are compiled anew in every process"):
        assert kernels.cache_directory.__wrapped__() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX owners")
def test_another_users_directory_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert not kernels._make_private(tmp_path)


def test_the_directory_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, fingerprint = kernels._sources(), kernels._fingerprint()
    for source in [*kernels.SOURCES.glob("*.py"), *kernels.SOURCES.glob("kernels/*.py")]:
        copy = tmp_path / source.relative_to(kernels.SOURCES)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    assert kernels._sources() == before
    with (tmp_path / "kernels" / "cells.py").open("a") as file:
        file.write("\n")
    assert kernels._sources() != before
    assert kernels._fingerprint() == fingerprint, "a change on disk after the import is not what runs"


RUN = """
import sys, torch, fastrnn
x = torch.randn(4, 3, 5, dtype=torch.float64)
for kind in sys.argv[1:]:
    module = getattr(fastrnn, kind)(5, 6, dtype=torch.float64)
    with torch.inference_mode(), fastrnn.use_backend("reference"):
        expected = module(x)[0]
    with torch.inference_mode(), fastrnn.use_backend("numba"):
        torch.testing.assert_close(module(x)[0], expected, rtol=1e-9, atol=1e-9)
"""


def test_kernels_of_several_processes_stay_apart(tmp_path: Path) -> None:
    """What two processes compiled, a third one loads: each cell runs its own code, in either order."""
    environment = os.environ | {"FASTRNN_CACHE_DIR": str(tmp_path)}
    for kinds in (["LSTM"], ["RNN"], ["LSTM", "RNN"], ["RNN", "LSTM"]):
        result = subprocess.run([sys.executable, "-c", RUN, *kinds], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
