"""Memory that was given back while tensors still refer to it, as sharded training and memory savers do.

Whatever still has to be read raises, in torch's words, where torch's own layers raise or end the process; what is not
read may be gone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn.backends.addresses import address
from tests.torch_parity import (
    BATCH,
    CELLS,
    INPUT,
    TIME,
    backends,
    initial_state,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)

FREED = "has a non-zero number of elements, but its data is not allocated"

kinds = pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM", "GRU_CELL", "LSTM_CELL"])


def free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def in_a_buffer(tensor: Tensor) -> Tensor:
    """The same numbers, behind others in one piece of memory: freed, its address is its distance from the start."""
    buffer = torch.cat((torch.zeros_like(tensor).flatten(), tensor.flatten()))
    return buffer[tensor.numel() :].view(tensor.shape)


def arguments(kind: str, module: torch.nn.Module) -> tuple[Tensor, Any]:
    x = random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT)
    return x, initial_state(kind, module)


@backends
@kinds
def test_a_call_raises_whatever_was_freed(backend: str, kind: str) -> None:
    module, _ = pair(kind, backend=backend)
    for grad in (False, True):
        count = len([*tensors(arguments(kind, module)), *module.parameters()])
        for place in range(count):
            module, _ = pair(kind, backend=backend)
            x, hx = arguments(kind, module)
            free([x, *tensors(hx), *module.parameters()][place])
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=FREED):
                module(x, hx)


@kinds
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_repeated_call_raises_whatever_was_freed(kind: str, grad: bool) -> None:
    module, _ = pair(kind, backend="numba")
    count = len([*tensors(arguments(kind, module)), *module.parameters()])
    for place in range(count):
        module, _ = pair(kind, backend="numba")
        x, hx = arguments(kind, module)
        with torch.set_grad_enabled(grad):
            for _ in range(3):
                module(x, hx)
            free([x, *tensors(hx), *module.parameters()][place])
            with pytest.raises(RuntimeError, match=FREED):
                module(x, hx)


@operator_backends
def test_views_into_memory_that_was_freed(backend: str) -> None:
    for place in range(3):
        module, _ = pair("LSTM", backend=backend)
        x, hx = arguments("LSTM", module)
        given = [x, *hx]
        given[place] = in_a_buffer(given[place])
        for _ in range(2):
            assert module(given[0], tuple(given[1:]))[0].isfinite().all()
        free(given[place])
        with pytest.raises(RuntimeError, match=FREED):
            module(given[0], tuple(given[1:]))


@operator_backends
def test_memory_that_was_cut_short(backend: str) -> None:
    for place in range(3):
        module, _ = pair("LSTM", backend=backend)
        x, hx = arguments("LSTM", module)
        tensor = [x, *hx][place]
        tensor.untyped_storage().resize_(tensor.nbytes - tensor.itemsize)
        with pytest.raises(RuntimeError, match="reaches beyond its storage: sizes "):
            module(x, hx)


@operator_backends
def test_expanded_tensors_have_all_the_memory_that_they_need(backend: str) -> None:
    module, _ = pair("GRU", backend=backend)
    x = random(1, 1, INPUT).expand(TIME, BATCH, -1)
    torch.testing.assert_close(module(x)[0], module(x.contiguous())[0])
    free(x)
    with pytest.raises(RuntimeError, match=FREED):
        module(x)


@operator_backends
def test_lengths_resets_and_packed_fields(backend: str) -> None:
    module, _ = pair("GRU", backend=backend)
    x = random(TIME, BATCH, INPUT)
    for dtype in (torch.int64, torch.int32):
        lengths = torch.full((BATCH,), TIME, dtype=dtype)
        free(lengths)
        with pytest.raises(RuntimeError, match=f"gru: lengths {FREED}"):
            module(x, lengths=lengths)
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    free(resets)
    with pytest.raises(RuntimeError, match=f"gru: resets {FREED}"):
        module(x, resets=resets)
    for place, field in enumerate(PackedSequence._fields):
        packed = pack_padded_sequence(x, [2, TIME, 3], enforce_sorted=False)
        free(packed[place])
        with pytest.raises(RuntimeError, match=f"gru: {field} {FREED}"):
            module(packed)


WHAT_BACKWARD_READS = ["input", "hx", "weight_ih_l0", "weight_hh_l0", "output", "gradient"]


def backward(
    backend: str, kind: str, freed: str, create_graph: bool = False, recompute: bool = False, **options: Any
) -> list[Tensor]:
    """The gradients of the input and of all parameters, computed after something was freed."""
    torch.manual_seed(1)
    module, _ = pair(kind, backend=backend, **options)
    module.recompute = recompute
    x, hx = arguments(kind, module)
    output, after = module(x.requires_grad_(), hx)
    gradient = torch.ones_like(output)
    named = {"input": [x], "hx": tensors(hx), "output": [output], "after": tensors(after), "gradient": [gradient]}
    for tensor in [] if freed == "nothing" else named.get(freed) or [module.get_parameter(freed)]:
        free(tensor)
    wanted = [x, *module.parameters()]
    return list(torch.autograd.grad(output, wanted, gradient, create_graph=create_graph))


@operator_backends
@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("freed", WHAT_BACKWARD_READS)
def test_backward_raises_where_what_it_reads_was_freed(backend: str, kind: str, freed: str) -> None:
    with pytest.raises(RuntimeError, match=FREED):
        backward(backend, kind, freed)


@operator_backends
def test_the_error_says_that_backward_reads_the_output(backend: str) -> None:
    with pytest.raises(RuntimeError, match=f"gru: the output, which backward reads, {FREED}"):
        backward(backend, "GRU", "output")


@operator_backends
@pytest.mark.parametrize("freed", ["bias_ih_l0", "bias_hh_l0", "after"])
def test_backward_does_not_miss_what_it_does_not_read(backend: str, freed: str) -> None:
    for got, expected in zip(backward(backend, "GRU", freed), backward(backend, "GRU", "nothing"), strict=True):
        assert torch.equal(got, expected)


@operator_backends
def test_recomputed_gates_need_biases(backend: str) -> None:
    with pytest.raises(RuntimeError, match=f"lstm: a bias {FREED}"):
        backward(backend, "LSTM", "bias_hh_l0", recompute=True)


@operator_backends
def test_recomputed_gates_need_the_inputs_weights(backend: str) -> None:
    module, _ = pair("LSTM", backend=backend)
    module.recompute = True
    output, _ = module(random(TIME, BATCH, INPUT))  # whose own gradient, which reads them too, nobody asks for
    free(module.weight_ih_l0)
    with pytest.raises(RuntimeError, match=f"lstm: weight_ih {FREED}"):
        output.sum().backward()


@operator_backends
@pytest.mark.parametrize("freed", ["input", "hx", "weight_hh_l0", "bias_hh_l0", "gradient"])
def test_differentiable_gradients(backend: str, freed: str) -> None:
    with pytest.raises(RuntimeError, match=FREED):
        backward(backend, "RNN_TANH", freed, create_graph=True)


@operator_backends
def test_a_projections_weights(backend: str) -> None:
    skip_unless_projecting(backend)
    with pytest.raises(RuntimeError, match=f"lstm: weight_hr {FREED}"):
        backward(backend, "LSTM", "weight_hr_l0", proj_size=2)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_under_a_transform(backend: str) -> None:
    module, _ = pair("GRU", backend=backend)
    free(module.weight_hh_l0)
    with pytest.raises(RuntimeError, match=FREED):
        torch.func.vmap(lambda x: module(x)[0])(random(2, TIME, BATCH, INPUT))


def test_no_address_is_taken_of_what_has_no_memory() -> None:
    assert address(None) == 0
    assert address(torch.zeros(0, 3)) == 0
    tensor = torch.zeros(2, 3)
    assert address(tensor, 4) == tensor[1, 1].data_ptr()
    free(tensor)
    with pytest.raises(RuntimeError, match=FREED):
        address(tensor)
