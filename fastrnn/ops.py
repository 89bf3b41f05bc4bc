"""The operators: for each cell, `fastrnn::{cell}_forward` and `fastrnn::{cell}_backward`, registered with torch.

One call computes one layer, in one or two directions. Arguments and results are those of `Layer`, `Forward` and
`Backward` in `fastrnn.backends.layer`, which say every shape. The forward's saved state is a result of the operator,
empty where `history` and `gates` do not ask for it; autograd hands it to the backward operator. Under `create_graph`
the gradient is taken through the reference backend instead, which autograd can differentiate again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastrnn import checks, flops, operator_checks
from fastrnn.backends import module, operator_backend, reference
from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals
from fastrnn.cells import CELLS, Cell

LIBRARY = torch.library.Library("fastrnn", "DEF")

_LAYER_SCHEMA = (
    "Tensor x, Tensor[] w_ih, Tensor[] w_hh, Tensor[] biases, Tensor[] extras, Tensor[] states0, "
    "Tensor? lengths, Tensor? resets, bool reverse"
)
_FORWARD_LISTS, _BACKWARD_LISTS = slice(1, 6), slice(2, 10)
"""Where the operators' arguments are lists of tensors."""
_FORWARD_SCHEMA = (
    f"({_LAYER_SCHEMA}, bool history, bool gates, str backend) -> (Tensor[] states, Tensor[] finals, Tensor[] saved)"
)
_BACKWARD_SCHEMA = (
    "(Tensor?[] d_states, Tensor?[] d_finals, Tensor[] states, Tensor[] saved, "
    f"{_LAYER_SCHEMA}, bool need_x, bool need_weights, str backend) -> "
    "(Tensor[] d_x, Tensor[] d_w_ih, Tensor[] d_w_hh, Tensor[] d_biases, Tensor[] d_extras, Tensor[] d_states0)"
)


def forward(layer: Layer, *, history: bool, gates: bool, backend: str) -> Forward:
    """Computes a layer by its cell's forward operator; `backend` is "auto" or the name of an operator backend.

    Where nobody watches the dispatcher, what the operator does is called without it: that takes 30 µs less.
    """
    arguments = (*_layer_arguments(layer), history, gates, backend)
    if is_watched(arguments):
        return Forward(*_operator(layer.cell, "forward")(*arguments))
    return _under_autograd(layer.cell, _forward_kernel(layer.cell, True), arguments)


def is_watched(arguments: Sequence[Any]) -> bool:
    """Whether the dispatcher has more to do than to call a kernel.

    So it is where a compiler, a tracer, a transform, a mode or the profiler must see operators, and where a tensor is
    of a class of its own or a negative view, whose memory does not hold its values.
    """
    if dispatcher_is_watched():
        return True
    for argument in arguments:
        for one in argument if type(argument) is list else (argument,):
            if isinstance(one, Tensor) and (type(one) not in checks.PLAIN or one.is_neg()):
                return True
    return False


