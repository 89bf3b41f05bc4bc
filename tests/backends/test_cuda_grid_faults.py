"""The grid kernels as programs of their own on the CPU, as test_cuda_faults.py has those of clusters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.backends.test_cuda_faults import COMPILER, assert_clean, assert_found, printed

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


@pytest.mark.exhaustive
def test_no_sanitizer_complains(tmp_path: Path) -> None:
    assert_clean(CHECK, tmp_path, *KERNELS.values())


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return printed(CHECK, tmp_path_factory.mktemp("healthy"), KERNELS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kernel", "file", "changes"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(
    kernel: str, file: str, changes: dict[str, str], healthy: dict[str, str], tmp_path: Path
) -> None:
    assert_found(CHECK, tmp_path, KERNELS[kernel], f"grid/{file}.cuh", changes, healthy[kernel])
