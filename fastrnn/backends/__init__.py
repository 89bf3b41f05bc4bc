"""Backends: what they are, which there are, and how one is chosen.

A backend of the operators is a module with three functions over one `Layer`:

- `ready() -> str | None`: why it cannot run on this machine, or None if it can;
- `supports(layer) -> str | None`: why it cannot serve this layer, as a clause, or None if it can; a pure function of
  cell, shapes, dtypes, devices and flags;
- `forward(layer, history=..., gates=...) -> Forward` and `backward(layer, kept, grads) -> Backward`;
- `bind(layer, history=..., gates=...)`, if it has more to do than `forward` that is the same for all layers of one
  signature: a function that computes the forward of any of them, with the weights of this one.

`aten` differs: it serves a whole `Stack` above the operators (see its module).
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType

import torch

from fastrnn.backends import aten, aten_cuda, preference_cuda, reference
from fastrnn.backends.cost import Sizes, why_torch
from fastrnn.backends.layer import Forward, Layer
from fastrnn.backends.stack import Stack
from fastrnn.first_use import undisturbed

BACKENDS: tuple[str, ...] = ("numba", "triton", "cuda", "aten", "reference")
"""By preference: `auto` takes the first that supports a call, but on the CPU `cost` compares with torch's."""

OPERATOR_BACKENDS: tuple[str, ...] = tuple(name for name in BACKENDS if name != "aten")
"""Those that serve one layer below the operators."""

GPU_BACKENDS: tuple[str, ...] = ("triton", "cuda")
"""Those whose kernels run on the CPU in tests only, and slowly."""

NAMES: tuple[str, ...] = ("auto", *BACKENDS)


