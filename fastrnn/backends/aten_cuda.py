"""Torch's own kernels on a GPU, made as right as they are on the CPU: cuDNN has conditions that nobody expects.

- Its backward needs the forward of training, which for want of dropout computes the same as that of inference.
- Its backward has no derivative. Where one is asked for (`create_graph`), the gradients come from the reference.
- It takes dense states only.
- Under autocast it casts all it gets to float16, whatever dtype autocast has; the call's tensors have theirs already.

It copies weights that do not lie in one piece of memory in every call, and warns: parameters of modules do lie so
(`flatten_parameters`). Parametrized ones, those that `torch.func.functional_call` puts in their place, and those that
autocast has cast do not. They are brought together here, since that is nothing that a user has done wrong: it costs the
copy that cuDNN would make, and a further one that is freed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import _VF, Tensor

from fastrnn import checks, hints
from fastrnn.backends import reference
from fastrnn.backends.stack import Stack

Run = Callable[[Stack], tuple[Tensor, tuple[Tensor, ...]]]
"""`aten.run`, or what gives the same."""


def is_in_one_piece(stack: Stack) -> bool:
    """Whether all weights lie in the same memory."""
    # The storages' identities, not their addresses, which fake tensors do not have.
    return len({tensor.untyped_storage()._cdata for weights in stack.weights for tensor in weights}) == 1


def run(stack: Stack, engine: Run) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `engine` gives for the call, with gradients of every order where any are asked for."""
    if checks.autocast_dtype(stack.x) is not None:
        with torch.autocast(stack.x.device.type, enabled=False):
            return run(stack, engine)
    stack = replace(stack, states0=tuple(state.contiguous() for state in stack.states0))
    compiled = torch.compiler.is_compiling()
    if not compiled and torch._C._get_tracing_state() is not None:
        return engine(stack)  # torch.jit.trace compares its trace with one made without gradients
    tensors = stack.tensors()
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return engine(stack if compiled else _in_one_piece(stack))
    if not stack.training:
        stack = replace(stack, training=True, dropout=0.0)
    if compiled or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        # Compiled gradients have no derivative in any case; and hooks must see what cuDNN saves, not what a node hides.
        return engine(stack)
    output, *finals = _Differentiable.apply(stack, engine, *tensors)  # type: ignore[no-untyped-call]
    return output, tuple(finals)


def _in_one_piece(stack: Stack) -> Stack:
    """The call with its weights in cuDNN's one piece of memory, copied where they are not; without gradients."""
    if stack.is_one_step or is_in_one_piece(stack) or not _flattens(stack):
        return stack
    # Copies, because what follows changes the tensors themselves.
    weights = [[tensor.detach().clone() for tensor in group] for group in stack.weights]
    flat = [tensor for group in weights for tensor in group]
    projected = stack.states0[0].shape[-1] if len(weights[0]) % 2 else 0
    sizes = (stack.x.shape[-1], torch.backends.cudnn.rnn.get_cudnn_mode(stack.cell_name.upper()), stack.hidden_size)
    torch._cudnn_rnn_flatten_weight(
        flat, len(weights[0]), *sizes, projected, stack.num_layers, False, stack.bidirectional
    )
    return replace(stack, weights=weights)


def _flattens(stack: Stack) -> bool:
    """Whether cuDNN serves such calls, as `torch.nn.RNNBase.flatten_parameters` asks; never for fake tensors."""
    plain = all(type(tensor) in (Tensor, torch.nn.Parameter) for weights in stack.weights for tensor in weights)
    return plain and torch._use_cudnn_rnn_flatten_weight() and torch.backends.cudnn.is_acceptable(stack.x)


def _with(stack: Stack, tensors: Sequence[Tensor]) -> Stack:
    """The call with other tensors, in the order of `Stack.tensors`."""
    each = iter(tensors)
    x = next(each)
    states0 = tuple(next(each) for _ in stack.states0)
    weights = [[next(each) for _ in group] for group in stack.weights]
    if stack.packed is None:
        return replace(stack, x=x, states0=states0, weights=weights)
    padded = x.new_empty(1).expand(stack.x.shape)  # whose shape is all that anyone looks at: cuDNN needs no copy
    return replace(stack, x=padded, packed=(x, stack.packed[1]), states0=states0, weights=weights)


class _Differentiable(torch.autograd.Function):
    """A call of torch's kernels, whose own graph lies within this node's."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, engine: Run, *tensors: Tensor) -> Any:
        stack = _in_one_piece(_with(stack, [tensor.detach() for tensor in tensors]))
        inner = stack.tensors()
        for within, tensor in zip(inner, tensors, strict=True):
            within.requires_grad_(tensor.requires_grad)
        with torch.enable_grad():
            output, finals = engine(stack)
        ctx.stack, ctx.inner, ctx.outputs = stack, inner, (output, *finals)
        ctx.save_for_backward(*tensors)
        return tuple(result.detach() for result in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        off = checks.autocast_dtype(grads[0]) is not None
        with torch.autocast(grads[0].device.type, enabled=False) if off else nullcontext():
            return _Differentiable._gradients(ctx, grads)

    @staticmethod
    def _gradients(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        tensors = hints.saved_tensors(ctx)
        create_graph = torch.is_grad_enabled()
        if create_graph:
            # Under names of their own: where one argument was computed from another, only its direct share is wanted.
            inner = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in tensors]
            outputs = _by_reference(_with(ctx.stack, inner))
        else:
            inner, outputs = ctx.inner, ctx.outputs
        keep = create_graph or torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            # This node lives as long as the loss does, which may be until after the next forward.
            ctx.stack = ctx.inner = ctx.outputs = None
        wanted = [tensor for tensor in inner if tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                outputs, wanted, grads, create_graph=create_graph, retain_graph=keep, materialize_grads=True
            )
        )
        return (None, None, *(next(found) if tensor.requires_grad else None for tensor in inner))


def _by_reference(stack: Stack) -> tuple[Tensor, ...]:
    """The output and the final states as torch's kernels give them, by operations that can be differentiated."""
    if stack.dropout and stack.training and stack.num_layers > 1:
        raise RuntimeError(
            "torch's kernels cannot be differentiated twice on a GPU where they have drawn dropout between layers: "
            'use backend="reference", or dropout of zero'
        )
    if stack.packed is not None:
        data, batch_sizes = stack.packed
        x, lengths = _VF._pad_packed_sequence(data, batch_sizes, False, 0.0, stack.x.shape[0])
        stack = replace(stack, x=x, lengths=lengths.to(x.device))
    x, finals = stack.x, []
    for index in range(stack.num_layers):
        result = reference.forward(stack.layer(index, x), history=False, gates=False)
        x = result.states[0]
        finals.append(result.finals)
    if stack.packed is not None:
        x = _VF._pack_padded_sequence(x, lengths, False)[0]
    return x, *(torch.cat(parts) for parts in zip(*finals, strict=True))
