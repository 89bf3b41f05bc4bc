"""The grid kernels as programs of their own on the CPU, as test_cuda_faults.py has those of clusters."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import cuda_host
from tests.test_cuda_faults import COMPILER, FLAGS, SANITIZED_SCHEDULES, SANITIZERS, run

CHECK = Path(__file__).parent / "cuda" / "check_grid.cpp"
KERNELS = {"forward": "-DFASTRNN_CHECK_FORWARD", "backward": "-DFASTRNN_CHECK_BACKWARD"}
NO_WAIT = {"while (row.waits && !all_come(mine))": "while (false)"}
NO_WAIT_BY_ELEMENTS = {"come = come || !waits;": "come = true;"}
ONE_BUFFER = {"memory.sums + now * P::SUM_BYTES": "memory.sums"}
NO_BARRIER = {"device::block_barrier();": ""}

FAULTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "forward: no wait for vectors": ("forward", "exchange", NO_WAIT),
    "forward: no wait for elements": ("forward", "exchange", NO_WAIT_BY_ELEMENTS),
    "forward: one buffer for sums": ("forward", "forward", ONE_BUFFER),
    "forward: no wait for the other warps' sums": ("forward", "forward", NO_BARRIER),
    "forward: no wait for lengths": ("forward", "team", NO_BARRIER),
    "forward: a step waits for its own state": ("forward", "forward", {"int64_t(t - dt) * a.B": "int64_t(t) * a.B"}),
    "forward: dead steps store nothing": ("forward", "forward", {"y, inside(tile)": "y, inside(tile) && lives"}),
    "backward: no wait for vectors": ("backward", "exchange", NO_WAIT),
    "backward: no wait for elements": ("backward", "exchange", NO_WAIT_BY_ELEMENTS),
    "backward: one buffer for sums": ("backward", "backward", ONE_BUFFER),
    "backward: no wait for the other warps' sums": ("backward", "backward", NO_BARRIER),
    "backward: no wait for lengths": ("backward", "team", NO_BARRIER),
    "backward: a step waits for its own gradients": ("backward", "backward", {"+ t - dt) * a.B": "+ t) * a.B"}),
    "backward: gradients flow through cuts": ("backward", "backward", {"lives && !cut_here ? 1.f": "lives ? 1.f"}),
}
"""By name: the kernel, the file in csrc/grid, and by text in it what takes its place wherever it stands."""

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER}) in PATH")


def compile_check(target: Path, sources: Path, *flags: str) -> None:
    command = [COMPILER, *FLAGS, *flags, f"-I{sources}", str(CHECK), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_sanitizer_complains(tmp_path: Path) -> None:
    compile_check(tmp_path / "check", cuda_host.SOURCES, *SANITIZERS, *KERNELS.values())
    done = run(tmp_path / "check", SANITIZED_SCHEDULES)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the kernels as they are print, for an LSTM."""
    folder, printed = tmp_path_factory.mktemp("healthy"), {}
    for kernel, flag in KERNELS.items():
        compile_check(folder / kernel, cuda_host.SOURCES, "-DFASTRNN_CHECK_LSTM_ALONE", flag)
        done = run(folder / kernel)
        assert done.returncode == 0, done.stderr
        printed[kernel] = done.stdout
    return printed


@pytest.mark.parametrize(("kernel", "file", "changes"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(
    kernel: str, file: str, changes: dict[str, str], healthy: dict[str, str], tmp_path: Path
) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(cuda_host.SOURCES, sources)
    source = sources / "grid" / f"{file}.cuh"
    text = source.read_text()
    for healthy_text, change in changes.items():
        assert healthy_text in text, "the fault has no place in the source any more"
        text = text.replace(healthy_text, change)
    source.write_text(text)
    compile_check(tmp_path / "check", sources, "-DFASTRNN_CHECK_LSTM_ALONE", KERNELS[kernel], "-w")
    done = run(tmp_path / "check")
    assert done.returncode != 0 or done.stdout != healthy[kernel]
