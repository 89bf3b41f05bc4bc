"""Torch's own kernels on a GPU, made as right as they are on the CPU: cuDNN has conditions that nobody expects.

- Its backward needs the forward of training, which for want of dropout computes the same as that of inference.
- Its backward has no derivative. Where one is asked for (`create_graph`), the gradients come from the reference.
- It takes dense states only.

It copies weights that do not lie in one piece of memory in every call, and warns: parameters of modules do lie so
(`flatten_parameters`), parametrized ones and those that `torch.func.functional_call` puts in their place do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import _VF, Tensor

from fastrnn.backends import reference
from fastrnn.backends.call import Call

Run = Callable[[Call], tuple[Tensor, tuple[Tensor, ...]]]
"""`aten.run`, or what gives the same."""


def is_in_one_piece(call: Call) -> bool:
    """Whether all weights lie in the same memory."""
    pieces = {tensor.untyped_storage().data_ptr() for weights in call.weights for tensor in weights}
    return len(pieces) == 1


def run(call: Call, engine: Run) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `engine` gives for the call, with gradients of every order where any are asked for."""
    call = replace(call, states0=tuple(state.contiguous() for state in call.states0))
    tensors = _tensors(call)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return engine(call)
    if not call.training:
        call = replace(call, training=True, dropout=0.0)
    output, *finals = _Differentiable.apply(call, engine, *tensors)  # type: ignore[no-untyped-call]
    return output, tuple(finals)


def _tensors(call: Call) -> list[Tensor]:
    """All that a gradient may be asked for; of a packed call its data in the place of x."""
    x = call.x if call.packed is None else call.packed[0]
    return [x, *call.states0, *(tensor for weights in call.weights for tensor in weights)]


def _with(call: Call, tensors: Sequence[Tensor]) -> Call:
    """The call with other tensors, in the order of `_tensors`."""
    each = iter(tensors)
    x = next(each)
    states0 = tuple(next(each) for _ in call.states0)
    weights = [[next(each) for _ in group] for group in call.weights]
    if call.packed is None:
        return replace(call, x=x, states0=states0, weights=weights)
    return replace(call, packed=(x, call.packed[1]), states0=states0, weights=weights)


class _Differentiable(torch.autograd.Function):
    """A call of torch's kernels, whose own graph lies within this node's."""

    @staticmethod
    def forward(ctx: Any, call: Call, engine: Run, *tensors: Tensor) -> Any:
        inner = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with torch.enable_grad():
            output, finals = engine(_with(call, inner))
        ctx.call, ctx.inner, ctx.outputs = call, inner, (output, *finals)
        ctx.save_for_backward(*tensors)
        return tuple(result.detach() for result in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        if create_graph:
            # Under names of their own: where one argument was computed from another, only its direct share is wanted.
            inner = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in tensors]
            outputs = _by_reference(_with(ctx.call, inner))
        else:
            inner, outputs = ctx.inner, ctx.outputs
        wanted = [tensor for tensor in inner if tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                outputs, wanted, grads, create_graph=create_graph, retain_graph=True, materialize_grads=True
            )
        )
        return (None, None, *(next(found) if tensor.requires_grad else None for tensor in inner))


def _by_reference(call: Call) -> tuple[Tensor, ...]:
    """The output and the final states as torch's kernels give them, by operations that can be differentiated."""
    if call.dropout and call.training and call.num_layers > 1:
        raise RuntimeError(
            "torch's kernels cannot be differentiated twice on a GPU where they have drawn dropout between layers: "
            'use backend="reference", or dropout of zero'
        )
    if call.packed is not None:
        data, batch_sizes = call.packed
        x, lengths = _VF._pad_packed_sequence(data, batch_sizes, False, 0.0, call.x.shape[0])
        call = replace(call, x=x, lengths=lengths.to(x.device))
    x, finals = call.x, []
    for index in range(call.num_layers):
        result = reference.forward(call.layer(index, x), history=False, gates=False)
        x = result.states[0]
        finals.append(result.finals)
    if call.packed is not None:
        x = _VF._pack_padded_sequence(x, lengths, False)[0]
    return x, *(torch.cat(parts) for parts in zip(*finals, strict=True))
