"""The CUDA kernels of cells that are not built in: compiled while the program runs, and launched by the driver.

No GPU is needed: a driver for tests (cuda/driver.cpp) runs the kernels on the CPU. NVRTC compiles where there is one;
the driver's own names and tables stand in for what it gives, so that all else is tested without it.
"""

from __future__ import annotations

import ctypes
import os
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
from fastrnn.cells import Cell
from fastrnn.cells.emit.cuda import class_name
from fastrnn.cells.gru import gru
from fastrnn.cells.known import known
from fastrnn.cells.lstm import lstm
from tests.backends import cuda_host
from tests.backends.cuda_results import assert_as_reference
from tests.backends.test_cuda_compiled import most_byte_loads
from tests.backends.test_cuda_faults import COMPILER, FLAGS
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, any_layer, random_layer

pytest_plugins = ["tests.backends.cuda_fixtures"]

OTHERS = ("peephole_lstm", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("mgu", "slstm", "star")))
"""Parameters; two gates; four states; one gate of the state, and two of the input."""
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
    run_time._compiled,
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


@pytest.fixture(scope="module", params=OTHERS)
def cell(request: pytest.FixtureRequest) -> Cell:
    """Not built in."""
    return ZOO[request.param]


@pytest.fixture(scope="module")
def driver_for_tests(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """driver.cpp, with the kernels of the cell."""
    folder = tmp_path_factory.mktemp("driver")
    assert cell.program is not None
    sources = cuda_host.with_cells([replace(cell.program, name=cell.key)], folder)
    library, own = folder / "libcuda.so", f"-DFASTRNN_CELL={class_name(cell.key)}"
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


def launched(cell: Cell, operation: str, way: str | None) -> list[str]:
    """How a kernel of the cell is started, by the planner."""
    found = run_time.tables(cell.key)
    assert isinstance(found, dict), found
    rows = found[f"{operation}_bfloat16"]
    sizes = {"units": SHAPE.hidden, "batch": SHAPE.batch, "heads": 1, "directions": 2, "way": way}
    plan = extension.load().plan(operation=operation, cell="", element="bfloat16", rows=rows, **sizes, **H100)
    assert isinstance(plan, dict), plan
    blocks, shared = plan["groups"] * plan["blocks"], plan["shared_bytes"]
    values = SHAPE.steps * SHAPE.batch * SHAPE.hidden * 2 * (1 if operation == "forward" else len(cell.blocks))
    how = f"clusters of {plan['blocks']}" if plan["way"] == "cluster" else "cooperative"
    return [
        "load",
        f"allow {shared} bytes",
        *([f"fill {2 * values} bytes with 255 on 0"] if way == "grid" else []),
        f"launch {blocks} blocks of {plan['threads']} and {shared} bytes, {how} on 0",
    ]


@needs_driver
@pytest.mark.parametrize("way", [None, "grid"])
def test_the_driver_runs_what_was_compiled(
    way: str | None, cell: Cell, installed: Callable[[], list[str]], compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters of one block forward and of eight backward; teams; and again from what is loaded."""
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way or "")
    layer = any_layer(cell, SHAPE)
    assert_as_reference(layer, torch.bfloat16)
    expected = [*launched(cell, "forward", way), *launched(cell, "backward", way)]
    assert installed() == expected
    assert_as_reference(layer, torch.bfloat16, recompute=True)
    assert installed() == [line for line in expected if line.startswith(("fill", "launch"))]


@needs_driver
def test_what_the_driver_refuses_is_said(installed: Callable[[], list[str]], driver_for_tests: ctypes.CDLL) -> None:
    symbol = driver_for_tests.driver_symbols().decode().splitlines()[0]
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData of it: the driver's words for 200 \(CUDA_ERROR_INVALID_"):
        driver.Kernel(b"no code", symbol, 0, "it")
    with pytest.raises(RuntimeError, match="cuModuleGetFunction of it"):
        driver.Kernel(CUBIN, "another", 0, "it")
    with pytest.raises(RuntimeError, match="cuDeviceGet"):
        driver.Kernel(CUBIN, symbol, 1, "it")
    kernel = driver.Kernel(CUBIN, symbol, 0, "it")
    launch: dict[str, Any] = {
        "stream": 7,
        "threads": 128,
        "shared_bytes": 64 << 10,
        "parameters": [b"\0"],
        "cluster": 16,
    }
    installed()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cuLaunchKernelEx of 15 blocks of 128 threads and 65536 bytes of "):
            kernel.launch(grid=15, filled=None, **launch)
    assert installed() == ["allow 65536 bytes", "allow large clusters"], "once"


@needs_driver
def test_kernels_are_kept_on_disk(
    cell: Cell,
    installed: Callable[[], list[str]],
    stand_in: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    kernel = (cell.key, "grid", "forward", "bfloat16", 5, "90a")

    def compiled_anew(*changed: str) -> nvrtc.Compiled:
        run_time._compiled.cache_clear()
        return run_time.compiled(*kernel[: len(kernel) - len(changed)], *changed)

    made = compiled_anew()
    assert "compiling the kernel" in capsys.readouterr().err
    (file,) = (tmp_path / "cache" / "cuda").iterdir()
    assert compiled_anew() == made
    assert len(stand_in) == 1
    compiled_anew("80")
    assert len(stand_in) == 2, "another architecture's is another"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"\.cubin is not used: it is damaged"):
        assert compiled_anew() == made
    assert len(stand_in) == 3
    assert compiled_anew() == made
    assert len(stand_in) == 3


@needs_driver
def test_a_call_that_cannot_be_served_says_why(
    cell: Cell, installed: Callable[[], list[str]], stand_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_time.why_not(cell.key, "bfloat16", (40, 9, 1, 2), 0) is None
    reason = run_time.why_not(cell.key, "bfloat16", (4000, 9, 1, 2), 0)
    assert reason == "it takes heads of up to 2048 units for this cell in bfloat16, got 4000"
    with pytest.raises(ValueError, match="no array of Geometry"):
        extension.load().why_none_of(b"short", "90a", "forward", "bfloat16", 40, 9, 1, 2, 0)
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75,))
    assert run_time.why_not(cell.key, "bfloat16", (40, 9, 1, 2), 0) == "NVRTC 0.0 does not compile for sm_90a"
    monkeypatch.setattr(nvrtc, "why_missing", lambda: "there is none")
    reason = run_time.why_not(cell.key, "bfloat16", (40, 9, 1, 2), 0)
    assert reason == "its kernels for cells that are not built in are compiled at run time: there is none"


@pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing()))
def test_what_does_not_compile_is_compiled_once(
    anew: None, host_extension: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is the reason why the cell is not served, and what a launch raises."""
    asked: list[str] = []

    def fails(source: str, title: str, *rest: str) -> Any:
        asked.append(title)
        raise nvrtc.CompileError(f"NVRTC 0.0 does not compile {title}:\nout of luck")

    monkeypatch.setattr(extension, "_load", lambda: host_extension)
    replaced = {"why_missing": lambda: None, "version": lambda: "0.0", "architectures": lambda: (90,)}
    for name, stand_in in {**replaced, "ptx": fails, "kernel": fails}.items():
        monkeypatch.setattr(nvrtc, name, stand_in)
    key = ZOO["mgu"].key
    layer = replace(random_layer(key, SHAPE), x=torch.zeros(SHAPE.steps, SHAPE.batch, SHAPE.inputs).bfloat16())
    for _ in range(2):
        reason = backends.module("cuda")._why_no_kernel(layer)
        assert reason == f"NVRTC 0.0 does not compile tables of {key}:\nout of luck"
        with pytest.raises(nvrtc.CompileError, match=r"mgu.* grid forward bfloat16 5:\nout of luck$"):
            run_time.compiled(key, "grid", "forward", "bfloat16", 5, "90a")
    assert len(asked) == 2


@pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing()))
def test_cpu_tensors_are_refused(host_extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_load", lambda: host_extension)
    layer = random_layer(ZOO["mgu"].key, SHAPE)
    reason = "its kernels for cells that are not built in are compiled at run time, for GPUs"
    assert backends.module("cuda").supports(layer) == reason


@needs_nvrtc
def test_cells_without_a_product_are_refused(anew: None) -> None:
    reason = run_time.tables(ZOO["mingru"].key)
    assert reason == "its kernels do not take such a cell: it has no gates of the state"


@needs_nvrtc
@pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing()))
@pytest.mark.parametrize("built_in", [lstm, gru], ids=["lstm", "gru"])
def test_tables_are_those_of_the_extension(built_in: Any, host_extension: ModuleType, anew: None) -> None:
    """Of a built-in cell: whatever is asked, the planner answers alike."""
    found = run_time.tables(known(built_in).key)
    assert isinstance(found, dict)
    elements = ("bfloat16", "float16", "tf32")
    for operation, element, way in product(("forward", "backward"), elements, (None, "cluster", "block", "grid")):
        for units, batch in ((3, 1), (64, 16), (100, 700), (256, 8), (500, 64), (700, 9), (1100, 20)):
            asked: dict[str, Any] = {"operation": operation, "element": element, "units": units, "batch": batch}
            asked |= {"cell": built_in.name, "heads": 2, "directions": 2, "way": way, **H100}
            ahead = host_extension.plan(**asked)
            here = host_extension.plan(**asked, rows=found[f"{operation}_{element}"])
            if isinstance(ahead, str):
                assert here == ahead.replace(built_in.name, "this cell")
            else:
                assert here == ahead | {"cell": "this cell"}


