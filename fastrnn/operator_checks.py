"""What the operators are called with: kernels compute addresses from sizes, and read whatever lies there.

Modules and functions check their arguments and then call what the operators do without the dispatcher. What comes
through the dispatcher stands in a graph, or was called by hand, with whatever tensors there were. Memory that was freed
is looked for either way, before a backward as well: much may have happened since the forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastrnn import checks
from fastrnn.backends import OPERATOR_BACKENDS, cannot_serve, module
from fastrnn.backends.layer import Form, Gradients, Layer, Residuals

_NAMES = ("auto", *OPERATOR_BACKENDS)
_MOST = 512
"""Layers' sizes that are remembered: telling that they fit each other takes longer than finding that they did."""


class _Forms(NamedTuple):
    """Of what belongs to a layer beside its arguments."""

    histories: list[Form]
    finals: list[Form]
    saved: list[Form]


_known: dict[tuple[Any, ...], _Forms] = {}


def forward(layer: Layer, backend: str) -> None:
    """Every argument as `Layer` says, but for the sizes and dtypes of lengths and resets, and a backend that there is.

    Raises:
        ValueError: for numbers of tensors, and for an unknown backend.
        RuntimeError: for shapes, dtypes, devices and layouts, and where a tensor has not the memory that it needs.
        TypeError: where the input is not floating point and real.
    """
    _forms(layer, backend)
    memory(layer)


def backward(layer: Layer, kept: Residuals, grads: Gradients, backend: str) -> None:
    """As `forward`, and what was kept and what reaches a backward as `Residuals` and `Gradients` say.

    Memory is left to `memory_of_backward`.

    Raises:
        ValueError, RuntimeError, TypeError: as `forward`, and RuntimeError where the named backend cannot serve it.
    """
    name, forms = layer.cell_name, _forms(layer, backend)
    states, saves = len(forms.finals), len(forms.saved)
    numbers = (len(grads.states), len(grads.finals), len(kept.states), len(kept.gates))
    if not 1 <= numbers[0] <= states or numbers[1:3] != (states, states) or numbers[3] > saves:
        expected = f"1 to {states}, {states}, {states} and up to {saves}"
        raise ValueError(f"{name}: d_states, d_finals, states and saved must hold {expected} tensors, got {numbers}")
    for argument, tensors, wanted in (
        ("d_states", grads.states, forms.histories),
        ("d_finals", grads.finals, forms.finals),
        ("states", kept.states, forms.histories),
        ("saved", kept.gates, forms.saved),
    ):
        for index, (tensor, form) in enumerate(zip(tensors, wanted, strict=False)):
            if tensor is None:
                continue
            if (tensor.shape, tensor.dtype) != form or tensor.device != layer.x.device:
                raise RuntimeError(
                    f"{name}: {argument}[{index}] must be {form[1]} of shape {form[0]} on {layer.x.device}, "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
                )
    if backend != "auto":
        served_by = module(backend)
        reason = getattr(served_by, "supports_backward", served_by.supports)(layer)
        if reason is not None:
            raise cannot_serve(name, backend, reason)


def _forms(layer: Layer, backend: str) -> _Forms:
    """Checks all but memory."""
    if backend not in _NAMES:
        names = ", ".join(map(repr, _NAMES))
        raise ValueError(f"{layer.cell_name}: unknown backend {backend!r}; the operators take {names}")
    lists = (layer.w_ih, layer.w_hh, layer.biases, layer.extras, layer.states0)
    tensors = (layer.x, *lists[0], *lists[1], *lists[2], *lists[3], *lists[4])
    dtype = layer.x.dtype
    key = (layer.cell_name, dtype, tuple(map(len, lists)), tuple([tensor.shape for tensor in tensors]))
    forms = _known.get(key)
    if forms is None:
        _numbers(layer)
        _shapes(layer)
        forms = _Forms(layer.history_forms, [(tuple(h.shape), dtype) for h in layer.states0], layer.saved_forms)
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = forms
    # Nothing is converted here, whatever autocast would do.
    checks.same_device_and_dtype(layer.x, layer.states0, tensors[1:], converts=False)
    return forms


