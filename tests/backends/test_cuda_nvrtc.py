"""NVRTC, CUDA's compiler as a library: which one is taken, and what is said where there is none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastrnn.backends.cuda import nvrtc, run_time
from tests.backends.test_cuda_faults import COMPILER

SOURCE = Path(__file__).parent / "cuda" / "nvrtc.cpp"
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER}) in PATH")


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for at every question, and FASTRNN_NVRTC names nothing."""
    monkeypatch.delenv("FASTRNN_NVRTC", raising=False)
    monkeypatch.setattr(nvrtc, "_find", nvrtc._find.__wrapped__)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., str]:
    """Makes a library of version 99.`version`, beside what it needs or not, and returns its path."""

    def make(version: int, *, builtins: bool) -> str:
        folder = tmp_path / str(version)
        folder.mkdir()
        command = [COMPILER, "-std=c++17", "-shared", "-fPIC", f"-DVERSION={version}", str(SOURCE), "-ldl", "-o"]
        subprocess.run([*command, str(folder / "libnvrtc.so.99")], check=True)
        if builtins:
            name = f"libnvrtc-builtins.so.99.{version}"
            named = [COMPILER, "-shared", "-x", "c++", "/dev/null", f"-Wl,-soname,{name}", "-o"]
            subprocess.run([*named, str(folder / name)], check=True)
        return str(folder / "libnvrtc.so.99")

    return make


def test_nvrtc_that_is_not_there_is_missed(unknown: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTRNN_NVRTC", str(tmp_path / "libnvrtc.so"))
    assert str(nvrtc.why_missing()).startswith(f"FASTRNN_NVRTC ({tmp_path}/libnvrtc.so) is no NVRTC: ")
    with pytest.raises(ImportError, match="is no NVRTC"):
        nvrtc.version()
    monkeypatch.delenv("FASTRNN_NVRTC")
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    reason = "there is no NVRTC (libnvrtc.so, of CUDA 13.0), CUDA's compiler as a library"
    assert nvrtc.why_missing() == reason
    broken = tmp_path / "libnvrtc.so.13"
    broken.touch()
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter([str(broken), "libnvrtc.so.of-none"]))
    assert str(nvrtc.why_missing()).startswith(f"{reason}: {broken}: ")
    monkeypatch.setattr(run_time, "SOURCES", None)
    assert run_time.why_missing() == "fastrnn is installed without its CUDA sources"


def test_nvrtc_of_torchs_own_version_is_looked_for(
    unknown: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """First in the package that torch depends on, beside what it needs; another version's cubins might not run."""
    for name in ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cu13/lib/libnvrtc.so.13"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path / name]))
    for cuda, place in (("12.8", "cuda_nvrtc"), ("13.0", "cu13")):
        name = f"libnvrtc.so.{cuda.partition('.')[0]}"
        monkeypatch.setattr(torch.version, "cuda", cuda)
        found = list(dict.fromkeys(nvrtc._candidates()))
        assert found[:2] == [str(tmp_path / "nvidia" / place / "lib" / name), name]
        assert {Path(one).name for one in found} == {name}


@needs_compiler
def test_a_library_that_compiles_nothing_is_passed_over(
    unknown: None, stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says its version, and finds its headers only where they are loaded from beside it."""
    incomplete, complete = stand_in(1, builtins=False), stand_in(2, builtins=True)
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter([incomplete, complete]))
    assert nvrtc.why_missing() is None
    assert (nvrtc.path(), nvrtc.version()) == (complete, "99.2")
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter([incomplete, "libnvrtc.so.of-none"]))
    why = f"{incomplete}: NVRTC 99.1 does not compile an empty kernel:\nfailed to open libnvrtc-builtins.so.99.1"
    assert str(nvrtc.why_missing()).endswith(f"CUDA's compiler as a library: {why}")


@needs_compiler
def test_the_chosen_library_is_the_only_one(
    unknown: None, stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_NVRTC", chosen := stand_in(3, builtins=True))
    assert nvrtc.path() == chosen
    monkeypatch.setenv("FASTRNN_NVRTC", chosen := stand_in(4, builtins=False))
    assert str(nvrtc.why_missing()).startswith(f"FASTRNN_NVRTC ({chosen}) is no NVRTC: {chosen}: NVRTC 99.4 does not ")


@pytest.mark.skipif(bool(nvrtc.why_missing()), reason=str(nvrtc.why_missing()))
def test_what_nvrtc_refuses_is_shown() -> None:
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.kernel("__global__ void kernel() { nonsense; }", "a kernel", "kernel", "90a")
    message = str(caught.value)
    assert message.startswith(f"NVRTC {nvrtc.version()} does not compile a kernel:\n")
    assert 'identifier "nonsense" is undefined' in message
    with pytest.raises(nvrtc.CompileError, match="invalid value for --gpu-architecture"):
        nvrtc.kernel("__global__ void kernel() {}", "a kernel", "kernel", "10")