@needs_nvrtc
@pytest.mark.skipif(cuda_compile.cuobjdump() is None, reason="there is no cuobjdump")
@pytest.mark.parametrize(
    ("architecture", "way", "number"),
    [("90a", "cluster", 2), ("80", "grid", 5), pytest.param("90a", "grid", 5, marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("name", ["slstm", pytest.param("star", marks=pytest.mark.exhaustive)])
def test_nothing_spills(
    name: str, operation: str, architecture: str, way: str, number: int, anew: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of clusters, those of eight blocks for 256 units; every gate of which is multiplied."""
    cell = ZOO[name]
    made = run_time.compiled(cell.key, way, operation, "bfloat16", number, architecture)
    assembly, _, stack = sass.read(made.cubin, str(cuda_compile.cuobjdump()))
    assert (stack, assembly.spills, assembly.is_loop) == (0, 0, True)
    assert assembly.byte_loads <= most_byte_loads(way, operation)
    if way == "cluster":
        assert assembly.products == len(cell.u_gates) * 256 // 8 * 256 // (16 * 16 * 8)


@pytest.mark.exhaustive
@needs_nvrtc
@pytest.mark.skipif(bool(cuda_compile.missing()), reason=str(cuda_compile.missing()))
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    ("way", "number", "shape"), [("cluster", 2, "256, 8, {}"), ("grid", 5, "")], ids=["cluster", "grid"]
)
def test_the_code_is_as_good_as_nvccs(
    way: str, number: int, shape: str, operation: str, anew: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or nearly so: the same products, waits and loads of weights; registers and instructions as of another version."""
    warps = "4, 2" if operation == "forward" else "8, 1"
    numbers = f", {shape.format(warps)}" if shape else ""
    kind = f"{operation.capitalize()}Shape<fastrnn::Lstm, fastrnn::Bfloat16{numbers}>"
    source, cubin = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(
        f'#include "cells.cuh"\n#include "{way}/{operation}.cuh"\n'
        f"auto* kernel = &fastrnn::{way}::{operation}_kernel<fastrnn::{way}::{kind}>;\n"
    )
    command = [str(cuda_compile.nvcc()), "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", f"-I{cuda_host.SOURCES}"]
    subprocess.run([*command, str(source), "-o", str(cubin)], check=True, capture_output=True)
    made = run_time.compiled(known(lstm).key, way, operation, "bfloat16", number, "90a")
    cuobjdump = str(cuda_compile.cuobjdump())
    ours, registers, stack = sass.read(made.cubin, cuobjdump)
    theirs, of_theirs, _ = sass.read(cubin.read_bytes(), cuobjdump)
    for name in ("products", "barriers", "waits", "shared_vectors", "spills"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert stack == 0
    assert abs(registers - of_theirs) <= 2
    assert abs(ours.instructions - theirs.instructions) <= 0.03 * theirs.instructions
