"""The Triton kernels compiled for a GPU that need not be there, and what their machine code says of a step.

Nothing of the backend is repeated here: a small layer on the CPU goes the backend's own way to its launchers, where a
driver that only names the wanted architecture makes Triton compile instead of launch. What is read from the cubin:
registers, stack and shared memory by cuobjdump's resource usage, and the instructions of the time loop.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from benchmarks.sass import Assembly, read

if TYPE_CHECKING:
    from fastrnn.backends.layer import Layer
    from fastrnn.cells import Cell

CAPABILITIES = (80, 90, 100)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that a block may have at most, by capability (CUDA C++ Programming Guide, "Technical Specifications")."""
STEPS = 2
"""Of the layers that are compiled for; the least for which Triton does not take a size for the constant 1."""
INPUTS = 3
"""Of the same layers. No kernel sees it."""
CHUNK = 4
"""Kernels that a process is handed at a time, some seconds' work."""


class Variant(NamedTuple):
    """Which of a kernel's optional arguments are given: what else there is to load, to store or to select."""

    history: bool = True
    """forward: cs is kept"""
    gates: bool = True
    """forward: gates are kept; backward: they were, or else the preactivations take their place"""
    masks: bool = False
    """lengths and resets"""
    gradients: bool = False
    """backward: besides dys there are dcs and the gradients of all finals"""
    dropped: bool = False
    """recurrent dropout's mask"""


INFERENCE = Variant(history=False, gates=False)
LEAN = Variant(gates=False)
TRAINING = Variant()
MASKED = Variant(masks=True, gradients=True)
MASKED_LEAN = Variant(gates=False, masks=True, gradients=True)
DROPPED = MASKED._replace(dropped=True)
DROPPED_LEAN = MASKED_LEAN._replace(dropped=True)


class Kernel(NamedTuple):
    """One kernel to compile."""

    direction: str
    """"forward" or "backward\""""
    cell: str
    precision: str
    """as `configurations.precision` names it"""
    dtype: str
    """of storage, by torch's name"""
    units: int
    """of the one head"""
    tile: tuple[int, int, int] | None
    """`configurations.Tile`; None for the per-step kernels"""
    variant: Variant
    capability: int
    stages: int | None = None
    """in place of `configurations.STAGES`"""
    edits: tuple[tuple[str, str], ...] = ()
    """of the source: what stands there once, and what takes its place"""
    program: str = ""
    """of a cell that is not built in, as `fastrnn.cells.compiler.text` writes it"""
    scan: str = ""
    """of a cell without a product: which kernel of a scan, "summaries" or "steps"; by default that of all steps"""

    FOLLOWING = ("tile", "program")
    """Fields that follow from others, by the table of tiles and the cell's name."""

    def __str__(self) -> str:
        """Fit to name a test."""
        names = {value: name.lower() for name, value in globals().items() if isinstance(value, Variant)}
        way = "steps" if self.tile is None else f"tile{self.tile[0]}-warps{self.tile[1]}"
        parts = (self.direction, self.cell, self.dtype, self.precision.replace(" ", ""), f"D{self.units}", way)
        parts += (self.scan,) if self.scan else ()
        return "-".join((*parts, names.get(self.variant, "variant"), f"sm{self.capability}"))


class Compiled(NamedTuple):
    """What became of a kernel; sizes in bytes."""

    registers: int
    """of a thread"""
    stack: int
    """of a thread: where registers go that there is no room for"""
    shared_memory: int
    warps: int
    assembly: Assembly
    w_loads: int
    """in the time loop, how often Triton's own code loads w_hh from shared memory as the operand of a product"""


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if cuobjdump() else "there is no cuobjdump: not in triton, on PATH or under CUDA_HOME"


