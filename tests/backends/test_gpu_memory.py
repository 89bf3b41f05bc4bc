"""How much memory a call by the GPU backends takes at its highest, counted on the CPU with kernels that do nothing.

What is counted is what torch's allocator on a GPU would hold: every storage that an operation has made, for as long as
anything refers to it, and the workspace that a sum over rows asks for there, which has been as large as everything else
together. cuBLAS has its workspace from before the call, Triton's and CUDA's kernels ask for none.

The unit is T·B·H values in 16 bits, and I = H: x, the output and dx are a unit each. What is there before the call (x,
the weights, dy) does not count, as in `benchmarks.cuda.peak_bytes`. What an H200 measured in 16 bits before sums took
less, 28 units for an LSTM, 26 for a GRU and 7 for an RNN of 256 units, is what is counted here plus those sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import extension, ops
from fastrnn.backends import module

STEPS, BATCH, HIDDEN = 512, 16, 64
"""So many rows that weights and states are small beside a unit, and so many units that sums take what they do there."""
SMALL = 0.15
"""What they may take in units, for each direction."""
MULTIPROCESSORS, THREADS = 132, 2048
"""Of an H200; the threads are those that a multiprocessor holds."""
UNIT = 2 * STEPS * BATCH * HIDDEN
MIB = 2**20


class Peak(NamedTuple):
    """What a call holds at its highest, in units, and why."""

    units: int
    why: str


TRAINING = {
    ("lstm", False): Peak(12, "gates 4, c 2, output 1, dgates 4, dx 1: backward, while dx is computed"),
    ("gru", False): Peak(10, "gates 4, output 1, dgates 4, dx 1"),
    ("rnn_tanh", False): Peak(3, "output 1, dgates 1, dx 1"),
    ("lstm", True): Peak(8, "c 2, output 1, preactivations 4, which dgates replace, dx 1"),
    ("gru", True): Peak(6, "output 1, preactivations 4, which dgates replace, dx 1"),
    ("rnn_tanh", True): Peak(3, "nothing is kept that could be computed again"),
}
"""By cell, and whether gates are recomputed: with Triton's kernels."""
SEPARATE = {
    ("lstm", True): Peak(11, "c 2, output 1, preactivations 4 and dgates 4, which the CUDA kernels keep apart"),
    ("gru", True): Peak(9, "output 1, preactivations 4, dgates 4"),
}
"""Where it is another with the CUDA kernels."""
INFERENCE = {"lstm": Peak(5, "gx 4, output 1"), "gru": Peak(4, "gx 3, output 1"), "rnn_tanh": Peak(2, "gx 1, output 1")}
MEASURED = {(16384, 1024): 128, (16384, 2048): 132, (8192, 2048): 128, (16384, 256): 32, (16384, 64): 2}
"""MiB that `sum(0)` of (rows, columns) in bfloat16 took on an H200 beside its operands."""


def last_power(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)


