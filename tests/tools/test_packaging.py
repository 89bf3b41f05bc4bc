"""Installation: what setup.py decides, and that what is tested is what was installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import fastrnn
from benchmarks.checkout import ROOT
from benchmarks.cuda_compile import OPERATIONS, WAYS
from fastrnn import extension
from fastrnn.backends.cuda import run_time

SETUP = ROOT / "setup.py"
NVCC = """#!/bin/sh
case "$1" in --list-gpu-arch) printf 'compute_80\\ncompute_90\\ncompute_100\\n'; exit;; esac
{then}
"""
NOISE = "for i in 1 2 3 4 5 6 7 8; do echo nothing is wrong here; done; "
FAILS = NOISE + 'echo "host.h(3): error: this compiler is too new" >&2; exit 1'
LOGS = 'echo "$@" >> $(dirname "$0")/log; '
WRITES = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo compiled > "$2"; shift; done'
SOURCES = ["csrc/module.cpp", "csrc/probe.cu", "csrc/probe_host.cpp", "csrc/cluster/forward.cu"]
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the extension is built on Linux only")


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, in an environment that asks for nothing."""
    pytest.importorskip("setuptools")
    for name in ("FASTRNN_CUDA", "FASTRNN_CUDA_ARCHS", "MAX_JOBS", "CUDA_HOME", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pybind11", SimpleNamespace(get_include=lambda: "include"))
    spec = importlib.util.spec_from_file_location("fastrnn_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType) -> Callable[[str], str]:
    """Puts a script in nvcc's place that lists architectures, and else does `then`. Returns its path."""
    home = tmp_path / "cuda"
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(setup, "sysconfig", SimpleNamespace(get_paths=lambda: {"include": str(home)}))

    def write(then: str) -> str:
        path = home / "bin" / "nvcc"
        path.parent.mkdir(parents=True)
        path.write_text(NVCC.format(then=then))
        path.chmod(0o755)
        (home / "Python.h").touch()
        return str(path)

    return write


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType) -> Callable[[], tuple[bool, str | None]]:
    """Runs the build of the extension. Returns whether it is there, and the reason that is given where it is not."""
    from setuptools import Distribution, Extension

    def run() -> tuple[bool, str | None]:
        extension = Extension("fastrnn._C", SOURCES, optional=True)
        command = setup.BuildExtension(Distribution({"name": "fastrnn", "ext_modules": [extension]}))
        command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temporary")
        command.ensure_finalized()
        command.run()
        reason = tmp_path / "lib" / "fastrnn" / setup.reason_file("fastrnn._C")
        built = Path(command.get_ext_fullpath("fastrnn._C")).exists()
        return built, reason.read_text() if reason.exists() else None

    return run


@on_linux
def test_without_nvcc_it_builds_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: Callable[[], tuple[bool, str | None]]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build() == (False, f"no nvcc (CUDA's compiler) in CUDA_HOME ({tmp_path})\n")
    monkeypatch.setenv("FASTRNN_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTRNN_CUDA=1 requires the CUDA extension: no nvcc"):
        build()


@on_linux
def test_a_failing_nvcc_is_quoted(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], tuple[bool, str | None]], nvcc: Callable[[str], str]
) -> None:
    nvcc(FAILS)
    built, reason = build()
    assert not built
    assert reason is not None
    says = "csrc/cluster/forward.cu for Lstm failed with exit status 1:\nhost.h(3): error: this compiler is too new"
    assert f"nvcc on {says}" in reason
    monkeypatch.setenv("FASTRNN_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FASTRNN_CUDA=1 requires[\s\S]*too new"):
        build()


@on_linux
def test_an_earlier_outcome_is_cleared_away(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], tuple[bool, str | None]], nvcc: Callable[[str], str]
) -> None:
    nvcc(WRITES)
    assert build() == (True, None)
    monkeypatch.setenv("FASTRNN_CUDA", "0")
    assert build() == (False, "FASTRNN_CUDA=0 forbade it\n")
    monkeypatch.delenv("FASTRNN_CUDA")
    assert build() == (True, None)