@cache
def cuobjdump() -> str | None:
    """The path of cuobjdump: the one that ships with Triton knows every architecture that Triton compiles for."""
    triton = find_spec("triton")
    folders = [Path(place, "backends/nvidia/bin") for place in (triton and triton.submodule_search_locations) or ()]
    folders += [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = (*map(str, folders), os.environ.get("PATH", ""), "/usr/local/cuda/bin")
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def compile_all(kernels: Sequence[Kernel], workers: int | None = None) -> Iterator[Compiled | str]:
    """What became of each kernel, in order, or the last line of the error that its compilation raised.

    Compiles in `workers` fresh processes (default: as many as there are cores), so that neither TRITON_INTERPRET in
    this one nor another driver stands in the way.
    """
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        with _without("TRITON_INTERPRET"):  # until the processes have been started
            compiled = pool.map(_compile_or_say_why_not, kernels, chunksize=CHUNK)
        yield from compiled


def _compile_or_say_why_not(kernel: Kernel) -> Compiled | str:
    try:
        return compile_one(kernel)
    except Exception as error:
        return (f"{type(error).__name__}: {error}".strip().splitlines() or [""])[-1]


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Takes an environment variable away for a while."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def compile_one(kernel: Kernel) -> Compiled:
    """Compiles in this process, where Triton must not interpret; no launch on a GPU works in it afterwards."""
    import torch

    torch.set_num_threads(1)
    handle = captured(kernel)
    assembly, registers, stack = read(handle.asm["cubin"], str(cuobjdump()))
    ttgir = handle.asm["ttgir"]
    return Compiled(
        registers, stack, handle.metadata.shared, handle.metadata.num_warps, assembly, w_loads_in_loop(kernel, ttgir)
    )


def w_loads_in_loop(kernel: Kernel, ttgir: str) -> int:
    """How many loads of w_hh from shared memory stand in the loop: it is the product's first operand forward, its
    second backward, in Triton's intermediate code as in the kernels."""
    _, _, loop = ttgir.partition("scf.for")
    operand = "opIdx = 0" if kernel.direction == "forward" else "opIdx = 1"
    return sum("local_load" in line and operand in line for line in loop.splitlines())


def captured(kernel: Kernel) -> Any:
    """The `triton.compiler.CompiledKernel` that the backend asks for: of a scan's two the one that is meant."""
    import triton

    from fastrnn.backends.triton import launch, persistent, pointwise, steps

    handles: list[Any] = []

    class Capture(launch.Launcher):
        def __init__(self, *arguments: Any) -> None:
            launch._handles.clear()  # they know the device, and here every architecture is the CPU
            super().__init__(*arguments)
            handles.append(self._handle)

        def too_large(self) -> None:
            """Nothing is loaded: who compiles looks at it."""

        def __call__(self, *arguments: Any) -> None:
            """Launches nothing."""

    triton.runtime.driver.set_active(NoGPU(kernel.capability))
    layer = make_layer(kernel)
    with ExitStack() as stack:
        for module in (persistent, pointwise, steps):
            stack.enter_context(mock.patch.object(module, "Launcher", Capture))
        if kernel.edits:
            stack.enter_context(edited(kernel))
        stack.enter_context(shape(kernel))
        recurrence(kernel, layer)()
    assert len(handles) == (2 if kernel.scan else 1)
    return handles[0 if kernel.scan == "summaries" else -1]


@contextmanager
def edited(kernel: Kernel) -> Iterator[None]:
    """Makes the persistent kernel one whose source was edited. Raises ValueError where there is nothing to edit."""
    from fastrnn.backends.triton import persistent

    original = import_module(f"fastrnn.backends.triton.kernels.{kernel.direction}")
    source = Path(str(original.__file__)).read_text(encoding="utf-8")
    for old, new in kernel.edits:
        if source.count(old) != 1:
            raise ValueError(f"{kernel.direction}.py has {source.count(old)} times {old!r}")
        source = source.replace(old, new)
    name = f"{kernel.direction}_kernel"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "edited.py")  # Triton reads a kernel's source from its file
        file.write_text(source, encoding="utf-8")
        spec = spec_from_file_location("edited", file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        with mock.patch.object(persistent, name, getattr(module, name)):
            yield


@cache
def programs() -> dict[str, str]:
    """Of the cells that have a product of the state, by name: nothing of the built-in ones, the library's programs."""
    from fastrnn.cells import CELLS, library

    own: list[Cell] = [getattr(library, name) for name in library.__all__]
    return dict.fromkeys(CELLS, "") | {cell.name: cell.program.text for cell in own if cell.program and cell.u_gates}


def cell_of(kernel: Kernel) -> Cell:
    from fastrnn.cells.known import KNOWN, of_text

    return of_text(kernel.program) if kernel.program else KNOWN[kernel.cell]


@contextmanager
def shape(kernel: Kernel) -> Iterator[None]:
    """Makes the backend use the kernel's tile, stages and scan instead of those that it chooses."""
    from fastrnn.backends.triton import persistent, scan, ways
    from fastrnn.backends.triton.configurations import STAGES, Tile

    tile = None if kernel.tile is None else Tile(*kernel.tile)
    with (
        mock.patch.object(ways, "forward_tile", return_value=tile),
        mock.patch.object(ways, "backward_tile", return_value=tile),
        mock.patch.object(persistent, "STAGES", kernel.stages or STAGES),
        mock.patch.object(scan, "chunk_steps", return_value=1 if kernel.scan else None),
    ):
        yield


def allow(precision: str) -> None:
    """Sets what `configurations.precision` looks at, so that float32 is multiplied in `precision`."""
    import torch

    torch.backends.cudnn.rnn.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def make_layer(kernel: Kernel, steps: int = STEPS, batch: int | None = None, device: str = "cpu") -> Layer:
    """A layer that the kernel serves: of one head, one direction and, by default, one tile's batch."""
    import torch

    from fastrnn.backends.layer import Layer
    from fastrnn.backends.triton.configurations import FORWARD_BATCH, precision

    allow(kernel.precision)
    options: Any = {"dtype": getattr(torch, kernel.dtype), "device": device}
    if precision(options["dtype"]) != kernel.precision:
        raise ValueError(f"{kernel.dtype} is not multiplied in {kernel.precision}")
    cell, units = cell_of(kernel), kernel.units
    B = batch or (FORWARD_BATCH if kernel.tile is None else kernel.tile[0])
    of_x, of_h = len(cell.x_gates) * units, len(cell.u_gates) * units

    def random(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, **options).uniform_(-(units**-0.5), units**-0.5)

    return Layer(
        cell.key,
        random(steps, B, INPUTS),
        [random(of_x, INPUTS)],
        [random(1, of_h, units)],
        [random(of_x), random(of_h)],
        [],
        [random(1, B, units) for _ in cell.states],
        torch.full((B,), steps, device=device) if kernel.variant.masks else None,
        torch.zeros((steps, B), dtype=torch.bool, device=device) if kernel.variant.masks else None,
        reverse=False,
        recurrent_mask=random(1, B, units) if kernel.variant.dropped else None,
        parameters=[random(units) for _ in cell.parameters],
        inputs=[random(1, steps, B, units) for _ in cell.inputs],
    )


def recurrence(kernel: Kernel, layer: Layer) -> Callable[[], object]:
    """A call of the backend in which `kernel` is the only one of its own: forward, or backward without the weights'
    gradients and x's."""
    from fastrnn.backends import triton
    from fastrnn.backends.layer import Gradients, Residuals

    variant = kernel.variant
    if kernel.direction == "forward":
        return lambda: triton.forward(layer, history=variant.history, gates=variant.gates)
    T, B, _ = layer.x.shape
    saves = len(layer.cell.saved)
    ys = layer.x.new_zeros((T, B, layer.hidden_size))
    states = [ys, *(ys.to(layer.state_dtype) for _ in layer.states0[1:])]
    gates = ys.new_zeros((1, T, B, saves * layer.hidden_size), dtype=layer.gate_dtype)
    histories = [state if variant.gradients else None for state in states[1:]]
    finals = [state if variant.gradients else None for state in layer.states0]
    gradients = Gradients([ys, *histories], finals, need_x=False, need_weights=False)
    residuals = Residuals(states, [gates] if variant.gates and saves else [])
    return lambda: triton.backward(layer, residuals, gradients)


class NoGPU:
    """What Triton asks of its driver in order to compile, answered for a GPU of a given capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Triton keeps what it compiled by device: each architecture is one."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0
