"""The CUDA kernels as programs of their own on the CPU: clean under sanitizers, and planted faults are found.

Faults are planted into copies of a kernel's source, one at a time. What one gives is a deadlock, or results that are
not those of the kernel as it is, or that depend on the schedule.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from fastrnn.cells import Cell
from tests.backends import cuda_host
from tests.cells.zoo import ZOO, seven

CHECK = Path(__file__).parent / "cuda" / "check.cpp"
COMPILER = os.environ.get("CXX") or "g++"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DFASTRNN_HOST")
SHAPES = {"forward": "-DFASTRNN_CHECK_FORWARD=128,4,2,4", "backward": "-DFASTRNN_CHECK_BACKWARD=128,4,4,1"}
"""What check.cpp compiles for each kernel: the shape of a cluster of four blocks."""
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SANITIZED_SCHEDULES = "1"
SECONDS = 600
"""Within which a program ends: many times what it takes, on a busy machine."""

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER}) in PATH")


class Fault(NamedTuple):
    """A change of a kernel's source that must not pass."""

    kernel: str
    name: str
    changes: dict[str, str]
    """by text, what takes its place wherever it stands"""
    file: str = ""
    """in cluster/, if it is not <kernel>.cuh"""


FAULTS = (
    Fault(
        "forward",
        "no wait for the other blocks' state",
        {"device::mbarrier_wait(arrivals + me.k_warp * OF_WARP + k / P::TILES_OF_ARRIVAL, parity);": ""},
        "forward_product.cuh",
    ),
    Fault("forward", "wrong parity", {"step >> 1 & 1, sums": "~step >> 1 & 1, sums"}),
    Fault("forward", "one buffer for the state", {"then = now ^ 1;": "then = now;"}),
    Fault(
        "forward",
        "no wait for the other warps' sums",
        {"device::named_barrier(1 + me.m_warp, P::K_WARPS * 32);": ""},
        "forward_product.cuh",
    ),
    Fault("forward", "one buffer for sums", {"partial + now * P::PARTIAL_BYTES": "partial"}),
    Fault("forward", "no wait in one block", {"if (P::BLOCKS == 1) device::block_barrier();": ""}),
    Fault(
        "forward",
        "no wait for barriers to be made",
        {"device::cluster_arrive();": "", "device::cluster_wait();": ""},
    ),
    Fault(
        "backward",
        "no wait for the other blocks' shares",
        {"device::mbarrier_wait(arrivals + (step & 1), step >> 1 & 1);": ""},
    ),
    Fault("backward", "wrong parity", {"(step & 1), step >> 1 & 1)": "(step & 1), ~step >> 1 & 1)"}),
    Fault("backward", "one buffer for gradients", {"gradients + now * P::GRADIENT_BYTES": "gradients"}),
    Fault(
        "backward",
        "one buffer for shares",
        {"partial + (step & 1) * P::PARTIAL_BYTES": "partial", "partial + now * P::PARTIAL_BYTES": "partial"},
    ),
    Fault("backward", "no wait for the other warps' gradients", {"device::block_barrier();": ""}),
    Fault(
        "backward",
        "no wait for barriers to be made",
        {"device::cluster_arrive();": "", "device::cluster_wait();": ""},
    ),
)

OTHER_CELLS = {
    "a parameter of another unit": Fault(
        "forward", "peephole_lstm", {"* a.H + unit;": "* a.H + unit / 2;"}, "../own.cuh"
    ),
    "a parameter of the other direction": Fault(
        "backward", "peephole_lstm", {"int64_t(direction) * PARAMETERS": "int64_t(0) * direction"}, "../own.cuh"
    ),
    "a step's input of another step": Fault("forward", "zoneout_lstm", {"inputs_at[j] += is_last ? 0 : row_step;": ""}),
    "states' histories mixed up": Fault(
        "backward",
        "slstm",
        {"histories, s))[ys_at(x) +": "histories, STATES - s))[ys_at(x) +"},
    ),
}
"""Faults of what the built-in cells have not, by what they do; named after the cell that shows them."""