@on_linux
def test_an_editable_install_moves_the_outcome_into_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType, nvcc: Callable[[str], str]
) -> None:
    from setuptools import Distribution, Extension

    checkout = tmp_path / "checkout" / "fastrnn"
    checkout.mkdir(parents=True)
    monkeypatch.chdir(checkout.parent)

    def outcome() -> list[str]:
        distribution = Distribution({"name": "fastrnn", "packages": ["fastrnn"]})
        distribution.ext_modules = [Extension("fastrnn._C", SOURCES, optional=True)]
        command = setup.BuildExtension(distribution)
        command.build_lib, command.build_temp, command.inplace = str(tmp_path / "lib"), str(tmp_path / "objects"), True
        command.ensure_finalized()
        command.run()
        return [path.name for path in checkout.iterdir()]

    nvcc(WRITES)
    (built,) = outcome()
    assert built.startswith("_C.")
    assert built.endswith(".so")
    monkeypatch.setenv("FASTRNN_CUDA", "0")
    assert outcome() == [setup.reason_file("fastrnn._C")]


def compiled(log: Path) -> dict[str, str]:
    """By source, the command that compiled it."""
    lines = log.read_text().splitlines()
    return {source: line for source in SOURCES for line in lines if f"-c {source} " in line}


@pytest.fixture
def build_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: ModuleType) -> Callable[[], Path]:
    """Runs the build of the streams' extension, whatever is asked of the other one. Returns where it would be."""
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)

    def run() -> Path:
        command = setup.BuildExtension(Distribution({"name": "fastrnn", "ext_modules": [setup.door()]}))
        command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "objects")
        command.ensure_finalized()
        command.run()
        return Path(command.get_ext_fullpath("fastrnn._stream"))

    return run


def test_the_streams_extension_needs_no_nvcc(monkeypatch: pytest.MonkeyPatch, build_door: Callable[[], Path]) -> None:
    if (reason := extension.why_no_door()) is not None:
        pytest.skip(f"not built here: {reason}")
    monkeypatch.setenv("FASTRNN_CUDA", "0")
    built = build_door()
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    assert b"PyInit__stream" in built.read_bytes()


@on_linux
def test_without_a_c_compiler_streams_are_called_from_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType, build_door: Callable[[], Path]
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("FASTRNN_CUDA", "1")  # which asks for the other extension only
    built = build_door()
    (reason,) = built.parent.iterdir()
    assert reason.name == extension.DOOR_REASON_FILE.name
    assert str(compiler) in reason.read_text()
    monkeypatch.setattr(setup, "sysconfig", SimpleNamespace(get_paths=lambda: {"include": str(tmp_path)}))
    build_door()
    assert "no Python.h" in reason.read_text()


@on_linux
def test_clusters_are_compiled_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], tuple[bool, str | None]], nvcc: Callable[[str], str]
) -> None:
    log = Path(nvcc(LOGS + WRITES)).parent / "log"
    assert build() == (True, None)
    module, probe, instances = (compiled(log)[SOURCES[index]] for index in (0, 1, 3))
    assert "sm_80" in module
    assert "sm_80" in probe
    assert "FASTRNN_NO_CLUSTERS" not in module
    assert [name in instances for name in ("sm_80", "sm_90a", "sm_100")] == [False, True, True]
    assert SOURCES[2] not in compiled(log)
    log.unlink()
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", "80")
    assert build() == (True, None)
    assert SOURCES[3] not in compiled(log)
    assert "FASTRNN_NO_CLUSTERS" in compiled(log)[SOURCES[0]]


