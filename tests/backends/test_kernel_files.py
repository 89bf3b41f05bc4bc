"""Kernels on disk: where they are looked for, and what becomes of files that are damaged or cannot be written."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("numba", exc_type=ImportError)
pwd, resource = map(pytest.importorskip, ("pwd", "resource"))

from fastrnn import cache, trust  # noqa: E402
from fastrnn.backends import notices  # noqa: E402
from fastrnn.backends.numba import kernel_files  # noqa: E402
from fastrnn.backends.numba.compile import _build  # noqa: E402
from fastrnn.backends.numba.kernel_files import KernelFile, Places  # noqa: E402
from tests.backends.kernel_places import CONTEXT, FILE, OTHER, acting_as, as_root, name  # noqa: E402

pytest_plugins = ["tests.backends.kernel_places"]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one kernel in it."""
    directory = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_files, "places", lambda: Places((directory,), directory))
        _build("", "pack", torch.float32)
    assert [path.name for path in directory.iterdir()] == [FILE]
    return directory


@as_root
def test_kernels_that_root_has_put_there(
    kernels: Path, places: Callable[..., Places], public: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container's image: every user reads them, and nothing is said."""
    base = public / "base"
    shutil.copytree(kernels, base / name())
    base.chmod(0o755)
    (base / name()).chmod(0o755)
    (base / name() / FILE).chmod(0o644)
    with acting_as(OTHER):
        assert places(public / "nowhere", FASTRNN_CACHE_DIR=base) == ((base / name(),), None)
        assert _build("", "pack", torch.float32).address
        assert capsys.readouterr().err == ""
        assert KernelFile("a_kernel", "a kernel").load_overload(None, CONTEXT) is None
        assert capsys.readouterr().err == "fastrnn: compiling the kernel a kernel, once; it is not kept\n"
        KernelFile("a_kernel", "a kernel").save_overload(None, None)


@as_root
@pytest.mark.parametrize("owner", [0, OTHER])
def test_a_directory_that_can_only_be_read(owner: int, places: Callable[..., Places], public: Path) -> None:
    """What is missing there is kept among the temporary files."""
    base, temporary = public / "base", public / "tmp"
    (base / name()).mkdir(parents=True)
    temporary.mkdir()
    temporary.chmod(0o1777)
    (base / name()).chmod(0o555)
    os.chown(base / name(), owner, owner)
    with acting_as(OTHER):
        found = places(temporary, FASTRNN_CACHE_DIR=base)
    assert found == ((base / name(), found.kept), temporary / f"fastrnn-{OTHER}" / name())


def test_no_place_at_all(places: Callable[..., Places], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No home, and nowhere to put temporary files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    nowhere = "cannot write to ~/.cache/fastrnn: kernels are compiled anew in every process"
    with pytest.warns(UserWarning, match=nowhere):
        assert places() == ((), None)
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("module", "function", "error"),
    [
        (tempfile, "gettempdir", FileNotFoundError("No usable temporary directory found")),
        (getpass, "getuser", ImportError("No module named 'pwd'")),
        (getpass, "getuser", KeyError("no name")),
        (getpass, "getuser", OSError("No username set in the environment")),
    ],
)
def test_no_fallback(module: Any, function: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """No place for temporary files, or a user without a name on Windows."""

    def fails() -> str:
        raise error

    monkeypatch.setattr(trust, "POSIX", False)
    monkeypatch.setattr(module, function, fails)
    assert cache.fallback() is None


def test_an_installation_without_sources(
    places: Callable[..., Places], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyInstaller makes them."""
    monkeypatch.setattr(kernel_files, "SOURCES", tmp_path)
    monkeypatch.setattr(kernel_files, "_SOURCES", kernel_files._sources())
    with pytest.warns(UserWarning, match="compiled anew in every process: fastrnn is installed without its sources"):
        assert places(FASTRNN_CACHE_DIR=tmp_path) == ((), None)
    assert [path.name for path in tmp_path.iterdir()] == ["no directory"]


def test_any_damage_is_seen(tmp_path: Path) -> None:
    payload = os.urandom(3000)
    kernel_files.write(tmp_path / "file", payload)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert kernel_files.read(tmp_path / "file") == payload
    whole = (tmp_path / "file").read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    for content in (*flipped, whole[:-1], whole[:40], whole[:20], b"", whole + b"\0", payload):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match="it is damaged"):
            kernel_files.read(tmp_path / "file")


@pytest.mark.parametrize("renamed", ["file", "directory"])
def test_a_kernel_under_the_name_of_another(renamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    kernel_files.write(path, b"")
    if renamed == "file":
        path = path.rename(tmp_path / "another")
    else:
        monkeypatch.setattr(kernel_files, "_fingerprint", lambda: "another")
    with pytest.raises(ValueError, match="it is damaged"):
        kernel_files.read(path)


def test_a_damaged_kernel_is_replaced(
    kernels: Path, places: Callable[..., Places], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though warnings are errors: they are in all these tests."""
    directory = tmp_path / name()
    shutil.copytree(kernels, directory)
    damaged = bytearray((directory / FILE).read_bytes())
    for at in range(len(damaged) // 3, len(damaged), len(damaged) // 24):
        damaged[at] ^= 0xFF
    (directory / FILE).write_bytes(damaged)
    places(FASTRNN_CACHE_DIR=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _build("", "pack", torch.float32).address
    assert capsys.readouterr().err.splitlines() == [
        f"fastrnn: {directory / FILE} is not used: it is damaged",
        f"fastrnn: compiling the kernel pack float32, once; it is kept in {directory}",
    ]
    assert _build("", "pack", torch.float32).address
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("limited", ["size", "directory"])
def test_a_full_disk(
    limited: str, places: Callable[..., Places], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writing fails half-way, or at once: that is said, as a warning or, where those are errors, on stderr."""
    kept = places(FASTRNN_CACHE_DIR=tmp_path).kept
    assert kept is not None
    result = SimpleNamespace(_reduce=lambda: os.urandom(100_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limited == "size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    else:
        kept.rmdir()
    try:
        with pytest.warns(UserWarning, match="fastrnn: cannot keep a compiled kernel: "):
            KernelFile("a_kernel", "a kernel").save_overload(None, result)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            KernelFile("a_kernel", "a kernel").save_overload(None, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.startswith("fastrnn: cannot keep a compiled kernel: ")
    assert not list(kept.parent.glob("kernels-*/*"))


def test_written_by_several_at_once(tmp_path: Path) -> None:
    """Whoever reads meanwhile finds one of the files whole."""
    payloads = [bytes([number]) * 200_000 for number in range(3)]
    kernel_files.write(tmp_path / "file", payloads[0])
    writers = [
        threading.Thread(target=lambda own=payload: [kernel_files.write(tmp_path / "file", own) for _ in range(50)])
        for payload in payloads
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert kernel_files.read(tmp_path / "file") in payloads
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_notice_never_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="fastrnn: one"):
        notices.notice("one")
    notices.notice("two")  # pytest's filter makes errors of warnings
    assert capsys.readouterr().err == "fastrnn: two\n"
    with open(os.devnull, "w") as closed:
        pass
    for stderr in (closed, None):
        monkeypatch.setattr(sys, "stderr", stderr)
        notices.notice("three")
    assert capsys.readouterr().out == ""


def test_the_directory_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, fingerprint = kernel_files._sources(), kernel_files._fingerprint()
    for source in [*kernel_files.SOURCES.glob("*.py"), *kernel_files.SOURCES.glob("kernels/*.py")]:
        copy = tmp_path / source.relative_to(kernel_files.SOURCES)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(kernel_files, "SOURCES", tmp_path)
    assert kernel_files._sources() == before
    with (tmp_path / "kernels" / "cells.py").open("a") as file:
        file.write("\n")
    assert kernel_files._sources() != before
    assert kernel_files._fingerprint() == fingerprint, "a change on disk after the import is not what runs"