class CannotServe(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message says why."""


def cannot_serve(cell_name: str, backend: str, reason: str) -> CannotServe:
    """The error. Not made by a constructor of its own, which torch.compile would stumble over."""
    return CannotServe(f"{cell_name}: backend {backend!r} cannot serve this call: {reason}")


@cache
def module(name: str) -> ModuleType:
    """The backend's module; importing it imports nothing heavy (numba is imported when it is first asked for)."""
    known = {"aten": aten, "reference": reference}.get(name)
    return known or undisturbed(lambda: importlib.import_module(f"fastrnn.backends.{name}"))


def check_name(name: str, where: str = "backend") -> str:
    """`name` itself if it names a backend or is "auto"; raises ValueError otherwise."""
    if name not in NAMES:
        raise ValueError(f"{where}: unknown backend {name!r}; expected one of {', '.join(map(repr, NAMES))}")
    return name


_environment = check_name(os.environ.get("FASTRNN_BACKEND") or "auto", "FASTRNN_BACKEND")


class _Chosen(threading.local):
    def __init__(self) -> None:  # not an attribute of the class, which compilers before torch 2.13 read in its place
        self.name: str | None = None


_chosen = _Chosen()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the `with` block and in this thread, modules that name no backend of their own use `name`.

    Args:
        name: "auto", "numba", "triton", "cuda", "aten" or "reference".

    Raises:
        ValueError: no backend has that name.

    Example::

        >>> import torch, fastrnn
        >>> gru = fastrnn.GRU(3, 4)
        >>> with fastrnn.use_backend("reference"):
        ...     output, hn = gru(torch.zeros(5, 2, 3))
        >>> output.shape
        torch.Size([5, 2, 4])
    """
    before, _chosen.name = _chosen.name, check_name(name)
    try:
        yield
    finally:
        _chosen.name = before


def requested(argument: str | None) -> str:
    """The name that applies: the argument, else `use_backend`'s, else FASTRNN_BACKEND as it was at import."""
    return argument or _chosen.name or _environment


def operator_backend(name: str, layer: Layer, operation: str = "forward") -> str:
    """The backend that serves an operation, "forward" or "backward", of `layer` when `name` was asked for.

    "auto" is the first that can, on a GPU in the order of `preference_cuda`. On the CPU it passes over cuda and triton,
    which can run there for tests.

    Raises:
        CannotServe: the backend that was asked for cannot serve the layer.
    """
    if name == "auto":
        own = ("numba",) if layer.x.device.type == "cpu" else preference_cuda.order(layer, operation)
        return next(c for c in (*own, "reference") if module(c).supports(layer) is None)
    reason = module(name).supports(layer)
    if reason is not None:
        raise cannot_serve(layer.cell.name, name, reason)
    return name


def bind(name: str, layer: Layer, *, history: bool, gates: bool) -> Callable[[Layer], Forward]:
    """What computes the forward of layers like this one, with its weights, when the backend `name` was asked for.

    Raises:
        CannotServe: the backend that was asked for cannot serve the layer.
    """
    served_by = module(operator_backend(name, layer))
    own = getattr(served_by, "bind", None)
    if own is None:
        return partial(served_by.forward, history=history, gates=gates)
    return own(layer, history=history, gates=gates)  # type: ignore[no-any-return]


def aten_serves(name: str, stack: Stack, first: Layer, training: bool) -> bool:
    """Whether torch's own kernels serve the whole call, whose first layer is `first`, when `name` was asked for.

    `training` is whether gradients are going to be computed.

    Raises:
        CannotServe: "aten" was asked for by name and cannot serve the call.
    """
    if name not in ("auto", "aten"):
        return False
    reason = aten.supports(stack)
    if reason is None and training and stack.cell_name == "lstm" and _is_compiled():
        reason = "torch's LSTM kernel cannot be compiled with gradients: torch.no_grad() compiles it without"
    if name == "aten" and reason is not None:
        raise cannot_serve(stack.cell.name, name, reason)
    return reason is None and (name == "aten" or why_aten(stack, first, training) is not None)


def _is_compiled() -> bool:
    """Whether a compiler is at work, and not an exporter."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def why_aten(stack: Stack, first: Layer, training: bool) -> str | None:
    """Why `auto` takes torch's kernels for a call that they support, whose first layer is `first`, or None if not.

    It does so in eager mode only: compiled graphs keep to the operators, which are opaque to the compiler. A trace on
    the CPU goes where fastrnn's operators may not be: to OpenVINO, Core ML, the older ONNX exporter, a C++ program.
    """
    if torch.compiler.is_compiling():
        return None
    if torch._C._get_tracing_state() is not None and first.x.device.type == "cpu":
        return "torch.jit.trace is at work, whose readers know torch's kernels alone"
    if first.x.device.type == "cuda":
        return _why_cudnn(stack, first, training)
    reason = module("numba").supports(first)
    if reason is not None:
        return f"numba cannot serve it: {reason}"
    if not training and stack.prepacked:
        return None
    return why_torch(sizes_of(stack, first, training))


def sizes_of(stack: Stack, first: Layer, training: bool) -> Sizes:
    """Of a stack whose first layer is `first`, as `cost` takes them."""
    steps, batch, inputs = first.x.shape
    return Sizes(
        stack.cell_name,
        steps,
        batch,
        inputs,
        first.hidden_size,
        first.output_size,
        first.directions,
        stack.num_layers,
        first.x.dtype,
        training,
        stack.of_cell,
    )


def _why_cudnn(stack: Stack, first: Layer, training: bool) -> str | None:
    """As `why_aten`, on a GPU."""
    taken = operator_backend("auto", first)
    if taken == "reference":
        return "no kernel of fastrnn's serves it"
    if taken == "triton" and not module("triton").is_persistent(first):
        return "the kernels of triton that serve it are launched for each step"
    if training and stack.training and stack.dropout and stack.num_layers > 1:
        return None  # cuDNN's gradients cannot be differentiated again once it has drawn dropout
    reason = preference_cuda.why_torch(first, training)
    # cuDNN would copy weights that lie apart in every call; torch's own loop, in bfloat16, takes them as they are.
    cheap = reason is not None and (not torch.backends.cudnn.is_acceptable(stack.x) or aten_cuda.is_in_one_piece(stack))
    return reason if cheap else None