def dispatcher_is_watched() -> bool:
    """Whether a compiler, a tracer, a transform, a mode or the profiler is at work, who must see operators."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._autograd._profiler_enabled()
    )


def _below_autograd(cell: Cell, direction: str, arguments: Sequence[Any], checked: bool = True) -> Any:
    """What the operator does, for callers that have taken care of autograd; and of the arguments, if `checked`."""
    if not is_watched(arguments):
        return (_forward_kernel if direction == "forward" else _backward_kernel)(cell, checked)(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return _operator(cell, direction)(*arguments)


def _layer_arguments(layer: Layer) -> tuple[Any, ...]:
    return (
        layer.x,
        layer.w_ih,
        layer.w_hh,
        layer.biases,
        layer.extras,
        layer.states0,
        layer.lengths,
        layer.resets,
        layer.reverse,
    )


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """What a backend computes in is its own affair: autocast has been applied to its arguments already."""
    off = checks.autocast_dtype(x) is None
    return nullcontext() if off else torch.autocast(x.device.type, enabled=False)


def _checked(layer: Layer) -> Layer:
    """The layer, its `lengths` within [0, T]: looked at on the CPU, clamped where looking would synchronise."""
    steps, batch = layer.x.shape[:2]
    if layer.resets is not None:
        checks.resets(layer.cell_name, layer.resets, (steps, batch), "TB", layer.x.device)
    if layer.lengths is None:
        return layer
    checks.lengths(layer.cell_name, layer.lengths, batch, layer.x.device)
    if layer.lengths.device.type == "cpu":
        checks.lengths_range(layer.cell_name, layer.lengths, steps)
        return replace(layer, lengths=layer.lengths.to(torch.int64))
    return replace(layer, lengths=layer.lengths.clamp(0, steps).to(torch.int64))


@cache
def _forward_kernel(cell: Cell, checked: bool) -> Callable[..., Forward]:
    def kernel(*arguments: Any) -> Forward:
        *layer_arguments, history, gates, backend = arguments
        layer = Layer(cell.name, *layer_arguments)
        if not checked:
            operator_checks.forward(layer, backend)
        layer = _checked(layer)
        with autocast_off(layer.x):
            return module(operator_backend(backend, layer)).forward(layer, history=history, gates=gates)  # type: ignore[no-any-return]

    return kernel


def _forward_fake(cell: Cell) -> Callable[..., Forward]:
    def fake(*arguments: Any) -> Forward:
        *layer_arguments, history, gates, _ = arguments
        layer = Layer(cell.name, *layer_arguments)
        histories, kept = layer.history_forms, layer.saved_forms if gates else []
        states = [layer.x.new_empty(shape, dtype=dtype) for shape, dtype in (histories if history else histories[:1])]
        finals = [layer.x.new_empty(state.shape) for state in layer.states0]
        return Forward(states, finals, [layer.x.new_empty(shape, dtype=dtype) for shape, dtype in kept])

    return fake


@cache
def _backward_kernel(cell: Cell, checked: bool) -> Callable[..., Backward]:
    def kernel(*arguments: Any) -> Backward:
        d_states, d_finals, states, saved, *layer_arguments, need_x, need_weights, backend = arguments
        layer, kept = Layer(cell.name, *layer_arguments), Residuals(states, saved)
        gradients = Gradients(d_states, d_finals, need_x, need_weights)
        if not checked:
            operator_checks.backward(layer, kept, gradients, backend)
        operator_checks.memory_of_backward(layer, kept, gradients)
        layer, gradients = _checked(layer), _resolved(gradients)
        with autocast_off(layer.x):
            # What was named has served the layer already, whatever torch allows by now.
            served_by = module(operator_backend(backend, layer, "backward") if backend == "auto" else backend)
            return served_by.backward(layer, kept, gradients)  # type: ignore[no-any-return]

    return kernel


def _resolved(grads: Gradients) -> Gradients:
    """The dispatcher resolves negative views, but not those in a list of optional tensors."""
    if not any(d is not None and d.is_neg() for d in (*grads.states, *grads.finals)):
        return grads
    states, finals = ([d if d is None else d.resolve_neg() for d in group] for group in (grads.states, grads.finals))
    return replace(grads, states=states, finals=finals)


def _backward_fake(cell: Cell) -> Callable[..., Backward]:
    def fake(*arguments: Any) -> Backward:
        *_, need_x, need_weights, _ = arguments
        layer = Layer(cell.name, *arguments[4:-3])

        def like(tensors: Sequence[Tensor], needed: bool = True) -> list[Tensor]:
            return [tensor.new_empty(tensor.shape) for tensor in tensors] if needed else []

        return Backward(
            like([layer.x], need_x),
            like(layer.w_ih, need_weights),
            like(layer.w_hh, need_weights),
            like(layer.biases, need_weights),
            like(layer.extras, need_weights),
            like(layer.states0),
        )

    return fake


class _Recurrence(torch.autograd.Function):
    """The forward operator under autograd, its tensors one after another.

    torch.library.register_autograd does the same for lists of tensors, but walks them as trees: a module's call of ten
    steps took 290 µs with it and takes 93 so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        compute: Callable[..., Any],
        flags: tuple[Any, ...],
        sizes: list[int],
        *tensors: Tensor | None,
    ) -> Any:
        reverse, *_, backend = flags
        x, *lists, (lengths,), (resets,) = _grouped(tensors, sizes)
        states, finals, saved = compute(*x, *lists, lengths, resets, *flags)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*tensors, *states, *saved)
        ctx.cell, ctx.reverse, ctx.backend = cell, reverse, backend
        ctx.sizes, ctx.outputs = [*sizes, len(states), len(saved)], len(states) + len(finals)
        return (*states, *finals, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (x,), *lists, (lengths,), (resets,), states, saved = _grouped(ctx.saved_tensors, ctx.sizes)
        arguments = (x, *lists, lengths, resets, ctx.reverse)
        d_states, d_finals = list(grads[: len(states)]), list(grads[len(states) : ctx.outputs])
        first = 4
        need_x, need_rest = ctx.needs_input_grad[first], ctx.needs_input_grad[first + 1 :]
        need_weights = any(need_rest[: sum(map(len, lists[:4]))])
        create_graph = torch.is_grad_enabled()
        if create_graph or torch.autograd.forward_ad._current_level >= 0 or any(map(is_batched, grads)):
            layer = Layer(ctx.cell.name, *arguments)
            operator_checks.memory(layer, grads)
            with autocast_off(x):
                gradients = differentiable_gradients(layer, d_states, d_finals, create_graph)
        else:
            if len(states) < len(ctx.cell.states):
                # The call of a graph that was traced without gradients: what it did not keep is computed again.
                everything = (*arguments, True, True, ctx.backend)
                states, _, saved = _below_autograd(ctx.cell, "forward", everything, checked=False)
            given = (d_states, d_finals, states, saved, *arguments, need_x, need_weights, ctx.backend)
            if torch._C._are_functorch_transforms_active():
                from fastrnn import transforms  # which stands above the operators

                gradients = transforms.backward(ctx.cell, given)
            else:
                gradients = Backward(*_below_autograd(ctx.cell, "backward", given))
        flat: list[Tensor | None] = []
        for group, asked in zip(gradients, [[x], *lists], strict=True):
            flat += group or [None] * len(asked)
        return (*([None] * first), *flat, None, None)


def is_batched(grad: Tensor | None) -> bool:
    """Whether a gradient stands for many: in a vectorised Jacobian, or under `is_grads_batched`."""
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)


