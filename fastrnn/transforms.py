"""Layers under torch.func's transforms: kernels where they can, the reference where not.

vmap and grad, in any order and depth, meet a layer here as one function with a batching rule and a derivative:

- Where the weights are shared, the dimension that vmap maps over joins the batch: one call of a kernel serves it.
- Where each member has weights of its own (an ensemble), a kernel is called for each.
- Each sample's own gradients of shared weights come from one backward over the joined batch, which is asked for the
  gates' gradients, and from a product for each sample.

Forward-mode derivatives, functionalization and derivatives of a derivative are taken through the reference, which is
plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from fastrnn import batching, checks, hints, ops
from fastrnn.backends import products, reference
from fastrnn.backends.layer import (
    INPUT,
    WEIGHTS,
    Backward,
    Forward,
    Gradients,
    Layer,
    Outline,
    Residuals,
    grouped,
)
from fastrnn.cells import Cell
from fastrnn.cells.known import KNOWN, OPERATORS, of_text

_SAVED_BATCH = 2
"""Where saved gates have it."""


@dataclass(frozen=True)
class _ForwardOptions:
    """What a forward is told beside the layer's tensors."""

    outline: Outline
    history: bool
    gates: bool
    backend: str

    @property
    def cell(self) -> Cell:
        return KNOWN[self.outline.cell_name]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many states, final states and saved tensors there are."""
        return Forward.counts(self.cell, history=self.history, gates=self.gates)

    def batch(self) -> list[int | None]:
        """Where each of the layer's tensors has the batch, None where it has none."""
        return [row.batch for row in self.outline.rows]

    def shares_weights(self, dims: batching.Dims) -> bool:
        """Whether none of the layer's tensors without a batch has members, whose places `dims` are."""
        return all(place is not None or dim is None for place, dim in zip(self.batch(), dims, strict=True))


@dataclass(frozen=True)
class _BackwardOptions:
    """What a backward is told beside tensors, which are the gradients that arrive, what was kept, and the layer's."""

    forward: _ForwardOptions
    need_x: bool
    need_weights: bool

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many of its tensors are gradients of states and of final states, states, and saved gates."""
        states, finals, saved = self.forward.counts
        return states, finals, states, saved

    def split(self, values: Sequence[Any]) -> list[list[Any]]:
        """What belongs to the gradients of states and final states, to states, to gates, and to the layer."""
        return grouped(values, [*self.counts, len(self.forward.outline.rows)])

    def wanted(self) -> list[bool]:
        """For each of the layer's tensors, whether its gradient is a result."""
        asked = Gradients([], [], self.need_x, self.need_weights)
        return [asked.wants(row) for row in self.forward.outline.rows]

    def results_batch(self) -> list[int | None]:
        """Where each result has the batch, None where it has none."""
        return [place for place, wanted in zip(self.forward.batch(), self.wanted(), strict=True) if wanted]


def _needs_reference(tensors: Sequence[Tensor | None]) -> bool:
    """Whether only plain PyTorch will do: for dual numbers, for functionalization, and where some tensor is empty."""
    return (
        torch.autograd.forward_ad._current_level >= 0
        or any(key not in (TransformType.Grad, TransformType.Vmap) for key in _transforms())
        or any(tensor is not None and _innermost(tensor).numel() == 0 for tensor in tensors)
    )


def _check_memory(cell: Cell, tensors: Sequence[Tensor | None]) -> None:
    """Memory behind all tensors: what the reference is made of does not look."""
    inner = [tensor if tensor is None else _innermost(tensor) for tensor in tensors]
    checks.memory(cell.name, inner, lambda: {"a tensor": inner})


def _transforms() -> list[TransformType]:
    return [interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack() or ()]


def forward(layer: Layer, *, history: bool, recompute: bool, backend: str) -> Forward:
    """A layer's outputs while torch.func's transforms or dual numbers are at work; see `Forward`.

    `history` is whether the states after every step are asked for, `recompute` whether backward is to compute the
    gates again, and `backend` "auto" or the name of a backend.
    """
    plain = backend in ("aten", "reference")
    if torch.compiler.is_compiling():
        # An exporter loses track of its tensors in an operator's batching rule.
        if plain or torch.compiler.is_exporting() or not _only_vmap():
            return _reference(layer, history)
        kept = torch.is_grad_enabled()
        return ops.forward(layer, history=history or kept, gates=kept and not recompute, backend=backend)
    outline, tensors = layer.parts()
    if plain or _needs_reference([tensors[place] for place in outline.filled]):
        lengths = None if layer.lengths is None else _innermost(layer.lengths)
        _check_memory(layer.cell, tensors)
        if lengths is not None and lengths.is_cpu and type(lengths) in checks.PLAIN:
            checks.lengths_range(layer.cell.name, lengths.flatten(), layer.x.shape[0])
        return _reference(layer, history)
    kept = _is_recorded(tensors)
    options = _ForwardOptions(outline, history or kept, kept and not recompute, backend)
    return Forward(*grouped(_Forward.apply(options, *tensors), options.counts))  # type: ignore[no-untyped-call]


