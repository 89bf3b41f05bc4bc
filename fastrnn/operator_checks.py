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
from fastrnn.backends.layer import ARGUMENTS, Gradients, Layer, Residuals, ShapeAndDtype

_NAMES = ("auto", *OPERATOR_BACKENDS)
_MOST = 512
"""Layers' sizes that are remembered: telling that they fit each other takes longer than finding that they did."""


class _Others(NamedTuple):
    """Shapes and dtypes of what belongs to a layer beside its arguments."""

    histories: list[ShapeAndDtype]
    finals: list[ShapeAndDtype]
    saved: list[ShapeAndDtype]


_known: dict[tuple[Any, ...], _Others] = {}


def forward(layer: Layer, backend: str) -> None:
    """Every argument as `Layer` says, but for the sizes and dtypes of lengths and resets, and a backend that there is.

    Raises:
        ValueError: for numbers of tensors, and for an unknown backend.
        RuntimeError: for shapes, dtypes, devices and layouts, and where a tensor has not the memory that it needs.
        TypeError: where the input is not floating point and real.
    """
    _checked(layer, backend)
    memory(layer)


def backward(layer: Layer, kept: Residuals, grads: Gradients, backend: str) -> None:
    """As `forward`, and what was kept and what reaches a backward as `Residuals` and `Gradients` say.

    Memory is left to `memory_of_backward`.

    Raises:
        ValueError, RuntimeError, TypeError: as `forward`, and RuntimeError where the named backend cannot serve it.
    """
    name, forms = layer.cell.name, _checked(layer, backend)
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


def _checked(layer: Layer, backend: str) -> _Others:
    """Checks all but memory."""
    if backend not in _NAMES:
        names = ", ".join(map(repr, _NAMES))
        raise ValueError(f"{layer.cell.name}: unknown backend {backend!r}; the operators take {names}")
    dtype, (outline, tensors) = layer.x.dtype, layer.parts()
    key = (outline, dtype, tuple([tensor.shape for tensor in tensors]))
    others = _known.get(key)
    if others is None:
        _numbers(layer)
        _shapes(layer)
        finals: list[ShapeAndDtype] = [(tuple(h.shape), dtype) for h in layer.states0]
        others = _Others(layer.history_forms, finals, layer.saved_forms)
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = others
    floating = [tensor for tensor, row in zip(tensors, outline.rows, strict=True) if row.dtype is None]
    # Nothing is converted here, whatever autocast would do.
    checks.same_device_and_dtype(layer.x, layer.states0, floating[1:], converts=False)
    return others


def _numbers(layer: Layer) -> None:
    """One direction or two, and as many tensors in each list."""
    groups = layer.groups()
    for row in ARGUMENTS:
        if row.type == "Tensor[]" and len(groups[row.name]) not in row.numbers(layer):
            allowed = " or ".join(map(str, row.numbers(layer)))
            got = len(groups[row.name])
            raise ValueError(f"{layer.cell.name}: {row.name} must hold {allowed} tensors, got {got}")


def _shapes(layer: Layer) -> None:
    """That all sizes fit each other."""
    name, groups = layer.cell.name, layer.groups()
    # Lengths and resets are looked at wherever they come from.
    rows = [row for row in ARGUMENTS if row.type != "bool" and row.dtype is None]
    for row in rows:
        dims = [tensor.dim() for tensor in groups[row.name]]
        if any(got != len(row.sizes) for got in dims):
            raise RuntimeError(f"{name}: {row.name} must have {len(row.sizes)} dimensions, got {dims}")
    weights = [
        (
            *(layer.w_ih[d], layer.w_hh[d], *layer.biases[2 * d : 2 * d + 2], *layer.extras[d : d + 1]),
            *layer.parameters_of(d),
        )
        for d in range(layer.directions)
    ]
    checks.weight_shapes(name, layer.cell, layer.directions, layer.x.shape[2], weights)
    checks.state_sizes(layer.states0, checks.state_shapes(layer.cell, weights, layer.x.shape[1]))
    for row in rows:
        known = [layer.sizes.get(letter) for letter in row.sizes]
        for index, tensor in enumerate(groups[row.name]):
            if any(size not in (None, got) for size, got in zip(known, tensor.shape, strict=True)):
                raise RuntimeError(
                    f"{name}: {row.name}[{index}] must be of shape {row.shape}, got {tuple(tensor.shape)}"
                )


def memory(layer: Layer, grads: Sequence[Tensor | None] = ()) -> None:
    """Memory behind every tensor of a layer and every gradient that reaches it; see `checks.memory`."""
    checks.memory(layer.cell.name, (*layer.tensors(), *grads), lambda: _named(layer, grads))


def memory_of_backward(layer: Layer, kept: Residuals, grads: Gradients) -> None:
    """Memory behind every tensor that a backward reads; see `checks.memory`.

    Where gates were kept, biases are not read, nor is what only gradients need that nobody asked for.
    """
    unread: tuple[str, ...] = ()
    if kept.gates or not layer.cell.saved:
        unread = ("biases", *(() if grads.need_weights else ("x",)), *(() if grads.need_x else ("w_ih",)))
    incoming = (*grads.states, *grads.finals)
    tensors = [tensor for name, group in layer.groups().items() if name not in unread for tensor in group]
    everything = (*tensors, *kept.states, *kept.gates, *incoming)
    checks.memory(layer.cell.name, everything, lambda: _named(layer, incoming, kept))


def _named(
    layer: Layer, grads: Sequence[Tensor | None], kept: Residuals | None = None
) -> dict[str, Iterable[Tensor | None]]:
    """Tensors by what users call them."""
    states, gates = ([], []) if kept is None else (kept.states, kept.gates)
    return {
        **{row.called: layer.groups()[row.name] for row in ARGUMENTS if row.called},
        "the output, which backward reads,": states[:1],
        "what forward kept for backward": (*states, *gates),
        "an incoming gradient": grads,
    }