@on_linux
def test_kernels_are_compiled_once_for_each_cell(
    setup: ModuleType, build: Callable[[], tuple[bool, str | None]], nvcc: Callable[[str], str]
) -> None:
    log = Path(nvcc(LOGS + WRITES)).parent / "log"
    assert build() == (True, None)
    *commands, link = log.read_text().splitlines()
    assert sum(f" -c {SOURCES[3]} " in command for command in commands) == len(setup.cells()) == len(commands) - 2
    assert sorted(re.findall(r"-DFASTRNN_CELL=(\w+)", log.read_text())) == sorted(setup.cells())
    objects = {command.split()[-1] for command in commands}
    assert len(objects) == len(commands)
    assert objects <= set(link.split())


@on_linux
def test_the_host_build_needs_no_nvcc(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setup: ModuleType,
    build: Callable[[], tuple[bool, str | None]],
) -> None:
    monkeypatch.setattr(setup, "sysconfig", SimpleNamespace(get_paths=lambda: {"include": str(tmp_path)}))
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("FASTRNN_CUDA", "host")
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(SystemExit, match=r"FASTRNN_CUDA=host requires the CUDA extension: no C\+\+ compiler"):
        build()
    (tmp_path / "c++").write_text(f"#!/bin/sh\n{LOGS}{WRITES}\n")
    (tmp_path / "c++").chmod(0o755)
    assert build() == (True, None)
    commands = compiled(tmp_path / "log")
    assert list(commands) == [SOURCES[0], SOURCES[2], SOURCES[3]]
    assert all("-DFASTRNN_HOST" in command for command in commands.values())


def test_the_package_takes_along_what_kernels_are_compiled_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType
) -> None:
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)
    command = setup.BuildPackage(Distribution({"name": "fastrnn", "packages": []}))
    command.build_lib = str(tmp_path)
    command.ensure_finalized()
    command.run()
    seen: set[str] = set()
    for file in (run_time.TABLES, *(f"{way}/{operation}.cuh" for way in WAYS for operation in OPERATIONS)):
        run_time._joined(file, {}, seen)
    assert {path.relative_to(tmp_path / "fastrnn" / "csrc").as_posix() for path in tmp_path.rglob("*.*h")} >= seen
    assert len(seen) > len(WAYS) * len(OPERATIONS)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("", ["80", "90a", "100"]), ("80;90a", ["80", "90a"]), ("8.0, 9.0a 10.0f 8.0", ["80", "90a", "100f"])],
)
def test_architectures(
    monkeypatch: pytest.MonkeyPatch, setup: ModuleType, nvcc: Callable[[str], str], asked: str, expected: list[str]
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", asked)
    assert setup.architectures(nvcc(FAILS)) == expected


@pytest.mark.parametrize("asked", ["86", "9.0b", "sm_80", "8.0+PTX"])
def test_an_architecture_that_nvcc_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, setup: ModuleType, nvcc: Callable[[str], str], asked: str
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", f"80;{asked}")
    with pytest.raises(SystemExit, match="FASTRNN_CUDA_ARCHS: nvcc cannot compile for"):
        setup.architectures(nvcc(FAILS))


@pytest.mark.parametrize(("name", "read"), [("FASTRNN_CUDA", "wanted"), ("MAX_JOBS", "jobs")])
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, setup: ModuleType, name: str, read: str) -> None:
    monkeypatch.setenv(name, "-2")
    with pytest.raises(SystemExit, match=f"{name} must be .* got '-2'"):
        getattr(setup, read)()


def test_importing_the_package_loads_no_backends_tools() -> None:
    code = "import sys, fastrnn; print(sorted({'numba', 'triton', 'fastrnn._C'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_tested_is_what_is_installed() -> None:
    try:
        installed = distribution("fastrnn")
    except PackageNotFoundError:
        pytest.skip("fastrnn is not installed")
    assert installed.version == fastrnn.__version__
    origin = installed.read_text("direct_url.json") or ""
    if '"editable": true' not in origin:
        expected = Path(str(installed.locate_file("fastrnn/__init__.py"))).resolve()
        assert Path(fastrnn.__file__).resolve() == expected, (
            "another fastrnn hides the installed one: run `pytest`, not `python -m pytest`, or pip install -e ."
        )
