"""Cells without a product of the state in Triton, in one launch and as a scan, beside the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastrnn
from benchmarks import triton_compile
from benchmarks.triton_compile import CAPABILITIES, MASKED, MASKED_LEAN, TRAINING, Kernel
from fastrnn import backends
from fastrnn.backends import triton as backend_module
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.backends.triton import scan
from fastrnn.cells.compiler import linearity
from fastrnn.cells.known import known
from fastrnn.cells.library import indrnn
from tests.backends import test_triton_other_cells, test_triton_ways
from tests.cells.test_linearity import LINEAR
from tests.random_layers import Shape, any_layer
from tests.selection import exhaustive

reason = backends.module("triton").ready()
pytestmark = pytest.mark.usefixtures("poisoned_memory")
needs_a_device = pytest.mark.skipif(reason is not None, reason=f"triton: {reason}")
on_triton = pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device


@fastrnn.cell
def dividing(x: Any, h: Any) -> Any:
    """What it saves is NaN where x is zero."""
    return h + x.b / x.a


@fastrnn.cell
def amplifier(x: Any, h: Any, *, p: Any) -> Any:
    """Its factor may be above 1."""
    return p * h + x.a


ALL = {cell.name: known(cell) for cell in (*LINEAR.values(), indrnn, dividing, amplifier)}
EVERYTHING = Shape(steps=9, batch=3, hidden=5, directions=2, lengths=True, resets=True)
SHAPES = (
    EVERYTHING,
    replace(EVERYTHING, steps=11, directions=1, reverse=True, bias=False),
    Shape(steps=7, batch=2, hidden=131, resets=True),
    Shape(steps=8, lengths=True),
    Shape(steps=1, batch=1, inputs=1, hidden=1, directions=2),
)
ONE_LAUNCH, CHUNKS_OF_3 = "one launch", "chunks of 3"
SHORT_RUN = {
    ("mingru", EVERYTHING, ONE_LAUNCH): False,
    ("indrnn", EVERYTHING, CHUNKS_OF_3): True,
    ("sru", EVERYTHING, CHUNKS_OF_3): True,
    ("dividing", EVERYTHING, ONE_LAUNCH): True,
    ("taken_apart", SHAPES[1], CHUNKS_OF_3): False,
    ("mingru", SHAPES[2], CHUNKS_OF_3): False,
    ("sru", SHAPES[4], ONE_LAUNCH): True,
}
"""Whether saved values are kept."""


def force(patch: pytest.MonkeyPatch, way: str) -> None:
    """Every layer, as far as its cell is linear, by a scan or by none."""
    patch.setattr(scan, "SHORTEST", 3 if way == CHUNKS_OF_3 else 1 << 20)
    patch.setattr(scan, "FEWEST", 2)
    patch.setattr(scan, "BYTES_IN_FLIGHT", 1 << 30)


def layers() -> Iterator[Any]:
    for name in ALL:
        for shape in SHAPES:
            for way in (ONE_LAUNCH, CHUNKS_OF_3):
                for kept in (True, False):
                    marks = () if SHORT_RUN.get((name, shape, way)) == kept else pytest.mark.exhaustive
                    case = f"{name}-{shape}-{way}-{'kept' if kept else 'recomputed'}"
                    yield pytest.param(name, shape, way, kept, id=case, marks=marks)


@needs_a_device
@on_triton
@pytest.mark.parametrize(("name", "shape", "way", "kept"), list(layers()))
def test_a_layer(name: str, shape: Shape, way: str, kept: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, way)
    test_triton_other_cells.assert_exact(any_layer(ALL[name], shape), kept)


@needs_a_device
@on_triton
@pytest.mark.parametrize("name", ["mingru", *exhaustive("sru", "minlstm", "indrnn")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *exhaustive(torch.float16, torch.float32)], ids=str)
@pytest.mark.parametrize("way", [CHUNKS_OF_3, *exhaustive(ONE_LAUNCH)])
@pytest.mark.parametrize("recompute", [True, *exhaustive(False)])
def test_a_layer_in_storage_dtypes(
    name: str, dtype: torch.dtype, way: str, recompute: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the built-in cells are judged."""
    force(monkeypatch, way)
    test_triton_ways.assert_as_reference(any_layer(ALL[name], EVERYTHING), dtype, recompute)


