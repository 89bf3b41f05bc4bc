"""The `cuda` backend's grid kernels, forced upon layers that clusters would take too: see test_cuda_host.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastrnn import extension, ops
from fastrnn.backends import cuda as backend
from fastrnn.backends.layer import Gradients, Residuals
from fastrnn.cells import CELLS
from tests.backends.cuda_results import assert_as_reference, assert_as_tf32, assert_schedules_agree, in_dtype
from tests.random_layers import AWKWARD, Shape, random_layer
from tests.selection import exhaustive

pytest_plugins = ["tests.backends.cuda_fixtures"]
pytestmark = pytest.mark.usefixtures("poisoned_memory", "kernels", "grid")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EVERYTHING = Shape(steps=6, batch=17, hidden=38, heads=2, directions=2, lengths=True, resets=True)
"""Three tiles of the batch, two blocks a team, and rows that are not of whole vectors."""
SHAPES = (
    *AWKWARD[:-2],
    EVERYTHING,
    replace(EVERYTHING, hidden=80),
    Shape(steps=3, batch=9, hidden=72, resets=True, reverse=True),
    Shape(steps=3, batch=2, hidden=300),
)
"""The last of more than a slice of the sum."""
CASES = [
    pytest.param(cell, shape, recompute, id=f"{cell}-{shape}-{'preactivations' if recompute else 'gates'}")
    for cell in CELLS
    for shape in SHAPES
    for recompute in (False, True)
    if (CELLS[cell].saved and shape in (EVERYTHING, AWKWARD[0])) or not recompute
]
MANY_JOBS = Shape(steps=2, batch=17, hidden=134, heads=67, directions=2)
"""More heads and directions than the device has room for teams, each with three tiles of the batch at once."""
LARGE_BATCH = Shape(steps=1, batch=137, hidden=67, heads=67, lengths=True)
"""More tiles than a team computes at once: of two teams with two chunks each, one has them of the same head."""
SEVERAL_SLICES = Shape(steps=3, batch=2, hidden=520)
SEEDED = [
    *(
        pytest.param(cell, replace(EVERYTHING, batch=9), dtype, marks=() if cell == "lstm" else pytest.mark.exhaustive)
        for cell in CELLS
        for dtype in DTYPES
    ),
    *((cell, Shape(steps=4, batch=10, hidden=48), torch.bfloat16) for cell in CELLS),
]
LARGE = [
    ("lstm", 1024, torch.bfloat16),
    ("gru", 1024, torch.float32),
    pytest.param("lstm", 2048, torch.bfloat16, marks=pytest.mark.exhaustive),
]
"""All weights in registers; a third of them, and half of them, in shared memory."""
ALL_ONES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""By dtype, integers of its size: -1 has the bits that readers take for a word that has not come."""


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, tf32: None) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_WAY", "grid")


def assert_right(layer: Any, dtype: torch.dtype, recompute: bool = False) -> None:
    if dtype == torch.float32:
        assert_as_tf32(layer, recompute)
    else:
        assert_as_reference(layer, dtype, recompute)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "shape", "recompute"), CASES)
def test_values_and_gradients(cell: str, shape: Shape, recompute: bool, dtype: torch.dtype) -> None:
    assert_right(random_layer(cell, shape), dtype, recompute)


@pytest.mark.parametrize("cell", ["lstm", *exhaustive("gru")])
@pytest.mark.parametrize("shape", [MANY_JOBS, LARGE_BATCH], ids=str)
def test_a_team_has_several_tiles_and_chunks(cell: str, shape: Shape) -> None:
    planner = extension.load()
    recurrence = {"operation": "forward", "cell": cell, "element": "bfloat16", "way": "grid"}
    sizes = {"batch": shape.batch, "heads": shape.heads, "directions": shape.directions}
    device = {"architectures": planner.architectures, **planner.limits(0)}
    plan = planner.plan(**recurrence, units=shape.hidden // shape.heads, **sizes, **device)
    tiles = -(-shape.batch // plan["rows"])
    assert plan["batch_tiles"] > 1
    assert plan["groups"] < shape.heads * shape.directions * -(-tiles // plan["batch_tiles"])
    assert_right(random_layer(cell, shape), torch.bfloat16)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_several_slices(cell: str, dtype: torch.dtype) -> None:
    assert_right(random_layer(cell, SEVERAL_SLICES), dtype)


@pytest.mark.parametrize(("cell", "hidden", "dtype"), LARGE, ids=str)
def test_large_heads(cell: str, hidden: int, dtype: torch.dtype) -> None:
    assert_right(random_layer(cell, Shape(steps=2, batch=1, hidden=hidden)), dtype)


@pytest.mark.parametrize(("cell", "shape", "dtype"), SEEDED, ids=str)
def test_every_schedule_gives_the_same_bits(
    cell: str, shape: Shape, dtype: torch.dtype, seeded: Callable[[int], None]
) -> None:
    assert_schedules_agree(random_layer(cell, shape), dtype, seeded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [19, 24])
@pytest.mark.parametrize("cell", CELLS)
def test_any_nan_passes_and_stays_in_its_sequence(cell: str, hidden: int, dtype: torch.dtype) -> None:
    """Also that which a word holds until it has come: no reader waits for it."""
    layer = in_dtype(random_layer(cell, Shape(batch=9, hidden=hidden, directions=2)), dtype)
    clean = ops.forward(layer, history=False, gates=False, backend="cuda")
    for state in layer.states0:
        state.view(ALL_ONES[dtype])[:, 3] = -1
    layer.x.view(ALL_ONES[dtype])[2, 8] = -1
    dirty = ops.forward(layer, history=False, gates=False, backend="cuda")
    others = [0, 1, 2, 4, 5, 6, 7]
    for before, after in zip(clean.states + clean.finals, dirty.states + dirty.finals, strict=True):
        assert torch.equal(before[:, others], after[:, others])
    for sequence in (3, 8):
        assert dirty.finals[0][:, sequence].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [19, 24])
@pytest.mark.parametrize("cell", CELLS)
def test_any_nan_among_gradients_passes_and_stays_in_its_sequence(cell: str, hidden: int, dtype: torch.dtype) -> None:
    layer = in_dtype(random_layer(cell, Shape(batch=9, hidden=hidden, directions=2)), dtype)
    result = backend.forward(layer, history=True, gates=True)
    kept = Residuals(result.states, result.saved)
    grads = Gradients([torch.randn_like(s) for s in result.states], [torch.randn_like(f) for f in result.finals])
    clean = backend.backward(layer, kept, grads)
    for final in grads.finals:
        assert final is not None
        final.view(ALL_ONES[dtype])[:, 3] = -1
    dirty = backend.backward(layer, kept, grads)
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    for before, after in zip(clean.states0, dirty.states0, strict=True):
        assert torch.equal(before[:, others], after[:, others])
        assert after[:, 3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_inference_gives_the_same_bits(cell: str, dtype: torch.dtype) -> None:
    layer = in_dtype(random_layer(cell, EVERYTHING), dtype)
    kept, lean = (backend.forward(layer, history=keep, gates=keep) for keep in (True, False))
    assert (len(lean.states), len(lean.saved)) == (1, 0)
    for tensor, other in zip([kept.states[0], *kept.finals], [lean.states[0], *lean.finals], strict=True):
        assert torch.equal(tensor, other)
