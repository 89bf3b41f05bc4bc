"""Kernels on disk: compiled once, found again, and no worse than a warning where nothing can be kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", exc_type=ImportError)

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


def start(environment: dict[str, str], numba_directory: str = "") -> subprocess.Popen[str]:
    """Loads one kernel twice in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name not in ("FASTRNN_CACHE_DIR", "NUMBA_CACHE_DIR")}
    command = [sys.executable, "-c", CALL, numba_directory]
    return subprocess.Popen(command, env=clean | environment, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    """What a process wrote to stderr until it ended well."""
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def call(environment: dict[str, str], numba_directory: str = "") -> str:
    return said(start(environment, numba_directory))


@pytest.mark.exhaustive
def test_compiled_once_and_kept(tmp_path: Path) -> None:
    environment = {"FASTRNN_CACHE_DIR": str(tmp_path)}
    first = call(environment)
    (directory,) = tmp_path.iterdir()
    assert first == f"fastrnn: compiling the kernel pack float32, once; it is kept in {directory}\n"
    assert [path.name.split(".")[0] for path in directory.iterdir()] == ["pack_float32"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert call(environment) == ""
    (kept,) = directory.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    # Two processes at once replace it, to which a warning is an error.
    both = [start(environment | {"PYTHONWARNINGS": "error:fastrnn"}) for _ in range(2)]
    assert f"fastrnn: {kept} is not used: it is damaged\nfastrnn: compiling" in "".join(map(said, both))
    assert call(environment) == ""
    assert list(directory.iterdir()) == [kept]


@pytest.mark.exhaustive
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
    assert f"cannot write to {blocked}: kernels are kept in {temporary}" in result
    assert list(temporary.glob("fastrnn-*/kernels-*/pack_float32*"))


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


@pytest.mark.exhaustive
def test_kernels_of_several_processes_stay_apart(tmp_path: Path) -> None:
    """What two processes compiled, a third one loads: each cell runs its own code, in either order."""
    environment = os.environ | {"FASTRNN_CACHE_DIR": str(tmp_path)}
    for kinds in (["LSTM"], ["RNN"], ["LSTM", "RNN"], ["RNN", "LSTM"]):
        result = subprocess.run([sys.executable, "-c", RUN, *kinds], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