def _reference(layer: Layer, history: bool) -> Forward:
    with ops.autocast_off(layer.x):
        return reference.forward(layer, history=history, gates=False)


def _only_vmap() -> bool:
    return all(key == TransformType.Vmap for key in _transforms())


# As torch.compiler.assume_constant_result does, which imports the compiler: a graph is compiled within its transforms.
_only_vmap._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a gradient may be asked for: by a transform, or by autograd around all of them."""
    if TransformType.Grad in _transforms():
        return True
    return torch.is_grad_enabled() and any(
        tensor is not None and _innermost(tensor).requires_grad for tensor in tensors
    )


def _innermost(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class _Forward(torch.autograd.Function):
    """The forward operator, as torch.func transforms it."""

    @staticmethod
    def forward(options: _ForwardOptions, *tensors: Tensor) -> tuple[Tensor, ...]:
        layer = options.outline.layer(tensors)
        states, finals, saved = ops.forward_below_autograd(layer, options.history, options.gates, options.backend)
        return (*states, *finals, *saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, *tensors = inputs
        states, _, saved = grouped(output, options.counts)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*states, *saved, *tensors)
        ctx.options = options

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        options, asked = ctx.options, ctx.needs_input_grad[1:]
        needs = (options.outline.needs(kind, asked) for kind in (INPUT, WEIGHTS))
        arriving = grads[: sum(options.counts[:2])]
        return (None, *_gradients(_BackwardOptions(options, *needs), arriving, hints.saved_tensors(ctx)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: _ForwardOptions, *tensors: Tensor) -> Any:
        return _forward_of_members(partial(_Forward.apply, options), options, info.batch_size, tensors, in_dims[1:])


def _forward_of_members(
    apply: Callable[..., tuple[Tensor, ...]],
    options: _ForwardOptions,
    members: int,
    tensors: Sequence[Tensor],
    dims: batching.Dims,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The forward's results of all members, with where the members are; `apply` gives those of one layer's tensors."""
    if not options.shares_weights(dims):
        return batching.each(apply, members, tensors, dims)
    outputs = apply(*batching.folded(members, tensors, dims, options.batch()))
    states, finals, saved = options.counts
    return batching.unfolded(members, outputs, [1] * (states + finals) + [_SAVED_BATCH] * saved)


