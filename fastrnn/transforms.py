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
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from fastrnn import batching, checks, ops
from fastrnn.backends import products, reference
from fastrnn.backends.layer import Backward, Forward, Layer
from fastrnn.cells import CELLS, Cell

_BATCH: tuple[int | None, ...] = (1, None, None, None, None, 1, 0, 1)
"""Where a layer's tensors, in the order of the operators' arguments, have the batch; weights have none."""
_SAVED_BATCH = 2
"""Where saved gates have it."""


@dataclass(frozen=True)
class _Form:
    """What the operators are told beside tensors."""

    cell: Cell
    sizes: tuple[int, ...]
    """how many tensors each argument of the layer has, in the order of the operators"""
    reverse: bool
    history: bool
    gates: bool
    backend: str

    @property
    def outputs(self) -> tuple[int, int, int]:
        """How many states, final states and saved tensors there are."""
        states = len(self.cell.states)
        return states if self.history else 1, states, int(self.gates and bool(self.cell.saved))

    def arguments(self, tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """The operators' arguments that make a layer."""
        (x,), *lists, (lengths,), (resets,) = ops._grouped(tensors, list(self.sizes))
        return (x, *lists, lengths, resets, self.reverse)

    def layer(self, tensors: Sequence[Tensor | None]) -> Layer:
        return Layer(self.cell.name, *self.arguments(tensors))

    def batch(self) -> list[int | None]:
        """Where each of the layer's tensors has the batch, None where it has none."""
        return [place for place, size in zip(_BATCH, self.sizes, strict=True) for _ in range(size)]

    def shares_weights(self, dims: batching.Dims) -> bool:
        """Whether none of the layer's tensors without a batch has members, whose places `dims` are."""
        return all(place is not None or dim is None for place, dim in zip(self.batch(), dims, strict=True))


@dataclass(frozen=True)
class _Request:
    """What a backward is told beside tensors, which are the gradients that arrive, what was kept, and the layer's."""

    form: _Form
    need_x: bool
    need_weights: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """How many of its tensors are gradients of states and of final states, states, and saved gates."""
        states, finals, saved = self.form.outputs
        return states, finals, states, saved

    def split(self, values: Sequence[Any]) -> list[list[Any]]:
        """What belongs to the gradients of states and final states, to states, to gates, and to the layer."""
        return ops._grouped(values, [*self.sizes, sum(self.form.sizes)])

    def wanted(self) -> list[bool]:
        """For each argument of the layer but lengths and resets, whether its gradient is a result."""
        return [self.need_x, *[self.need_weights] * 4, True]


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
    *groups, reverse = ops._layer_arguments(layer)
    groups = [_as_list(group) for group in groups]
    tensors = [tensor for group in groups for tensor in group]
    if plain or _needs_reference(tensors):
        lengths = None if layer.lengths is None else _innermost(layer.lengths)
        _check_memory(layer.cell, tensors)
        if lengths is not None and lengths.is_cpu and type(lengths) in checks.PLAIN:
            checks.lengths_range(layer.cell_name, lengths.flatten(), layer.x.shape[0])
        return _reference(layer, history)
    kept = _is_recorded(tensors)
    sizes = tuple(len(group) for group in groups)
    form = _Form(layer.cell, sizes, reverse, history or kept, kept and not recompute, backend)
    return Forward(*ops._grouped(_Forward.apply(form, *tensors), list(form.outputs)))  # type: ignore[no-untyped-call]


def _as_list(group: Any) -> Sequence[Any]:
    return group if isinstance(group, (list, tuple)) else [group]


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
    def forward(form: _Form, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        arguments = (*form.arguments(tensors), form.history, form.gates, form.backend)
        states, finals, saved = ops._below_autograd(form.cell, "forward", arguments)
        return (*states, *finals, *saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        form, *tensors = inputs
        states, _, saved = ops._grouped(output, list(form.outputs))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*states, *saved, *tensors)
        ctx.form = form

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        form, needed = ctx.form, ctx.needs_input_grad[1:]
        need_weights = any(needed[1 : sum(form.sizes[:5])])
        arriving = grads[: sum(form.outputs[:2])]
        request = _Request(form, needed[0], need_weights)
        return (None, *_gradients(request, arriving, ctx.saved_tensors))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], form: _Form, *tensors: Tensor | None) -> Any:
        return _forward_of_members(partial(_Forward.apply, form), form, info.batch_size, tensors, in_dims[1:])


