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

from fastrnn import checks
from fastrnn.backends import reference
from fastrnn.backends.call import Call

Run = Callable[[Call], tuple[Tensor, tuple[Tensor, ...]]]
"""`aten.run`, or what gives the same."""


def is_in_one_piece(call: Call) -> bool:
    """Whether all weights lie in the same memory."""
    # The storages' identities, not their addresses, which fake tensors do not have.
    return len({tensor.untyped_storage()._cdata for weights in call.weights for tensor in weights}) == 1


def run(call: Call, engine: Run) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `engine` gives for the call, with gradients of every order where any are asked for."""
    if checks.autocast_dtype(call.x) is not None:
        with torch.autocast(call.x.device.type, enabled=False):
            return run(call, engine)
    call = replace(call, states0=tuple(state.contiguous() for state in call.states0))
    compiled = torch.compiler.is_compiling()
    if not compiled and torch._C._get_tracing_state() is not None:
        return engine(call)  # torch.jit.trace compares its trace with one made without gradients
    tensors = call.tensors()
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return engine(call if compiled else _in_one_piece(call))
    if not call.training:
        call = replace(call, training=True, dropout=0.0)
    if compiled or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        # Compiled gradients have no derivative in any case; and hooks must see what cuDNN saves, not what a node hides.
        return engine(call)
    output, *finals = _Differentiable.apply(call, engine, *tensors)  # type: ignore[no-untyped-call]
    return output, tuple(finals)


def _in_one_piece(call: Call) -> Call:
    """The call with its weights in cuDNN's one piece of memory, copied where they are not; without gradients."""
    if call.is_one_step or is_in_one_piece(call) or not _flattens(call):
        return call
    # Copies, because what follows changes the tensors themselves.
    weights = [[tensor.detach().clone() for tensor in group] for group in call.weights]
    flat = [tensor for group in weights for tensor in group]
    projected = call.states0[0].shape[-1] if len(weights[0]) % 2 else 0
    sizes = (call.x.shape[-1], torch.backends.cudnn.rnn.get_cudnn_mode(call.cell_name.upper()), call.hidden_size)
    torch._cudnn_rnn_flatten_weight(
        flat, len(weights[0]), *sizes, projected, call.num_layers, False, call.bidirectional
    )
    return replace(call, weights=weights)


def _flattens(call: Call) -> bool:
    """Whether cuDNN serves such calls, as `torch.nn.RNNBase.flatten_parameters` asks; never for fake tensors."""
    plain = all(type(tensor) in (Tensor, torch.nn.Parameter) for weights in call.weights for tensor in weights)
    return plain and torch._use_cudnn_rnn_flatten_weight() and torch.backends.cudnn.is_acceptable(call.x)


def _with(call: Call, tensors: Sequence[Tensor]) -> Call:
    """The call with other tensors, in the order of `Call.tensors`."""
    each = iter(tensors)
    x = next(each)
    states0 = tuple(next(each) for _ in call.states0)
    weights = [[next(each) for _ in group] for group in call.weights]
    if call.packed is None:
        return replace(call, x=x, states0=states0, weights=weights)
    padded = x.new_empty(1).expand(call.x.shape)  # whose shape is all that anyone looks at: cuDNN needs no copy
    return replace(call, x=padded, packed=(x, call.packed[1]), states0=states0, weights=weights)


class _Differentiable(torch.autograd.Function):
    """A call of torch's kernels, whose own graph lies within this node's."""

    @staticmethod
    def forward(ctx: Any, call: Call, engine: Run, *tensors: Tensor) -> Any:
        call = _in_one_piece(_with(call, [tensor.detach() for tensor in tensors]))
        inner = call.tensors()
        for within, tensor in zip(inner, tensors, strict=True):
            within.requires_grad_(tensor.requires_grad)
        with torch.enable_grad():
            output, finals = engine(call)
        ctx.call, ctx.inner, ctx.outputs = call, inner, (output, *finals)
        ctx.save_for_backward(*tensors)
        return tuple(result.detach() for result in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        off = checks.autocast_dtype(grads[0]) is not None
        with torch.autocast(grads[0].device.type, enabled=False) if off else nullcontext():
            return _Differentiable._gradients(ctx, grads)

    @staticmethod
    def _gradients(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        if create_graph:
            # Under names of their own: where one argument was computed from another, only its direct share is wanted.
            inner = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in tensors]
            outputs = _by_reference(_with(ctx.call, inner))
        else:
            inner, outputs = ctx.inner, ctx.outputs
        keep = create_graph or torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            # This node lives as long as the loss does, which may be until after the next forward.
            ctx.call = ctx.inner = ctx.outputs = None
        wanted = [tensor for tensor in inner if tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                outputs, wanted, grads, create_graph=create_graph, retain_graph=keep, materialize_grads=True
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