def _operators_rule(cell: Cell | None) -> Callable[..., Any]:
    """The batching rule of a forward operator, for graphs that are compiled and for direct calls."""

    def rule(cell: Cell, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        *of_layer, history, gates, backend = arguments
        outline, tensors = Layer(cell.key, *of_layer).parts()
        options = _ForwardOptions(outline, history, gates, backend)
        given = [dim for value, dim in zip(of_layer, in_dims, strict=False) if not isinstance(value, (bool, NoneType))]
        dims = [one for dim in given for one in (dim if isinstance(dim, (list, tuple)) else [dim])]

        def apply(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = outline.layer(tensors).arguments()
            states, finals, saved = ops._operator(cell, "forward")(*given, history, gates, backend)
            return (*states, *finals, *saved)

        found: Any = _forward_of_members(apply, options, info.batch_size, tensors, dims)
        return tuple(tuple(grouped(part, options.counts)) for part in found)

    if cell is not None:
        return partial(rule, cell)
    return lambda info, in_dims, program, *arguments: rule(of_text(program), info, in_dims[1:], *arguments)


for _name, _cell in OPERATORS.items():
    torch.library.register_vmap(f"fastrnn::{_name}_forward", _operators_rule(_cell), lib=ops.LIBRARY)


def backward(layer: Layer, kept: Residuals, grads: Gradients, backend: str) -> list[Tensor | None]:
    """The gradients that the backward operator gives, while transforms are at work, of each of the layer's tensors."""
    outline, tensors = layer.parts()
    history = len(kept.states) == len(layer.cell.states)
    options = _BackwardOptions(
        _ForwardOptions(outline, history, bool(kept.gates), backend), grads.need_x, grads.need_weights
    )
    return _gradients(options, [*grads.states, *grads.finals], [*kept.states, *kept.gates, *tensors])


def _gradients(
    options: _BackwardOptions, arriving: Sequence[Tensor | None], kept: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of each of a layer's tensors, None where it is not asked for or there is none.

    `arriving` are the gradients of states and final states, `kept` the states, the gates and the layer's tensors.
    """
    tensors = [*arriving, *kept]
    *others, of_layer = options.split(tensors)
    if _needs_reference([*chain(*others), *[of_layer[place] for place in options.forward.outline.filled]]):
        _check_memory(options.forward.cell, tensors)
        found = _by_reference(options, arriving, of_layer)
    else:
        found = _Backward.apply(options, *tensors)  # type: ignore[no-untyped-call]
    each = iter(found)
    return [next(each) if wanted else None for wanted in options.wanted()]


class _Backward(torch.autograd.Function):
    """The backward operator, as torch.func transforms it. Its results are those gradients that are wanted."""

    @staticmethod
    def forward(options: _BackwardOptions, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        d_states, d_finals, states, saved, of_layer = options.split(tensors)
        layer, grads = (
            options.forward.outline.layer(of_layer),
            Gradients(d_states, d_finals, options.need_x, options.need_weights),
        )
        kept, backend = Residuals(states, saved), options.forward.backend
        found = ops.backward_below_autograd(layer, kept, grads, backend, tensors)
        return tuple(tensor for group in found for tensor in group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, *tensors = inputs
        d_states, d_finals, _, _, of_layer = options.split(tensors)
        ctx.save_for_backward(*d_states, *d_finals, *of_layer)
        ctx.options = options

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Through the reference: as a function of what arrives and of the layer alone, from which all else follows."""
        options = ctx.options
        states, finals, kept_states, kept_gates = options.counts
        tensors, arriving = hints.saved_tensors(ctx), states + finals
        places = [place for place, tensor in enumerate(tensors) if tensor is not None and tensor.is_floating_point()]

        def function(*floating: Tensor) -> tuple[Tensor, ...]:
            given = _with(tensors, places, floating)
            return tuple(_by_reference(options, given[:arriving], given[arriving:]))

        found = _pulled_back(function, [tensors[place] for place in places], grads)
        result = _with([None] * len(tensors), places, found)
        return (None, *result[:arriving], *[None] * (kept_states + kept_gates), *result[arriving:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], options: _BackwardOptions, *tensors: Tensor | None) -> Any:
        members, dims = info.batch_size, in_dims[1:]
        states, finals, kept_states, kept_gates = options.counts
        batch = [*[1] * (states + finals + kept_states), *[_SAVED_BATCH] * kept_gates, *options.forward.batch()]
        *_, layer_dims = options.split(dims)
        apply = partial(_Backward.apply, options)
        if not options.forward.shares_weights(layer_dims):
            return batching.each(apply, members, tensors, dims)
        *_, of_layer = options.split(tensors)
        if options.need_weights:
            first = options.forward.outline.layer(batching.member(0, of_layer, layer_dims))
            if not batching.prefers_one_backward(first):
                return batching.each(apply, members, tensors, dims)
        folded = batching.folded(members, tensors, dims, batch)
        if options.need_weights:
            return _gradients_of_each(options, members, folded)
        return batching.unfolded(members, apply(*folded), options.results_batch())


def _gradients_of_each(options: _BackwardOptions, members: int, tensors: Sequence[Tensor | None]) -> Any:
    """`_Backward` for each member, from one call over the batch that joins them all, with where the members are."""
    d_states, d_finals, states, saved, of_layer = options.split(tensors)
    layer = options.forward.outline.layer(of_layer)
    with ops.autocast_off(layer.x):
        cut = batching.cut_before_input(layer)
        gates_only = replace(options, need_x=True, need_weights=False)
        found = _Backward.apply(gates_only, *d_states, *d_finals, *states, *saved, *cut.tensors())  # type: ignore[no-untyped-call]
        (dgx,), d_states0, d_inputs = grouped(found, [1, len(layer.states0), len(layer.inputs)])
        d_x = [batching.input_gradient(layer, dgx)] if options.need_x else []
        x = products.masked_x(layer).unflatten(1, (members, -1)).movedim(1, 0)
        w_ih, w_hh, biases, parameters = batching.weight_gradients(layer, x, dgx, states)
    inputs = d_inputs if options.need_x else []
    results = chain(*Backward(d_x, w_ih, w_hh, biases, [], d_states0, parameters, inputs))
    return batching.unfolded(members, [*results], options.results_batch())


def _by_reference(
    options: _BackwardOptions, arriving: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """A backward's results, through the reference backend."""
    outline = options.forward.outline
    places = [place for place, is_wanted in enumerate(options.wanted()) if is_wanted]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = _reference(outline.layer(_with(tensors, places, inputs)), options.forward.history)
        return (*outputs.states, *outputs.finals)

    return list(_pulled_back(function, [tensors[place] for place in places], arriving))


def _pulled_back(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Any], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The gradients of the inputs; a cotangent that is None is zero."""
    with ops.autocast_off(inputs[0]):
        outputs, pull = torch.func.vjp(function, *inputs)[:2]
        given = (torch.zeros_like(y) if d is None else d for y, d in zip(outputs, cotangents, strict=True))
        return pull(tuple(given))  # type: ignore[no-any-return]


def _with(values: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """`values`, with `others` at the given places."""
    result = list(values)
    for place, other in zip(places, others, strict=True):
        result[place] = other
    return result