@needs_a_device
@on_triton
def test_a_product_of_factors_that_overflows(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing does step by step, where what enters the chunk is zero: a scan gives the same, to the bit."""
    layer = any_layer(ALL["amplifier"], Shape(steps=9, batch=2, bias=False))
    layer.parameters[0].fill_(1e120)
    layer.parameters[0][:2] = 0.5
    layer.states0[0].zero_()
    layer.x.mul_(0.0)[4] = 1e-200
    d_output = torch.zeros(9, 2, layer.hidden_size, dtype=layer.x.dtype)
    d_output[3] = 1e-200
    grads = Gradients([d_output], [None])
    results = []
    for way in (ONE_LAUNCH, CHUNKS_OF_3):
        force(monkeypatch, way)
        outputs = backend_module.forward(layer, history=True, gates=True)
        found = backend_module.backward(layer, Residuals(outputs.states, outputs.saved), grads)
        results.append([*outputs.states, *outputs.finals, *found.x, *found.w_ih, *found.states0, *found.parameters])
    for once, scanned in zip(*results, strict=True):
        assert once.isfinite().all()
        assert torch.equal(once, scanned)
    assert results[0][0].max() > 1e250
    assert results[0][-2].max() > 1e250


@pytest.mark.parametrize(
    ("steps", "batch", "units", "expected"),
    [
        (1024, 1, 64, 32),
        (1024, 64, 1024, 171),  # six chunks
        (1024, 128, 1024, None),  # three
        (1024, 512, 1024, None),
        (16384, 1, 64, 128),  # no more chunks than each has steps
        (97, 1, 64, 32),
        (96, 1, 64, None),
        (1, 1, 1, None),
    ],
)
def test_steps_of_a_chunk(steps: int, batch: int, units: int, expected: int | None) -> None:
    """Of an H200; a step reads two numbers of 16 bits and writes one."""
    layer = SimpleNamespace(
        x=SimpleNamespace(shape=(steps, batch, 1), device=torch.device("cpu")), hidden_size=units, directions=1
    )
    step = linearity.forward(program("mingru"))
    assert scan.chunk_steps(layer, step, 6) == expected
    assert scan.chunk_steps(layer, None, 6) is None
    assert scan.chunk_steps(layer, linearity.forward(program("forgetful")), 6) is None, "nothing is carried"


def program(name: str) -> Any:
    return ALL[name].program


def test_entries() -> None:
    """Products have those of paths: c goes to h, and what h was before a first live step stays."""
    found = linearity.backward(program("sru"))
    assert found is not None
    assert found.entries == [(1, 0), (1, 1)]
    assert found.entries_of_products == [(0, 0), (1, 0), (1, 1)]
    assert scan.constants(found) == {"FACTORS": (-1, -1, 0, 1), "PRODUCTS": (0, -1, 1, 2)}


SCAN = ("summaries", "steps")
"""Kernels of a scan."""


def kernels(name: str, dtype: str, units: int, capability: int) -> Iterator[Kernel]:
    """All of a cell, with all that they may have to load and select; for 48 units also with less."""
    precision = {"bfloat16": "16 bit", "float16": "16 bit", "float32": "tf32x3"}.get(dtype, dtype)
    p = program(name)
    for direction, linear in (("forward", linearity.forward(p)), ("backward", linearity.backward(p))):
        masked = MASKED if direction == "forward" else MASKED_LEAN
        plain = Kernel(direction, name, precision, dtype, units, None, masked, capability, program=p.text)
        is_scanned = linear is not None and len(linear.states) > 0
        for kernel in (plain, *(plain._replace(scan=which) for which in SCAN if is_scanned)):
            yield kernel
            if units == 48:
                yield kernel._replace(variant=TRAINING)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([("mingru", "bfloat16", 64, 90)], id="some"),
        pytest.param(
            [
                *((name, "bfloat16", 48, 90) for name in ALL if name != "forgetful"),  # there the loop is empty
                *(("sru", dtype, 48, 90) for dtype in ("float32", "float64")),
                *((name, "bfloat16", 1024, capability) for name in ("mingru", "sru") for capability in CAPABILITIES),
                ("mingru", "float16", 65, 90),
            ],
            id="more",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_kernels_compile_for_a_gpu_that_need_not_be_there(cases: list[tuple[str, str, int, int]]) -> None:
    """Nothing spills, and loads are asked for ahead, by asynchronous copies, where two units lie side by side."""
    missing = triton_compile.missing()
    if missing is not None:
        pytest.skip(missing)
    wanted = [kernel for case in cases for kernel in kernels(*case)]
    for kernel, found in zip(wanted, triton_compile.compile_all(wanted, 1), strict=True):
        assert not isinstance(found, str), f"{kernel}: {found}"
        assert (found.assembly.spills, found.stack) == (0, 0), kernel
        assert found.assembly.is_loop, kernel
        assert (found.assembly.loop["LDGSTS"] > 0) == (kernel.units % 2 == 0), kernel