def _numbers(layer: Layer) -> None:
    """One direction or two, and as many tensors in each list."""
    directions = layer.directions
    projections = (0, directions) if layer.cell_name == "lstm" else (0,)
    lists: tuple[tuple[str, Sequence[Tensor], tuple[int, ...]], ...] = (
        ("w_ih", layer.w_ih, (1, 2)),
        ("w_hh", layer.w_hh, (directions,)),
        ("biases", layer.biases, (0, 2 * directions)),
        ("extras", layer.extras, projections),
        ("states0", layer.states0, (len(layer.cell.states),)),
    )
    for argument, tensors, numbers in lists:
        if len(tensors) not in numbers:
            allowed = " or ".join(map(str, numbers))
            raise ValueError(f"{layer.cell_name}: {argument} must hold {allowed} tensors, got {len(tensors)}")


def _shapes(layer: Layer) -> None:
    """That all sizes fit each other."""
    name, x, w_ih, w_hh = layer.cell_name, layer.x, layer.w_ih, layer.w_hh
    for argument, tensors, dims in (("x", [x], 3), ("w_ih", w_ih, 2), ("w_hh", w_hh, 3), ("extras", layer.extras, 2)):
        if any(tensor.dim() != dims for tensor in tensors):
            got = [tensor.dim() for tensor in tensors]
            raise RuntimeError(f"{name}: {argument} must have {dims} dimensions, got {got}")
    groups = [
        (w_ih[d], w_hh[d], *layer.biases[2 * d : 2 * d + 2], *layer.extras[d : d + 1]) for d in range(layer.directions)
    ]
    checks.weight_shapes(name, len(layer.cell.gates), layer.directions, x.shape[2], groups)
    checks.state_sizes(layer.states0, checks.state_shapes(layer.cell, groups, x.shape[1]))


def memory(layer: Layer, grads: Sequence[Tensor | None] = ()) -> None:
    """Memory behind every tensor of a layer and every gradient that reaches it; see `checks.memory`."""
    weights = (*layer.w_ih, *layer.w_hh, *layer.biases, *layer.extras)
    tensors = (layer.x, *weights, *layer.states0, layer.lengths, layer.resets, *grads)
    checks.memory(layer.cell_name, tensors, lambda: _named(layer, grads))


def memory_of_backward(layer: Layer, kept: Residuals, grads: Gradients) -> None:
    """Memory behind every tensor that a backward reads; see `checks.memory`.

    Where gates were kept, biases are not read, nor is what only gradients need that nobody asked for.
    """
    recomputes = not kept.gates and len(layer.cell.saved) > 0
    tensors: list[Tensor | None] = [*layer.w_hh, *layer.extras, *layer.states0, layer.lengths, layer.resets]
    if recomputes or grads.need_weights:
        tensors.append(layer.x)
    if recomputes or grads.need_x:
        tensors += layer.w_ih
    if recomputes:
        tensors += layer.biases
    tensors += [*kept.states, *kept.gates, *grads.states, *grads.finals]
    checks.memory(layer.cell_name, tensors, lambda: _named(layer, (*grads.states, *grads.finals), kept))


def _named(
    layer: Layer, grads: Sequence[Tensor | None], kept: Residuals | None = None
) -> dict[str, Iterable[Tensor | None]]:
    """Tensors by what users call them."""
    states, gates = ([], []) if kept is None else (kept.states, kept.gates)
    return {
        "the input": (layer.x,),
        "weight_ih": layer.w_ih,
        "weight_hh": layer.w_hh,
        "a bias": layer.biases,
        "weight_hr": layer.extras,
        "the initial state": layer.states0,
        "lengths": (layer.lengths,),
        "resets": (layer.resets,),
        "the output, which backward reads,": states[:1],
        "what forward kept for backward": (*states, *gates),
        "an incoming gradient": grads,
    }
