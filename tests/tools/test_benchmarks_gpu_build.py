"""When stage `build` of `python -m benchmarks.gpu` compiles the extension, and when it takes the one that is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import build
from tests.backends import cuda_host


class Compiler:
    """setup.py's functions, in the place of nvcc: the extension says which source it was made of."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.meanwhile: Callable[[], object] = lambda: None
        """what happens while it compiles"""

    def find_sources(self, folder: Path) -> list[str]:
        return [str(self.source)]

    def find_nvcc(self) -> str:
        return "nvcc"

    def compile_and_link(self, sources: list[str], nvcc: str, objects: Path, target: Path) -> None:
        code = Path(sources[0]).read_text()
        target.write_text("half of it")
        self.meanwhile()
        target.write_text(code)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    sources = tmp_path / "csrc"
    sources.mkdir()
    compiler = Compiler(sources / "kernel.cu")
    compiler.source.write_text("old")
    monkeypatch.setattr(cuda_host, "SOURCES", sources)
    monkeypatch.setattr(cuda_host, "setup_module", lambda: compiler)
    monkeypatch.setattr(build, "EXTENSION", tmp_path / "_C.so")
    monkeypatch.setattr(build, "SOURCES_FILE", tmp_path / "_C.sources.txt")
    monkeypatch.setattr(build.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="80 90a\n"))
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", "")
    return compiler


def test_it_is_built_of_these_sources_once(compiler: Compiler) -> None:
    assert build.run() == {"built": "90a"}
    assert os.environ["FASTRNN_CUDA_ARCHS"] == "90a"
    assert build.run() == {"found": "90a"}


def test_a_source_that_is_as_old_as_before_is_another(compiler: Compiler) -> None:
    """As after a transfer that keeps times."""
    build.run()
    compiler.source.write_text("new")
    os.utime(compiler.source, (0, 0))
    assert build.run() == {"built": "90a"}
    assert build.EXTENSION.read_text() == "new"


def test_what_is_edited_while_it_is_built_is_built_again(compiler: Compiler) -> None:
    compiler.meanwhile = lambda: compiler.source.write_text("new")
    assert build.run() == {"built": "90a"}
    assert build.EXTENSION.read_text() == "old"
    assert build.run() == {"built": "90a"}
    assert build.EXTENSION.read_text() == "new"
    assert build.run() == {"found": "90a"}


def test_an_extension_that_another_build_left_is_built_again(compiler: Compiler) -> None:
    build.run()
    build.EXTENSION.write_text("by pip")
    assert build.run() == {"built": "90a"}

    def fails() -> None:
        raise KeyboardInterrupt

    compiler.source.write_text("new")
    compiler.meanwhile = fails
    with pytest.raises(KeyboardInterrupt):
        build.run()
    compiler.source.write_text("old")
    compiler.meanwhile = lambda: None
    assert build.run() == {"built": "90a"}


def test_one_for_another_gpu_is_built_again(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    build.run()
    monkeypatch.setattr(build.torch.cuda, "get_device_capability", lambda: (10, 0))
    assert build.run() == {"built": "100"}
