"""The operators: for each built-in cell `fastrnn::{cell}_forward` and `fastrnn::{cell}_backward`, known to torch.

All other cells share `fastrnn::cell_forward` and `fastrnn::cell_backward`, whose first argument is the cell's program
as text: a graph that calls them holds all that it needs of the cell.

One call computes one layer, in one or two directions. Arguments and results are those of `Layer`, `Forward` and
`Backward` in `fastrnn.backends.layer`, which say every shape. The forward's saved state is a result of the operator,
empty where `history` and `gates` do not ask for it; autograd hands it to the backward operator. Under `create_graph`
the gradient is taken through the reference backend instead, which autograd can differentiate again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrnn import checks, flops, hints, operator_checks
from fastrnn.backends import module, operator_backend, reference
from fastrnn.backends.layer import (
    ARGUMENTS,
    DIFFERENTIABLE,
    INPUT,
    WEIGHTS,
    Argument,
    Backward,
    Forward,
    Gradients,
    Layer,
    Outline,
    Residuals,
    grouped,
)
from fastrnn.cells import Cell
from fastrnn.cells.known import KNOWN, OPERATORS, told

LIBRARY = torch.library.Library("fastrnn", "DEF")

_KEPT = ["Tensor?[] d_states", "Tensor?[] d_finals", "Tensor[] states", "Tensor[] saved"]
_FORWARD_RESULTS = [f"Tensor[] {name}" for name in Forward._fields]


def _rows(cell: Cell | None) -> list[Argument]:
    """Of the table of arguments those of a cell's operators; None: of those that all other cells share."""
    return [row for row in ARGUMENTS if row.built_in or cell is None]


def _forward_arguments(cell: Cell | None) -> list[str]:
    return [*(f"{row.type} {row.name}" for row in _rows(cell)), "bool history", "bool gates", "str backend"]


def _backward_arguments(cell: Cell | None) -> list[str]:
    layer = [f"{row.type} {row.name}" for row in _rows(cell)]
    return [*_KEPT, *layer, "bool need_x", "bool need_weights", "str backend"]


def _backward_results(cell: Cell | None) -> list[str]:
    return [f"Tensor[] d_{row.name}" for row in _rows(cell) if row.gradient]


def forward(layer: Layer, *, history: bool, gates: bool, backend: str) -> Forward:
    """Computes a layer by its cell's forward operator; `backend` is "auto" or the name of an operator backend.

    Where nobody watches the dispatcher, what the operator does is called without it: that takes 30 µs less.
    """
    if dispatcher_is_watched() or _are_unusual(tensors := layer.tensors()):
        return Forward(*_operator(layer.cell, "forward")(*layer.arguments(), history, gates, backend))
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
        # Of a transform of torch.func that has ended: what it holds is a tensor like others.
        layer = layer.with_tensors(torch._C._functorch.unwrap_if_dead)
    return _under_autograd(layer, partial(_forward, layer, history, gates, backend), history, gates, backend)


def is_watched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether the dispatcher has more to do, with these tensors, than to call a kernel.

    So it is where somebody must see operators, and of tensors that are not what they hold.
    """
    return dispatcher_is_watched() or _are_unusual(tensors)


def _are_unusual(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one is of a class of its own or a negative view, whose memory does not hold its values."""
    found = [t for t in tensors if t is not None and (type(t) not in checks.PLAIN or t.is_neg())]
    return len(found) > 0


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


def forward_below_autograd(layer: Layer, history: bool, gates: bool, backend: str, *, checked: bool = True) -> Forward:
    """What the operator does, for callers that have taken care of autograd; and of the arguments, if `checked`."""
    if not is_watched(layer.tensors()):
        return _forward(layer, history, gates, backend, checked=checked)
    with torch._C._AutoDispatchBelowAutograd():
        return Forward(*_operator(layer.cell, "forward")(*layer.arguments(), history, gates, backend))


def backward_below_autograd(
    layer: Layer, kept: Residuals, grads: Gradients, backend: str, tensors: Iterable[Tensor | None]
) -> Backward:
    """As `forward_below_autograd`, of arguments that were checked; `tensors` are those of all of them."""
    if not is_watched(tensors):
        return _backward(layer, kept, grads, backend)
    given = (grads.states, grads.finals, kept.states, kept.gates, *layer.arguments())
    with torch._C._AutoDispatchBelowAutograd():
        operator = _operator(layer.cell, "backward")
        return Backward(*operator(*given, grads.need_x, grads.need_weights, backend))


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """What a backend computes in is its own affair: autocast has been applied to its arguments already."""
    off = checks.autocast_dtype(x) is None
    return nullcontext() if off else torch.autocast(x.device.type, enabled=False)


