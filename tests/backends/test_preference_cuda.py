"""The choice on a GPU, of layers that need not lie on one: which of fastrnn's kernels, and when cuDNN's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastrnn import backends
from fastrnn.backends import aten_cuda, preference_cuda
from fastrnn.backends.layer import Layer
from fastrnn.backends.stack import Stack
from fastrnn.backends.triton import configurations
from fastrnn.cells import CELLS
from tests.cells.zoo import ZOO
from tests.random_layers import Shape, any_layer

cells = pytest.mark.parametrize("cell", CELLS)


def layer(cell: str, hidden: int, dtype: torch.dtype, steps: int = 128, batch: int = 16, heads: int = 1) -> Layer:
    """Without memory."""
    of_x, of_u = (len(gates) * hidden for gates in (CELLS[cell].x_gates, CELLS[cell].u_gates))

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    states0 = [empty(1, batch, hidden) for _ in CELLS[cell].states]
    w_hh = [empty(heads, of_u // heads, hidden // heads)]
    return Layer(cell, empty(steps, batch, hidden), [empty(of_x, hidden)], w_hh, [], [], states0, None, None, False)


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_what_nobody_has_measured_is_triton_s(operation: str) -> None:
    """Other cells' kernels in CUDA C++, which only the backend by name compiles."""
    other = any_layer(ZOO["mgu"], Shape(hidden=64)).with_tensors(lambda tensor: tensor.to("meta", torch.bfloat16))
    assert preference_cuda.order(other, operation) == ("triton",)


@cells
@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_forward_and_backward_of_small_heads_choose_apart(cell: str, operation: str) -> None:
    by_triton = (operation == "forward") == (cell in ("lstm", "gru"))
    expected = ("triton", "cuda") if by_triton else ("cuda", "triton")
    assert preference_cuda.order(layer(cell, 64, torch.bfloat16), operation) == expected
    assert preference_cuda.order(layer(cell, 512, torch.bfloat16, heads=8), operation) == expected
    assert preference_cuda.order(layer(cell, 512, torch.bfloat16), operation) == ("cuda", "triton")


@pytest.mark.parametrize(("batch", "first"), [(128, "cuda"), (129, "triton")])
def test_large_batches_of_small_heads_go_backward_by_triton(batch: int, first: str) -> None:
    assert preference_cuda.order(layer("gru", 64, torch.float16, batch=batch), "backward")[0] == first


def test_tf32_is_as_torch_allows_it() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert preference_cuda.precision(torch.float32) == "tf32"
    assert preference_cuda.why_torch(layer("lstm", 64, torch.float32), training=False)
    assert preference_cuda.order(layer("lstm", 64, torch.float32), "forward") == ("cuda", "triton")
    torch.backends.cudnn.allow_tf32 = False
    assert preference_cuda.precision(torch.float32) == "float32"
    assert "not been timed" in str(preference_cuda.why_torch(layer("lstm", 64, torch.float32), training=False))


@pytest.mark.parametrize(("batch", "expected"), [(16, False), (256, True)])
def test_large_layers_of_large_batches_are_cudnns(batch: int, expected: bool) -> None:
    assert bool(preference_cuda.why_torch(layer("lstm", 1024, torch.bfloat16, batch=batch), True)) is expected


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
def test_the_choice_within_a_trace() -> None:
    """There sizes are tensors."""
    told: list[object] = []

    def choose(x: torch.Tensor) -> torch.Tensor:
        one = replace(layer("lstm", 256, torch.bfloat16), x=x)
        one = replace(one, w_ih=[torch.empty(1024, 256)], w_hh=[torch.empty(1, 1024, 256)])
        told.extend((preference_cuda.why_torch(one, False), preference_cuda.order(one, "forward")))
        told.append(configurations.forward_tile(one))
        return x * 1

    torch.jit.trace(choose, torch.zeros(128, 16, 256, dtype=torch.bfloat16), check_trace=False)
    assert told == [None, ("cuda", "triton"), None]


def test_every_row_is_reached() -> None:
    """No row stands behind another that has all of its layers."""
    for index, row in enumerate(preference_cuda.TORCH):
        dtype = torch.float32 if row.precisions == ("tf32",) else getattr(torch, row.precisions[0])
        torch.backends.cudnn.allow_tf32 = row.precisions[0] == "tf32"
        batch = max(1, row.batch[0])
        steps = row.steps[-1] if row.steps.stop < 2**40 else 1000
        found = layer(row.cells[0], row.units[-1] if row.units.stop < 2**40 else row.units[0], dtype, steps, batch)
        first = next(i for i, one in enumerate(preference_cuda.TORCH) if serves(one, found, row.training[0]))
        assert first == index


def serves(row: preference_cuda.Torch, one: Layer, training: bool) -> bool:
    precision = preference_cuda.precision(one.x.dtype)
    steps, batch, _ = one.x.shape
    fits = one.hidden_size in row.units and batch in row.batch and steps in row.steps
    return fits and one.cell_name in row.cells and precision in row.precisions and training in row.training


class Kernels:
    """A backend that serves what it is told to, in one launch or in one a step."""

    def __init__(self, serves: bool, persistent: bool = True) -> None:
        self.reason, self.persistent = None if serves else "planted", persistent

    def supports(self, layer: Layer) -> str | None:
        return self.reason

    def is_persistent(self, layer: Layer) -> bool:
        return self.persistent


def why_cudnn(
    monkeypatch: pytest.MonkeyPatch, cuda: Kernels, triton: Kernels, one: Layer, flat: bool = True, **options: Any
) -> str:
    named = {"cuda": cuda, "triton": triton}
    usual = backends.module
    monkeypatch.setattr(backends, "module", lambda name: named.get(name) or usual(name))
    monkeypatch.setattr(aten_cuda, "is_in_one_piece", lambda stack: flat)
    stack = Stack(one.cell_name, one.x, tuple(one.states0), [[one.w_ih[0], one.w_hh[0][0]]] * 2, **options)
    return backends._why_cudnn(stack, one, training=True) or ""


def test_cudnn_serves_what_no_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer("lstm", 200, torch.bfloat16)
    assert "no kernel" in why_cudnn(monkeypatch, Kernels(False), Kernels(False), one)


def test_cudnn_comes_before_a_launch_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer("lstm", 200, torch.bfloat16)
    assert "each step" in why_cudnn(monkeypatch, Kernels(False), Kernels(True, persistent=False), one)
    assert not why_cudnn(monkeypatch, Kernels(True), Kernels(True, persistent=False), one)


@pytest.mark.parametrize(("dtype", "chosen"), [(torch.float16, False), (torch.bfloat16, True)], ids=str)
def test_cudnn_is_not_chosen_where_it_would_copy_the_weights(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chosen: bool
) -> None:
    """In bfloat16 it is not cuDNN that serves torch's layers."""
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: tensor.dtype != torch.bfloat16)
    one = layer("lstm", 1024, dtype, batch=256)
    assert why_cudnn(monkeypatch, Kernels(True), Kernels(True), one)
    assert bool(why_cudnn(monkeypatch, Kernels(True), Kernels(True), one, flat=False)) is chosen


def test_cudnn_is_not_chosen_where_its_dropout_could_not_be_differentiated_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, able = layer("lstm", 1024, torch.bfloat16, batch=256), Kernels(True)
    assert why_cudnn(monkeypatch, able, able, one, dropout=0.5)
    assert not why_cudnn(monkeypatch, able, able, one, dropout=0.5, training=True)
