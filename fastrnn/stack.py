"""The layers behind modules and functions: each through its operator, or all of them at once by torch's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from fastrnn import flops, ops, transforms
from fastrnn.backends import aten, aten_serves, products
from fastrnn.backends.call import Call
from fastrnn.backends.layer import Forward, Layer
from fastrnn.lengths import Lengths
from fastrnn.prepare import Options, Prepared, States, Weights, prepare, prepare_step

Watch = Callable[[int, Layer, Forward], None]
"""Is told, while a stack of layers runs, each layer's number, arguments and results, all states' histories included."""


def recurrent(
    options: Options,
    weights: Weights,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    lengths: Lengths | None,
    resets: Tensor | None,
    return_states: bool = False,
    watch: Watch | None = None,
) -> tuple[Any, ...]:
    """Runs a stack of layers; returns the output as the input was laid out, and the tuple of final states.

    With `return_states`, the tuple of the states of all steps comes third.
    """
    if torch.compiler.is_compiling() and isinstance(input, PackedSequence) and input.sorted_indices is None:
        # Only the data tell how many sequences there are.
        return _outside_graphs(options, weights, input, hx, lengths, resets, return_states, watch)
    prepared = prepare(options, weights, input, hx, lengths, resets)
    if not return_states:
        return prepared.finish(*run(prepared, watch))
    prepared = replace(prepared, call=replace(prepared.call, return_states=True))
    histories: list[list[Tensor]] = []

    def keep(index: int, layer: Layer, result: Forward) -> None:
        histories.append(result.states)
        if watch is not None:
            watch(index, layer, result)

    results = prepared.finish(*run(prepared, keep))
    return *results, tuple(prepared.lay_out(state) for state in _states(prepared.call, histories))


_outside_graphs = _disable_dynamo(recurrent)
"""What a compiler calls without looking into it."""


def _states(call: Call, histories: Sequence[Sequence[Tensor]]) -> States:
    """The states of every step, (layers·directions, T, B, F) each in the call's dtype, from `Forward.states` of each
    layer; zero at t >= length.
    """
    live = products.live_steps(call.layer(0, call.x))

    def of_layer(history: Tensor) -> Tensor:
        if live is not None:
            history = torch.where(live[..., None], history, 0)
        by_direction = torch.unflatten(history.to(call.x.dtype), -1, (call.directions, -1))
        return by_direction.permute(2, 0, 1, 3)

    # A single layer's too: `cat` copies, so that no result shares memory with the output.
    return tuple(torch.cat([of_layer(history) for history in of_state]) for of_state in zip(*histories, strict=True))


def step(
    options: Options, weights: Sequence[Tensor], input: Tensor, states: States | None, watch: Watch | None = None
) -> States:
    """One step of a cell: input (B, I) and states (B, H) -> the states after it. Sizes are checked by the caller."""
    finals = run(prepare_step(options, weights, input, states), watch)[1]
    return tuple(final.squeeze(0) for final in finals)


def run(prepared: Prepared, watch: Watch | None = None) -> tuple[Tensor, States]:
    """The last layer's output (T, B, directions·P or directions·H) and the final states as `Call.states0`.

    Where `watch` is to be told of every layer, the operators' backends compute them, since torch's kernels cannot tell.
    """
    call, backend = prepared.call, prepared.backend
    layer = call.layer(0, call.x)
    transformed = is_transformed()
    if watch is not None and not call.return_states:
        backend = "auto" if backend == "aten" else backend
    elif (
        not transformed
        and aten_serves(backend, call, layer, needs_gradients(*call.tensors()))
        and (backend == "aten" or not flops.are_counted())
    ):
        return aten.run(call)
    finals = []
    for index in range(1, call.num_layers + 1):
        if transformed:
            result = transforms.forward(layer, history=watch is not None, recompute=call.recompute, backend=backend)
        else:
            result = _forward(layer, watch is not None, call.recompute, backend)
        finals.append(result.finals)
        if watch is not None:
            watch(index - 1, layer, result)
        if index < call.num_layers:
            dropped = call.dropout and call.training
            layer = call.layer(index, prepared.dropout(result.states[0]) if dropped else result.states[0])
    if call.num_layers == 1:
        return result.states[0], tuple(result.finals)
    return result.states[0], tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def is_transformed() -> bool:
    """Whether vmap, jvp, grad or their kind are at work: `fastrnn.transforms` serves them."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the gradient of any of them."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        # torch.jit.trace compares its trace with one made without gradients; backward computes again what is not kept.
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _forward(layer: Layer, history: bool, recompute: bool, backend: str) -> Forward:
    """One layer through its operator, which keeps what backward needs if anything requires gradients."""
    tensors = (layer.x, *layer.w_ih, *layer.w_hh, *layer.biases, *layer.extras, *layer.states0)
    differentiable = needs_gradients(*tensors)
    gates = differentiable and not recompute
    return ops.forward(layer, history=history or differentiable, gates=gates, backend=backend)
