"""Both ways of the Triton backend, each forced upon layers that the table would give to the other, and with heads.

`test_backends.py` compares what the table chooses with the reference in every dtype.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.backends.layer import Layer
from fastrnn.backends.triton import configurations, persistent, ways
from fastrnn.cells import CELLS
from tests.arithmetic import judged, randomly_rounded, yardsticks
from tests.random_layers import AWKWARD, Shape, compute, cotangents, random_layer, rounded
from tests.selection import exhaustive
from tests.tolerances import DRAWS, FACTOR, FLOOR, TF32_EPSILON, assert_accurate

reason = backends.module("triton").ready()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=f"triton: {reason}"),
    pytest.mark.usefixtures("poisoned_memory"),
    # Names the backend, which decides on which device tensors are created.
    pytest.mark.parametrize("backend", ["triton"]),
]

HEADS = (
    Shape(heads=2),
    Shape(steps=4, batch=9, hidden=51, heads=3, directions=2, lengths=True, resets=True),
    Shape(steps=3, batch=2, hidden=6, heads=6, reverse=True, resets=True),
)
EVERYTHING = Shape(steps=7, batch=9, hidden=19, directions=2, lengths=True, resets=True)

gates_first = pytest.mark.parametrize("cell", ["lstm", "gru", *exhaustive("rnn_tanh")])
"""The cells whose kernels have all that the others' have."""

EXACT = torch.float64 if configurations.INTERPRETED else torch.float32
"""The most exact dtype of the persistent kernels: on a GPU float64 goes step by step."""


def force(patch: pytest.MonkeyPatch, tile: configurations.Tile | None) -> None:
    """Both directions of differentiation by the persistent kernel with `tile`, or step by step."""

    def chosen(layer: Layer) -> configurations.Tile | None:
        return tile

    patch.setattr(ways, "forward_tile", chosen)
    patch.setattr(ways, "backward_tile", chosen)


def refuse_large(patch: pytest.MonkeyPatch) -> list[str]:
    """Has every persistent kernel that is looked at be too large, "planted" the reason -> what will be said of it."""
    said: list[str] = []
    patch.setattr(persistent.Launcher, "too_large", lambda launcher: "planted")
    patch.setattr(persistent, "notice", said.append)
    persistent._say_once.cache_clear()
    return said


def assert_as_reference(layer: Layer, dtype: torch.dtype = EXACT, recompute: bool = False) -> None:
    layer = rounded(layer, dtype)
    grads = tuple([d.to(dtype).double() for d in group] for group in cotangents(layer))
    truth, others = compute(layer, torch.float64, "reference", grads), yardsticks(layer, dtype, grads, "triton")
    for name, result in compute(layer, dtype, "triton", grads, recompute).items():
        assert_accurate(name, result, truth[name], *(other[name] for other in others))


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        pytest.param(cell, shape, marks=() if cell == ("lstm", "gru")[number % 2] else pytest.mark.exhaustive)
        for number, shape in enumerate([*AWKWARD[:-2], *HEADS])
        for cell in ("lstm", "gru", "rnn_tanh")
    ],
    ids=str,
)
def test_step_by_step(cell: str, shape: Shape, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, None)
    assert_as_reference(random_layer(cell, shape))


@gates_first
@pytest.mark.parametrize("dtype", [*exhaustive(torch.float32, torch.float16), torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [AWKWARD[5], EVERYTHING], ids=str)
def test_step_by_step_in_storage_dtypes(
    cell: str, shape: Shape, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, None)
    assert_as_reference(random_layer(cell, shape), dtype)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [EXACT, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_heads(cell: str, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    assert_as_reference(random_layer(cell, shape), dtype)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [Shape(), EVERYTHING], ids=str)
def test_tf32(cell: str, shape: Shape, backend: str) -> None:
    """Products of numbers cut to 10 bits, beside the reference with errors of that size wherever a kernel rounds."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    layer = random_layer(cell, shape)
    grads = cotangents(layer)
    others = [randomly_rounded(layer, TF32_EPSILON["triton"], grads) for _ in range(DRAWS)]
    results = compute(layer, torch.float32, backend, grads)
    for name, (error, measure) in judged(layer, grads, results, others).items():
        assert error <= FACTOR * measure + FLOOR[torch.float32], name


@pytest.mark.parametrize(
    ("cell", "steps"),
    [
        pytest.param("lstm", False, id="lstm-persistent"),
        pytest.param("gru", True, id="gru-steps"),
        pytest.param("lstm", True, id="lstm-steps", marks=pytest.mark.exhaustive),
        pytest.param("gru", False, id="gru-persistent", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("dtype", [EXACT, *exhaustive(torch.bfloat16)], ids=str)
def test_recomputed_gates(
    cell: str, dtype: torch.dtype, steps: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps:
        force(monkeypatch, None)
    assert_as_reference(random_layer(cell, EVERYTHING), dtype, recompute=True)
    assert_as_reference(random_layer(cell, HEADS[1]), dtype, recompute=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_tile", [8, 16, 32])
def test_any_batch_tile(cell: str, batch_tile: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also such as the tuner tries and the table does not have."""
    if not configurations.INTERPRETED and batch_tile < configurations.BACKWARD_BATCH:
        pytest.skip("the tensor cores' product has no smaller M")
    force(monkeypatch, configurations.Tile(batch_tile, 4, 0))
    assert_as_reference(random_layer(cell, EVERYTHING))


@pytest.mark.parametrize(("cell", "hidden"), [("lstm", 61), ("gru", 64), ("rnn_tanh", 128), ("rnn_relu", 127)])
def test_the_largest_tiles(cell: str, hidden: int, backend: str) -> None:
    layer = random_layer(cell, Shape(steps=3, batch=3, hidden=hidden))
    if configurations.INTERPRETED:
        assert configurations.forward_tile(layer) is not None
    assert_as_reference(layer)


def test_the_table_is_honoured(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that no row serves goes step by step, and one that a row serves does not."""
    taken: list[str] = []

    def spy(module: Any, name: str) -> None:
        original = module.forward

        def forward(*arguments: Any) -> Any:
            taken.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, "forward", forward)

    spy(ways.persistent, "persistent")
    spy(ways.steps, "steps")
    for hidden in (64, 65):
        layer = random_layer("lstm", Shape(steps=1, batch=1, hidden=hidden))
        compute(layer, torch.float32, "triton", cotangents(layer))
    assert taken == ["persistent", "steps"]


@pytest.mark.parametrize("cell", CELLS)
def test_unaligned_arguments(cell: str, backend: str) -> None:
    """Kernels are compiled for aligned pointers: what is not is copied."""

    def shifted(tensor: Tensor) -> Tensor:
        moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        return moved.copy_(tensor)

    layer = random_layer(cell, Shape(steps=3, resets=True, dropped=True))
    moved = layer.with_tensors(shifted)
    grads = cotangents(layer)
    expected = compute(layer, torch.float32, "triton", grads)
    for name, result in compute(moved, torch.float32, "triton", grads).items():
        assert torch.equal(result, expected[name]), name