def compile_check(check: Path, target: Path, sources: Path, *flags: str) -> None:
    command = [COMPILER, *FLAGS, *flags, f"-I{sources}", str(check), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=SECONDS)


def in_place_of_the_lstm(cell: Cell, folder: Path) -> Path:
    """Sources in which this cell's class has the name of the one that check programs can be compiled for alone."""
    assert cell.program is not None
    return cuda_host.with_cells([replace(cell.program, name="lstm")], folder)


def assert_clean(check: Path, folder: Path, *kernels: str, sources: Path = cuda_host.SOURCES) -> None:
    """The sanitizers find nothing in the kernels that these flags ask for."""
    compile_check(check, folder / "check", sources, *SANITIZERS, *kernels)
    done = run(folder / "check", SANITIZED_SCHEDULES)
    assert done.returncode == 0, done.stderr


def printed(check: Path, folder: Path, kernels: dict[str, str], sources: Path = cuda_host.SOURCES) -> dict[str, str]:
    """What the kernels as they are print, for an LSTM, by name; `kernels` has the flag for each."""
    result = {}
    for kernel, flag in kernels.items():
        compile_check(check, folder / kernel, sources, "-DFASTRNN_CHECK_LSTM_ALONE", flag)
        done = run(folder / kernel)
        assert done.returncode == 0, done.stderr
        result[kernel] = done.stdout
    return result


def assert_found(
    check: Path,
    folder: Path,
    kernel: str,
    file: str,
    changes: dict[str, str],
    healthy: str,
    original: Path = cuda_host.SOURCES,
) -> None:
    """With `changes` of a file in csrc/, by text, the kernel that this flag asks for fails or prints something else."""
    sources = folder / "faulty"
    shutil.copytree(original, sources)
    text = (sources / file).read_text()
    for healthy_text, change in changes.items():
        assert healthy_text in text, "the fault has no place in the source any more"
        text = text.replace(healthy_text, change)
    (sources / file).write_text(text)
    compile_check(check, folder / "check", sources, "-DFASTRNN_CHECK_LSTM_ALONE", kernel, "-w")
    done = run(folder / "check")
    assert done.returncode != 0 or done.stdout != healthy


@pytest.mark.exhaustive
@pytest.mark.parametrize("kernel", SHAPES)
def test_no_sanitizer_complains(kernel: str, tmp_path: Path) -> None:
    assert_clean(CHECK, tmp_path, SHAPES[kernel])


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return printed(CHECK, tmp_path_factory.mktemp("healthy"), SHAPES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}: {fault.name}")
def test_a_planted_fault_is_found(fault: Fault, healthy: dict[str, str], tmp_path: Path) -> None:
    kernel = fault.kernel
    file = fault.file or f"{kernel}.cuh"
    assert_found(CHECK, tmp_path, SHAPES[kernel], f"cluster/{file}", fault.changes, healthy[kernel])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kernel", SHAPES)
def test_no_sanitizer_complains_of_another_cell(kernel: str, tmp_path: Path) -> None:
    sources = in_place_of_the_lstm(seven, tmp_path)
    assert_clean(CHECK, tmp_path, SHAPES[kernel], "-DFASTRNN_CHECK_LSTM_ALONE", sources=sources)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", OTHER_CELLS.values(), ids=OTHER_CELLS)
def test_a_planted_fault_of_another_cell_is_found(fault: Fault, tmp_path: Path) -> None:
    sources = in_place_of_the_lstm(ZOO[fault.name], tmp_path)
    kernel, shape = fault.kernel, SHAPES[fault.kernel]
    healthy = printed(CHECK, tmp_path, {kernel: shape}, sources)[kernel]
    file = fault.file or f"{kernel}.cuh"
    assert_found(CHECK, tmp_path, shape, f"cluster/{file}", fault.changes, healthy, sources)