def _checked(layer: Layer) -> Layer:
    """The layer, its `lengths` within [0, T]: looked at on the CPU, clamped where looking would synchronise."""
    steps, batch = layer.x.shape[:2]
    if layer.resets is not None:
        checks.resets(layer.cell.name, layer.resets, (steps, batch), "TB", layer.x.device)
    if layer.lengths is None:
        return layer
    checks.lengths(layer.cell.name, layer.lengths, batch, layer.x.device)
    if layer.lengths.device.type == "cpu":
        checks.lengths_range(layer.cell.name, layer.lengths, steps)
        return replace(layer, lengths=layer.lengths.to(torch.int64))
    return replace(layer, lengths=layer.lengths.clamp(0, steps).to(torch.int64))


def _forward(layer: Layer, history: bool, gates: bool, backend: str, checked: bool = True) -> Forward:
    if not checked:
        operator_checks.forward(layer, backend)
    layer = _checked(layer)
    with autocast_off(layer.x):
        return module(operator_backend(backend, layer)).forward(layer, history=history, gates=gates)  # type: ignore[no-any-return]


def _forward_fake(layer: Layer, history: bool, gates: bool, backend: str) -> Forward:
    histories, kept = layer.history_forms, layer.saved_forms if gates else []
    states = [layer.x.new_empty(shape, dtype=dtype) for shape, dtype in (histories if history else histories[:1])]
    finals = [layer.x.new_empty(state.shape) for state in layer.states0]
    return Forward(states, finals, [layer.x.new_empty(shape, dtype=dtype) for shape, dtype in kept])


def _backward(layer: Layer, kept: Residuals, grads: Gradients, backend: str, checked: bool = True) -> Backward:
    if not checked:
        operator_checks.backward(layer, kept, grads, backend)
    operator_checks.memory_of_backward(layer, kept, grads)
    layer, grads = _checked(layer), _resolved(grads)
    with autocast_off(layer.x):
        # What was named has served the layer already, whatever torch allows by now.
        served_by = module(operator_backend(backend, layer, "backward") if backend == "auto" else backend)
        return served_by.backward(layer, kept, grads)  # type: ignore[no-any-return]


def _resolved(grads: Gradients) -> Gradients:
    """The dispatcher resolves negative views, but not those in a list of optional tensors."""
    if not any(d is not None and d.is_neg() for d in (*grads.states, *grads.finals)):
        return grads
    states, finals = ([d if d is None else d.resolve_neg() for d in group] for group in (grads.states, grads.finals))
    return replace(grads, states=states, finals=finals)


def _backward_fake(layer: Layer, kept: Residuals, grads: Gradients, backend: str) -> Backward:
    groups = layer.groups()
    asked = (groups[row.name] if grads.wants(row) else () for row in DIFFERENTIABLE)
    return Backward(*([tensor.new_empty(tensor.shape) for tensor in group] for group in asked))


class _Recurrence(torch.autograd.Function):
    """The forward operator under autograd, its tensors one after another.

    torch.library.register_autograd does the same for lists of tensors, but walks them as trees: a module's call of ten
    steps took 290 µs with it and takes 93 so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[], Forward],
        outline: Outline,
        counts: tuple[int, int, int],
        backend: str,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        states, finals, saved = run()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*tensors, *states, *saved)
        ctx.outline, ctx.counts, ctx.backend = outline, counts, backend
        return (*states, *finals, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        outline, (states, finals, _), tensors = ctx.outline, ctx.counts, hints.saved_tensors(ctx)
        layer, first = outline.layer(tensors), len(outline.rows)
        asked = ctx.needs_input_grad[-first:]
        kept = Residuals([*tensors[first : first + states]], [*tensors[first + states :]])
        gradients = Gradients(
            [*grads[:states]],
            [*grads[states : states + finals]],
            outline.needs(INPUT, asked),
            outline.needs(WEIGHTS, asked),
        )
        create_graph = torch.is_grad_enabled()
        if create_graph or torch.autograd.forward_ad._current_level >= 0 or any(map(is_batched, grads)):
            operator_checks.memory(layer, grads)
            with autocast_off(layer.x):
                flat = differentiable_gradients(layer, gradients, create_graph)
        else:
            if states < len(layer.cell.states):
                # The call of a graph that was traced without gradients: what it did not keep is computed again.
                again = forward_below_autograd(layer, True, True, ctx.backend, checked=False)
                kept = Residuals(again.states, again.saved)
            if torch._C._are_functorch_transforms_active():
                from fastrnn import transforms  # which stands above the operators

                flat = transforms.backward(layer, kept, gradients, ctx.backend)
            else:
                flat = outline.in_order(
                    backward_below_autograd(layer, kept, gradients, ctx.backend, (*tensors, *grads))
                )
        return (None, None, None, None, *flat)


def is_batched(grad: Tensor | None) -> bool:
    """Whether a gradient stands for many: in a vectorised Jacobian, or under `is_grads_batched`."""
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)


def _operator(cell: Cell, direction: str) -> Callable[..., Any]:
    """By which the dispatcher, and who watches it, is called."""
    if not torch.compiler.is_compiling():
        flops.tell_counters()
    if cell.program is not None:
        return partial(getattr(torch.ops.fastrnn, f"cell_{direction}"), cell.program.text)
    return getattr(torch.ops.fastrnn, f"{cell.name}_{direction}")  # type: ignore[no-any-return]


def _under_autograd(layer: Layer, run: Callable[[], Forward], history: bool, gates: bool, backend: str) -> Forward:
    """What `run` gives for the layer, with gradients where any are asked for."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in layer.tensors())):
        return run()
    return recorded(*layer.parts(), run, history=history, gates=gates, backend=backend)


