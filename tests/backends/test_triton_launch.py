"""The launcher's host path without a GPU: what reaches the driver, and when anything is compiled.

Triton's driver is taken by one that compiles for sm_90 and writes down what it is told to launch. It runs in a process
of its own: neither TRITON_INTERPRET there, nor this driver here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.checkout import variables_of_children

pytest.importorskip("triton")

SCRIPT = '''
import json, sys
import torch, triton
import triton.language as tl
from types import SimpleNamespace
from triton.runtime.errors import OutOfResources
from benchmarks.triton_compile import NoGPU
from fastrnn.backends.triton import launch

STREAM = 1234
launches, loads = [], []


class Recorder(NoGPU):
    """Loads nothing and launches nothing."""

    def __init__(self):
        super().__init__(90)
        self.utils = SimpleNamespace(load_binary=self.load, get_device_properties=lambda _: {"max_shared_mem": 232448})

    def get_current_stream(self, device):
        return STREAM

    def load(self, name, binary, shared, device):
        loads.append(name)
        if name == "kernel_of_no_device":
            raise OutOfResources(9, 8, "shared memory")
        spills = {"kernel_of_tuples": 16, "kernel_that_spills": 17}.get(name, 0)
        return "module", f"function {len(loads)}", 16, spills, 1024

    def launcher_cls(self, source, metadata):
        def launch_it(x, y, z, stream, function, packed, launch_metadata, enter_hook, exit_hook, *arguments):
            shown = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments if not isinstance(a, tuple)]
            shown = [a.value if isinstance(a, tl.constexpr) else a for a in shown]
            launches.append({"grid": [x, y, z], "stream": stream, "function": function, "arguments": shown})

        return launch_it


triton.runtime.driver.set_active(Recorder())


@triton.jit(do_not_specialize=["T", "B"])
def kernel(a, b, out, T, B, SCALE: tl.constexpr, N: tl.constexpr):
    offsets = tl.program_id(0) * N + tl.arange(0, N)
    inside = offsets < T * B
    value = tl.load(a + offsets, mask=inside)
    if b is not None:
        value += tl.load(b + offsets, mask=inside)
    tl.store(out + offsets, value * SCALE, mask=inside)


pointers = []


def call(dtype, T, B, has_b=True, scale=2, warps=4, grid=(1, 1, 1)):
    a, b, out = (torch.zeros(T * B, dtype=dtype) for _ in range(3))
    arguments = (a, b if has_b else None, out, T, B)
    pointers.append([t.data_ptr() if isinstance(t, torch.Tensor) else t for t in arguments])
    constants = {"N": 16, "SCALE": scale, "UNKNOWN": 0}
    launch.Launcher(kernel, arguments, constants, warps, 1)(grid, *arguments)
    return len(launch._handles)


counts = [
    call(torch.float32, 3, 5, grid=(7, 2, 1)),
    call(torch.float32, 1, 1),
    call(torch.float32, 16, 64),
    call(torch.float16, 3, 5),
    call(torch.float32, 3, 5, has_b=False),
    call(torch.float32, 3, 5, scale=3),
    call(torch.float32, 3, 5, warps=2),
    call(torch.float32, 3, 5),
]
compiled = sum(len(caches[0]) for caches in kernel.device_caches.values())
told = {"counts": counts, "compiled": compiled, "loads": [*loads], "launches": [*launches], "given": pointers}


@triton.jit
def kernel_of_tuples(given, out):
    value = 0.0
    for k in tl.static_range(len(given)):
        value += tl.load(given[k]).to(tl.float32)
    tl.store(out, value)


single, half = torch.zeros(1), torch.zeros(1, dtype=torch.float16)
for given in ((single,), (single, single), (single, half), (single + 1, single + 1)):
    launch.Launcher(kernel_of_tuples, (given, single), {}, 4, 1)((1, 1, 1), given, single)
told["tuples"] = [launch["function"] for launch in launches[len(told["launches"]) :]]


@triton.jit
def kernel_that_spills(out):
    tl.store(out, 0.0)


@triton.jit
def kernel_of_no_device(out):
    tl.store(out, 1.0)


kinds = ((kernel_of_tuples, ((single,), single)), (kernel_that_spills, (single,)), (kernel_of_no_device, (single,)))
before = len(loads)
told["too_large"] = [launch.Launcher(kind, given, {}, 4, 1).too_large() for kind, given in (*kinds, *kinds)]
told["looked_at"] = loads[before:]
json.dump(told, sys.stdout)
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver was told in eight calls of the script's kernel."""
    script = tmp_path_factory.mktemp("launch") / "script.py"  # Triton reads a kernel's source from its file
    script.write_text(SCRIPT)
    environment = variables_of_children()
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_handle_serves_other_sizes_and_tensors(told: dict[str, Any]) -> None:
    assert told["counts"][:3] == [1, 1, 1]


def test_another_kind_of_call_has_its_own(told: dict[str, Any]) -> None:
    """Another dtype, an absent argument, another constant, another number of warps; then the first kind again."""
    assert told["counts"][3:] == [2, 3, 4, 5, 5]
    assert told["compiled"] == len(told["loads"]) == 5, "Triton compiled and loaded what the handles are for, no more"
    functions = [launch["function"] for launch in told["launches"]]
    assert functions == [f"function {number}" for number in (1, 1, 1, 2, 3, 4, 5, 1)]


def test_grid_stream_and_arguments_arrive_in_order(told: dict[str, Any]) -> None:
    assert told["launches"][0]["grid"] == [7, 2, 1]
    assert {launch["stream"] for launch in told["launches"]} == {1234}
    scales = (2, 2, 2, 2, 2, 3, 2, 2)
    for launch, given, scale in zip(told["launches"], told["given"], scales, strict=True):
        assert launch["arguments"] == [*given, scale, 16], "constants follow, in the order of the kernel's parameters"


def test_tuples_are_known_by_what_is_in_them(told: dict[str, Any]) -> None:
    """Their length and the dtypes in them."""
    assert told["tuples"] == [f"function {number}" for number in (6, 7, 8, 7)]


def test_a_kernel_is_too_large_where_it_spills_or_has_no_room(told: dict[str, Any]) -> None:
    """What is put aside before a loop is tolerated. It is looked at once."""
    spills = "68 bytes of a thread have no room in registers"
    assert told["too_large"][:2] == told["too_large"][3:5] == [None, spills]
    assert "shared memory" in told["too_large"][2]
    assert told["looked_at"] == ["kernel_that_spills", "kernel_of_no_device"]