def _operator(cell: Cell, direction: str) -> Callable[..., Any]:
    """By which the dispatcher, and who watches it, is called."""
    if not torch.compiler.is_compiling():
        flops.tell_counters()
    return getattr(torch.ops.fastrnn, f"{cell.name}_{direction}")  # type: ignore[no-any-return]


def _grouped(tensors: Sequence[Tensor | None], sizes: list[int]) -> list[Any]:
    """Consecutive tensors in lists of the given sizes."""
    each = iter(tensors)
    return [[next(each) for _ in range(size)] for size in sizes]


def _under_autograd(cell: Cell, compute: Callable[..., Any], arguments: Sequence[Any]) -> Forward:
    """What `compute` gives for the operator's arguments, with gradients where any are asked for."""
    x, *lists, lengths, resets, reverse, history, gates, backend = arguments
    groups = [[x], *lists, [lengths], [resets]]
    tensors = [tensor for group in groups for tensor in group]
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return compute(*arguments)  # type: ignore[no-any-return]
    return _differentiable(cell, compute, (reverse, history, gates, backend), groups)


def _autograd_kernel(cell: Cell) -> Callable[..., Forward]:
    def compute(*arguments: Any) -> Any:
        return _below_autograd(cell, "forward", arguments, checked=False)

    def kernel(*arguments: Any) -> Forward:
        return _under_autograd(cell, compute, arguments)

    return kernel