def recorded(
    outline: Outline, tensors: list[Tensor], run: Callable[[], Forward], *, history: bool, gates: bool, backend: str
) -> Forward:
    """What `run` gives for a layer, which is given in parts, with the operator's gradients.

    `history` and `gates` say what it gives, and `backend` what computes the gradients; as in `forward`.
    """
    counts = Forward.counts(KNOWN[outline.cell_name], history=history, gates=gates)
    flat = _Recurrence.apply(run, outline, counts, backend, *tensors)  # type: ignore[no-untyped-call]
    return Forward(*grouped(flat, counts))


@torch.enable_grad()
def differentiable_gradients(layer: Layer, grads: Gradients, create_graph: bool) -> list[Tensor | None]:
    """The gradient of each tensor through the reference backend: a function that can be derived or batched again."""
    # Under names of their own: where one argument was computed from another, only its direct share is wanted here.
    layer = layer.with_tensors(lambda tensor: tensor.view_as(tensor) if tensor.requires_grad else tensor)
    outputs = reference.forward(layer, history=len(grads.states) > 1, gates=False)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs.states + outputs.finals, grads.states + grads.finals, strict=True)
        if grad is not None and output.requires_grad
    ]
    tensors = layer.tensors()
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [tensor for tensor in tensors if tensor.requires_grad],
            [grad for _, grad in pairs],
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return [next(found) if tensor.requires_grad else None for tensor in tensors]


def _lists(arguments: Sequence[Any], declared: Sequence[str]) -> list[Any]:
    """The arguments of an operator: AOTInductor's packages give it None in place of an empty list."""
    given = zip(arguments, declared, strict=True)
    return [[] if value is None and "[]" in one else value for value, one in given]


def _registered_forward(cell: Cell | None, function: Callable[..., Forward]) -> Callable[..., Forward]:
    """A function of a layer and of what else the forward operator takes, as a function of the operator's arguments."""

    declared = _forward_arguments(cell)

    def registered(cell: Cell, *arguments: Any) -> Forward:
        *of_layer, history, gates, backend = _lists(arguments, declared)
        return function(Layer(cell.key, *of_layer), history, gates, backend)

    return told(cell, registered)


def _registered_backward(cell: Cell | None, function: Callable[..., Backward]) -> Callable[..., tuple[Any, ...]]:
    """The same of the backward operator."""
    declared, results = _backward_arguments(cell), len(_backward_results(cell))

    def registered(cell: Cell, *arguments: Any) -> tuple[Any, ...]:
        d_states, d_finals, states, saved, *of_layer, need_x, need_weights, backend = _lists(arguments, declared)
        grads = Gradients(d_states, d_finals, need_x, need_weights)
        return function(Layer(cell.key, *of_layer), Residuals(states, saved), grads, backend)[:results]

    return told(cell, registered)


def _forward_kernel(layer: Layer, history: bool, gates: bool, backend: str) -> Forward:
    return _forward(layer, history, gates, backend, checked=False)


@torch.no_grad()  # it has no derivative of its own, and autograd must not record the operations that it is made of
def _backward_kernel(layer: Layer, kept: Residuals, grads: Gradients, backend: str) -> Backward:
    return _backward(layer, kept, grads, backend, checked=False)


def _autograd_kernel(layer: Layer, history: bool, gates: bool, backend: str) -> Forward:
    run = partial(forward_below_autograd, layer, history, gates, backend, checked=False)
    return _under_autograd(layer, run, history, gates, backend)


def _define(
    name: str, arguments: list[str], results: list[str], kernel: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    LIBRARY.define(f"{name}({', '.join(arguments)}) -> ({', '.join(results)})")
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrnn::{name}", fake, lib=LIBRARY)


for _name, _cell in OPERATORS.items():
    _of_forward, _of_backward = partial(_registered_forward, _cell), partial(_registered_backward, _cell)
    _forward_name, _backward_name, _told = f"{_name}_forward", f"{_name}_backward", [] if _cell else ["str program"]
    _define(
        _forward_name,
        [*_told, *_forward_arguments(_cell)],
        _FORWARD_RESULTS,
        _of_forward(_forward_kernel),
        _of_forward(_forward_fake),
    )
    _define(
        _backward_name,
        [*_told, *_backward_arguments(_cell)],
        _backward_results(_cell),
        _of_backward(_backward_kernel),
        _of_backward(_backward_fake),
    )
    LIBRARY.impl(_forward_name, _of_forward(_autograd_kernel), "Autograd")