def workspace(outputs: int, columns: int, summands: int) -> int:
    """The bytes that torch's kernel asks for when it sums over other dimensions than the last, of `columns`.

    As in ATen/native/cuda/Reduce.cuh: where a thread would have 256 values or more to add, blocks share an output, and
    the memory for their shares is as many times too large as a block has outputs side by side.
    """
    vector = math.gcd(4, columns)
    across, threads = outputs // vector, 512 // vector
    width = min(last_power(across), 32)
    height = min(last_power(summands), threads // width)
    width = min(last_power(across), threads // height)
    if summands < min(16 * height, 256):
        return 0
    values, blocks = -(-summands // height), -(-across // width)
    room = MULTIPROCESSORS * (THREADS // (width * height))
    if values < 256 or blocks > room:
        return 0
    shares = max(min(-(-room // blocks), -(-values // 16)), -(-values // 256))
    return 4 * outputs * shares * width * vector if shares > 1 else 0


class Counter(TorchDispatchMode):
    """Follows the storages that operations make: `peak` is the most bytes that there were at once."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before and storage._cdata not in self.live:
                    self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        extra = 0
        if func.overloadpacket is torch.ops.aten.sum:
            summed: Tensor = args[0]
            last = len(args) < 2 or -1 in args[1] or summed.dim() - 1 in args[1]
            if not last and result.numel():
                extra = workspace(result.numel(), result.shape[-1], summed.numel() // result.numel())
        self.peak = max(self.peak, extra + sum(size for _, size in self.live.values()))
        return result


@contextmanager
def counted(before: list[Tensor]) -> Iterator[Counter]:
    counter = Counter(before)
    with counter:
        yield counter


@pytest.fixture
def idle_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both GPU backends serve CPU tensors, and all but their kernels runs: results are what lay in the memory."""
    from fastrnn.backends.triton import launch

    def nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(launch.Launcher, "__call__", nothing)
    kernels = SimpleNamespace(host=True, forward=nothing, backward=nothing, why_not=nothing)
    monkeypatch.setattr(extension, "load", lambda: kernels)
    monkeypatch.setattr(extension, "why_missing", lambda: None)
    # The counter watches the dispatcher, but operations within the operators are what it has to see.
    monkeypatch.setattr(ops, "is_watched", lambda _: False)


def of_cell(cell: str, backend: str, **options: Any) -> Any:
    kind = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn_tanh": fastrnn.RNN}[cell]
    return kind(HIDDEN, HIDDEN, dtype=torch.bfloat16, backend=backend, **options)


def peak_units(layer: Any, training: bool = True, **arguments: Any) -> float:
    """Of a call, and in training of the gradients of everything."""
    width = HIDDEN * (1 + layer.bidirectional)
    x, dy = (torch.zeros(STEPS, BATCH, size, dtype=torch.bfloat16) for size in (HIDDEN, width))
    parameters = list(layer.parameters())
    with torch.set_grad_enabled(training), counted([x, dy, *parameters, *arguments.values()]) as counter:
        output, _ = layer(x.requires_grad_(training), **arguments)
        if training:
            torch.autograd.grad(output, [x, *parameters], dy)
    return counter.peak / UNIT


backends = pytest.mark.parametrize("backend", ["triton", "cuda"])


@pytest.fixture(autouse=True)
def _needs_triton(idle_kernels: None) -> None:
    reason = module("triton").ready()
    if reason is not None:
        pytest.skip(f"triton: {reason}")


@backends
@pytest.mark.parametrize(("cell", "recompute"), TRAINING, ids=str)
def test_training(cell: str, recompute: bool, backend: str) -> None:
    expected = (SEPARATE if backend == "cuda" else {}).get((cell, recompute), TRAINING[cell, recompute])
    peak = peak_units(of_cell(cell, backend, recompute=recompute))
    assert expected.units <= peak <= expected.units + SMALL, expected.why


@backends
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("masks", ["lengths", "resets", "both"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_masks_take_nothing_more(cell: str, masks: str, recompute: bool, backend: str) -> None:
    """A copy of x and one of h are made, but each where there is room."""
    given = {
        "lengths": torch.full((BATCH,), STEPS - 1),
        "resets": torch.zeros(STEPS, BATCH, dtype=torch.bool),
    }
    arguments = given if masks == "both" else {masks: given[masks]}
    layer = of_cell(cell, backend, recompute=recompute)
    assert peak_units(layer, **arguments) <= peak_units(layer) + SMALL


@backends
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_both_directions_take_twice_as_much_but_for_dx(cell: str, backend: str) -> None:
    expected = 2 * TRAINING[cell, False].units - 1
    assert expected <= peak_units(of_cell(cell, backend, bidirectional=True)) <= expected + 2 * SMALL


@backends
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_layer_of_a_stack_adds_what_it_keeps(cell: str, recompute: bool, backend: str) -> None:
    gates, others = {"lstm": (4, 3), "gru": (4, 1), "rnn_tanh": (0, 1)}[cell]
    kept = others if recompute else gates + others
    one, four = (peak_units(of_cell(cell, backend, recompute=recompute, num_layers=layers)) for layers in (1, 4))
    assert four <= one + 3 * kept + 1 + SMALL, "and the gradient of the output that comes from the layer above"


@backends
@pytest.mark.parametrize("cell", INFERENCE)
def test_inference(cell: str, backend: str) -> None:
    expected = INFERENCE[cell]
    assert expected.units <= peak_units(of_cell(cell, backend), training=False) <= expected.units + SMALL, expected.why


@pytest.mark.parametrize(("rows", "columns"), MEASURED)
def test_workspaces_are_those_that_were_measured(rows: int, columns: int) -> None:
    assert workspace(columns, columns, rows) == MEASURED[rows, columns] * MIB


def test_what_is_added_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, a sum over all rows, or something that is held for too long."""
    from fastrnn.backends import gate_gradients
    from fastrnn.backends.recurrence import forward

    layer, expected = of_cell("lstm", "triton"), TRAINING["lstm", False].units
    with monkeypatch.context() as patch:
        patch.setattr(gate_gradients, "SUMMANDS", STEPS * BATCH)
        assert peak_units(layer) == pytest.approx(expected + 15, abs=SMALL), "four times dgates, before there is dx"
    with monkeypatch.context() as patch:
        original = gate_gradients.input_gradient
        patch.setattr(gate_gradients, "input_gradient", lambda of, dgates: original(of, dgates.clone()))
        assert peak_units(layer) == pytest.approx(expected + 4, abs=SMALL)
    held: list[Tensor] = []
    products = forward._input_products

    def holding(of: Any) -> Tensor:
        held.append(products(of))
        return held[0]

    monkeypatch.setattr(forward, "_input_products", holding)
    assert peak_units(layer) == pytest.approx(expected + 4, abs=SMALL)