def _forward_of_members(
    apply: Callable[..., tuple[Tensor, ...]],
    form: _Form,
    members: int,
    tensors: Sequence[Tensor | None],
    dims: batching.Dims,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The forward's results of all members, with where the members are; `apply` gives those of one layer's tensors."""
    if not form.shares_weights(dims):
        return batching.each(apply, members, tensors, dims)
    outputs = apply(*batching.folded(members, tensors, dims, form.batch()))
    states, finals, saved = form.outputs
    return batching.unfolded(members, outputs, [1] * (states + finals) + [_SAVED_BATCH] * saved)


def _operators_rule(cell: Cell) -> Callable[..., Any]:
    """The batching rule of a forward operator, for graphs that are compiled and for direct calls."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        *groups, reverse, history, gates, backend = arguments
        tensors, dims = ([one for group in map(_as_list, some) for one in group] for some in (groups, in_dims[:-4]))
        sizes = tuple(len(_as_list(group)) for group in groups)
        form = _Form(cell, sizes, reverse, history, gates, backend)

        def apply(*tensors: Tensor | None) -> tuple[Tensor, ...]:
            states, finals, saved = ops._operator(cell, "forward")(*form.arguments(tensors), history, gates, backend)
            return (*states, *finals, *saved)

        found: Any = _forward_of_members(apply, form, info.batch_size, tensors, dims)
        return tuple(tuple(ops._grouped(part, list(form.outputs))) for part in found)

    return rule


for _cell in CELLS.values():
    torch.library.register_vmap(f"fastrnn::{_cell.name}_forward", _operators_rule(_cell), lib=ops.LIBRARY)


def backward(cell: Cell, arguments: Sequence[Any]) -> Backward:
    """What the backward operator gives for its arguments, while transforms are at work."""
    *tensors, reverse, need_x, need_weights, backend = arguments
    groups = [_as_list(group) for group in tensors]
    _, _, states, saved, *layer = groups
    sizes = tuple(len(group) for group in layer)
    form = _Form(cell, sizes, reverse, len(states) == len(cell.states), bool(saved), backend)
    arriving, kept = ([tensor for group in some for tensor in group] for some in (groups[:2], groups[2:]))
    found = _gradients(_Request(form, need_x, need_weights), arriving, kept)
    return Backward(*ops._grouped(found, list(sizes[: len(Backward._fields)])))


def _gradients(request: _Request, arriving: Sequence[Tensor | None], kept: Sequence[Tensor | None]) -> list[Any]:
    """The gradient of each of a layer's tensors, None where it is not asked for or there is none.

    `arriving` are the gradients of states and final states, `kept` the states, the gates and the layer's tensors.
    """
    tensors = [*arriving, *kept]
    if _needs_reference(tensors):
        _check_memory(request.form.cell, tensors)
        *_, layer = request.split(tensors)
        flat = _by_reference(request, tensors[: len(arriving)], layer)
    else:
        flat = list(_Backward.apply(request, *tensors))  # type: ignore[no-untyped-call]
    each, result = iter(flat), []
    for wanted, size in zip(request.wanted(), request.form.sizes, strict=False):
        result += [next(each) if wanted else None for _ in range(size)]
    return [*result, None, None]


class _Backward(torch.autograd.Function):
    """The backward operator, as torch.func transforms it. Its results are those gradients that the request names."""

    @staticmethod
    def forward(request: _Request, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        d_states, d_finals, states, saved, layer = request.split(tensors)
        form = request.form
        given = (d_states, d_finals, states, saved, *form.arguments(layer))
        flags = (request.need_x, request.need_weights, form.backend)
        found = Backward(*ops._below_autograd(form.cell, "backward", (*given, *flags)))
        return tuple(tensor for group in found for tensor in group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        request, *tensors = inputs
        d_states, d_finals, _, _, layer = request.split(tensors)
        ctx.save_for_backward(*d_states, *d_finals, *layer)
        ctx.request = request

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Through the reference: as a function of what arrives and of the layer alone, from which all else follows."""
        request = ctx.request
        states, finals, kept_states, kept_gates = request.sizes
        tensors, arriving = ctx.saved_tensors, states + finals
        places = [place for place, tensor in enumerate(tensors) if tensor is not None and tensor.is_floating_point()]

        def function(*floating: Tensor) -> tuple[Tensor, ...]:
            given = _with(tensors, places, floating)
            return tuple(_by_reference(request, given[:arriving], given[arriving:]))

        found = _pulled_back(function, [tensors[place] for place in places], grads)
        result = _with([None] * len(tensors), places, found)
        return (None, *result[:arriving], *[None] * (kept_states + kept_gates), *result[arriving:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], request: _Request, *tensors: Tensor | None) -> Any:
        form, members, dims = request.form, info.batch_size, in_dims[1:]
        states, finals, kept_states, kept_gates = request.sizes
        batch = [*[1] * (states + finals + kept_states), *[_SAVED_BATCH] * kept_gates, *form.batch()]
        *_, layer_dims = request.split(dims)
        apply = partial(_Backward.apply, request)
        if not form.shares_weights(layer_dims):
            return batching.each(apply, members, tensors, dims)
        *_, layer_tensors = request.split(tensors)
        if request.need_weights:
            first = form.layer(batching.member(0, layer_tensors, layer_dims))
            if not batching.prefers_one_backward(first):
                return batching.each(apply, members, tensors, dims)
        folded = batching.folded(members, tensors, dims, batch)
        if request.need_weights:
            x, dim = layer_tensors[0], layer_dims[0]
            return _gradients_of_each(
                request, folded, x.expand(members, *x.shape) if dim is None else x.movedim(dim, 0)
            )
        found = apply(*folded)
        return batching.unfolded(members, found, [1] * len(found))


def _gradients_of_each(request: _Request, tensors: Sequence[Tensor | None], x: Tensor) -> Any:
    """`_Backward` for each member, from one call over the batch that joins them all, with where the members are.

    x (V, T, B, I) is the input of each.
    """
    members = x.shape[0]
    d_states, d_finals, states, saved, layer_tensors = request.split(tensors)
    layer = request.form.layer(layer_tensors)
    with ops.autocast_off(layer.x):
        cut_x, w_ih, biases = batching.cut_before_input(layer)
        lists = (w_ih, layer.w_hh, biases, layer.extras, layer.states0)
        cut = [cut_x, *(tensor for tensors in lists for tensor in tensors), layer.lengths, layer.resets]
        gates_only = replace(request, need_x=True, need_weights=False)
        dgx, *d_states0 = _Backward.apply(gates_only, *d_states, *d_finals, *states, *saved, *cut)  # type: ignore[no-untyped-call]
        d_x = [batching.input_gradient(layer, dgx)] if request.need_x else []
        if layer.lengths is not None:
            x = products.masked_x(layer).unflatten(1, (members, -1)).movedim(1, 0)
        weights = batching.weight_gradients(layer, x, dgx, states[0])
    joined = [*d_x, *d_states0]
    parted, places = batching.unfolded(members, joined, [1] * len(joined))
    split = len(d_x)
    results = (*parted[:split], *weights, *parted[split:])
    return results, (*places[:split], *[0] * len(weights), *places[split:])


def _by_reference(
    request: _Request, arriving: Sequence[Tensor | None], tensors: Sequence[Tensor | None]
) -> list[Tensor]:
    """A backward's results, through the reference backend."""
    form = request.form
    wanted = [w for w, size in zip(request.wanted(), form.sizes, strict=False) for _ in range(size)]
    places = [place for place, is_wanted in enumerate(wanted) if is_wanted]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = _reference(form.layer(_with(tensors, places, inputs)), form.history)
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