def differentiable(layer: Layer, run: Callable[[], Forward], *, history: bool, gates: bool, backend: str) -> Forward:
    """What `run` gives for the layer, with the operator's gradients."""
    *lists, reverse = _layer_arguments(layer)
    groups = [one if isinstance(one, list) else [one] for one in lists]
    return _differentiable(layer.cell, lambda *_: run(), (reverse, history, gates, backend), groups)


def _differentiable(
    cell: Cell, compute: Callable[..., Any], flags: tuple[bool, bool, bool, str], groups: Sequence[Sequence[Any]]
) -> Forward:
    """What `compute` gives for the operator's arguments, with the operator's gradients.

    `groups` are its tensors, each in a list, and `flags` the arguments after them.
    """
    sizes, tensors = [len(group) for group in groups], [tensor for group in groups for tensor in group]
    flat = list(_Recurrence.apply(cell, compute, flags, sizes, *tensors))  # type: ignore[no-untyped-call]
    states = 1 + (len(cell.states) - 1 if flags[1] else 0)
    finals = states + len(cell.states)
    return Forward(flat[:states], flat[states:finals], flat[finals:])


@torch.enable_grad()
def differentiable_gradients(
    layer: Layer, d_states: Sequence[Tensor | None], d_finals: Sequence[Tensor | None], create_graph: bool
) -> Backward:
    """The gradients through the reference backend: as a function that can be differentiated or batched again."""
    groups = [[layer.x], layer.w_ih, layer.w_hh, layer.biases, layer.extras, layer.states0]
    # Under names of their own: where one argument was computed from another, only its direct share is wanted here.
    groups = [[tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in group] for group in groups]
    (x,), w_ih, w_hh, biases, extras, states0 = groups
    layer = replace(layer, x=x, w_ih=w_ih, w_hh=w_hh, biases=biases, extras=extras, states0=states0)
    outputs = reference.forward(layer, history=len(d_states) > 1, gates=False)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs.states + outputs.finals, [*d_states, *d_finals], strict=True)
        if grad is not None and output.requires_grad
    ]
    wanted = [tensor for group in groups for tensor in group if tensor.requires_grad]
    grads = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return Backward(*([next(grads) if tensor.requires_grad else None for tensor in group] for group in groups))  # type: ignore[arg-type]


def _from_dispatcher(kernel: Callable[..., Any], lists: slice) -> Callable[..., Any]:
    """A kernel as it is registered: AOTInductor's packages give it None in place of an empty list."""

    def registered(*arguments: Any) -> Any:
        given = list(arguments)
        given[lists] = [[] if tensors is None else tensors for tensors in given[lists]]
        return kernel(*given)

    return registered


for _cell in CELLS.values():
    _forward_name, _backward_name = f"{_cell.name}_forward", f"{_cell.name}_backward"
    LIBRARY.define(_forward_name + _FORWARD_SCHEMA)
    LIBRARY.define(_backward_name + _BACKWARD_SCHEMA)
    _forward = _from_dispatcher(_forward_kernel(_cell, False), _FORWARD_LISTS)
    # It has no derivative of its own, and autograd must not record the operations that it is made of.
    _backward = _from_dispatcher(torch.no_grad()(_backward_kernel(_cell, False)), _BACKWARD_LISTS)
    LIBRARY.impl(_forward_name, _forward, "CompositeExplicitAutograd")
    LIBRARY.impl(_backward_name, _backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrnn::{_forward_name}", _forward_fake(_cell), lib=LIBRARY)
    torch.library.register_fake(f"fastrnn::{_backward_name}", _backward_fake(_cell), lib=LIBRARY)
    LIBRARY.impl(_forward_name, _from_dispatcher(_autograd_kernel(_cell), _FORWARD_LISTS), "Autograd")
