"""The CUDA kernels of cells that are not built in: compiled while the program runs, and launched by the driver.

No GPU is needed: a driver for tests (cuda/driver.cpp) runs the kernels on the CPU. NVRTC compiles where there is one;
the driver's own names and tables stand in for what it gives, so that all else is tested without it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import cuda_compile, sass
from fastrnn import backends, extension
from fastrnn.backends.cuda import driver, nvrtc, run_time
from fastrnn.cells.emit.cuda import class_name
from fastrnn.cells.gru import gru
from fastrnn.cells.known import known
from fastrnn.cells.lstm import lstm
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_reference
from tests.backends.test_cuda_faults import COMPILER, FLAGS
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, random_layer

pytest_plugins = ["tests.backends.cuda_fixtures"]

CELL = ZOO["mgu"]
SOURCE = Path(__file__).parent / "cuda" / "driver.cpp"
H100 = {
    "capability": (9, 0),
    "multiprocessors": 132,
    "shared_memory": 227 * 1024,
    "cluster": 16,
    "architectures": "90a",
}
"""That of the extension for the CPU."""
CUBIN = b"\177ELF\0of a kernel"
"""What the tests' driver takes for one."""
SHAPE = Shape(steps=4, batch=9, hidden=40, directions=2, lengths=True, resets=True)
CACHED = (
    run_time.tables,
    run_time.compiled,
    run_time._loaded,
    run_time._architecture,
    driver._library,
    driver._context,
)


@cache
def header() -> Path | None:
    """The folder of cuda.h: Triton's, or the toolkit's."""
    triton = find_spec("triton")
    places = [Path(place, "backends/nvidia/include") for place in (triton and triton.submodule_search_locations) or ()]
    places += [Path(home, "include") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((place for place in places if (place / "cuda.h").exists()), None)


needs_nvrtc = pytest.mark.skipif(bool(nvrtc.why_missing()), reason=str(nvrtc.why_missing()))
needs_driver = pytest.mark.skipif(
    bool(cuda_host.missing()) or header() is None, reason=str(cuda_host.missing() or "there is no cuda.h")
)


@pytest.fixture(scope="module")
def driver_for_tests(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """driver.cpp, with the kernels of the cell."""
    folder = tmp_path_factory.mktemp("driver")
    assert CELL.program is not None
    sources = cuda_host.with_cells([replace(CELL.program, name=CELL.key)], folder)
    library, own = folder / "libcuda.so", f"-DFASTRNN_CELL={class_name(CELL.key)}"
    command = [COMPILER, *FLAGS, own, f"-I{sources}", f"-I{header()}", "-shared", "-fPIC", str(SOURCE), "-ldl"]
    subprocess.run([*command, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    for function in (loaded.driver_calls, loaded.driver_symbols):
        function.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is compiled or loaded yet."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def installed(
    anew: None, driver_for_tests: ctypes.CDLL, host_extension: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """The tests' driver takes the place of CUDA's, and the backend CPU tensors. Returns what tells the calls since."""
    monkeypatch.setattr(driver, "LIBRARY", driver_for_tests._name)
    monkeypatch.setattr(extension, "_load", lambda: host_extension)
    cuda = backends.module("cuda")
    monkeypatch.setattr(cuda, "_why_not", lambda layer, allowed: cuda._why_no_kernel(layer))

    def calls() -> list[str]:
        told: str = driver_for_tests.driver_calls().decode()
        driver_for_tests.driver_forget()
        return told.splitlines()

    calls()
    return calls


@pytest.fixture
def stand_in(driver_for_tests: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What NVRTC would make, without it. Returns the titles of the kernels that were asked for."""
    asked: list[str] = []

    def kernel(source: str, title: str, expression: str, architecture: str) -> nvrtc.Compiled:
        asked.append(title)
        _, way, name = expression.split("<")[0].split("::")
        symbols = driver_for_tests.driver_symbols().decode().splitlines()
        (symbol,) = [one for one in symbols if f"{len(way)}{way}{len(name)}{name}" in one]
        return nvrtc.Compiled(symbol, CUBIN)

    def ptx(source: str, title: str) -> str:
        lines, size = [], driver_for_tests.driver_table_bytes()
        for name in ("forward_bfloat16", "backward_bfloat16"):
            table = (ctypes.c_ubyte * size).in_dll(driver_for_tests, name)
            lines.append(f".const .align 4 .b8 {name}[{size}] = {{{', '.join(map(str, table))}}};")
        return "\n".join(lines)

    monkeypatch.setattr(nvrtc, "why_missing", lambda: None)
    monkeypatch.setattr(nvrtc, "version", lambda: "0.0")
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "kernel", kernel)
    monkeypatch.setattr(nvrtc, "ptx", ptx)
    return asked


@pytest.fixture(params=["stand_in", pytest.param("nvrtc", marks=needs_nvrtc)])
def compiler(request: pytest.FixtureRequest) -> None:
    """What compiles."""
    if request.param == "stand_in":
        request.getfixturevalue("stand_in")


def launched(operation: str, way: str | None) -> list[str]:
    """How a kernel of the cell is started, by the planner."""
    rows = tables()[f"{operation}_bfloat16"]
    sizes = {"units": SHAPE.hidden, "batch": SHAPE.batch, "heads": 1, "directions": 2, "way": way}
    plan = extension.load().plan(operation=operation, cell="", element="bfloat16", rows=rows, **sizes, **H100)
    assert isinstance(plan, dict), plan
    blocks, shared = plan["groups"] * plan["blocks"], plan["shared_bytes"]
    values = SHAPE.steps * SHAPE.batch * SHAPE.hidden * 2 * (1 if operation == "forward" else len(CELL.blocks))
    how = f"clusters of {plan['blocks']}" if plan["way"] == "cluster" else "cooperative"
    return [
        "load",
        f"allow {shared} bytes",
        *([f"fill {2 * values} bytes with 255 on 0"] if way == "grid" else []),
        f"launch {blocks} blocks of {plan['threads']} and {shared} bytes, {how} on 0",
    ]


def tables() -> dict[str, bytes]:
    found = run_time.tables(CELL.key)
    assert isinstance(found, dict), found
    return found


@needs_driver
@pytest.mark.parametrize("way", [None, "grid"])
def test_the_driver_runs_what_was_compiled(
    way: str | None, installed: Callable[[], list[str]], compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters of one block forward and of eight backward; teams; and again from what is loaded."""
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way or "")
    layer = random_layer(CELL.key, SHAPE)
    assert_as_reference(layer, torch.bfloat16)
    expected = [*launched("forward", way), *launched("backward", way)]
    assert installed() == expected
    assert_as_reference(layer, torch.bfloat16, recompute=True)
    assert installed() == [line for line in expected if line.startswith(("fill", "launch"))]
