"""The CPU backend: recurrences in kernels that Numba compiles, on torch's own threads.

Importing it does not import Numba; the first question whether it is ready does. `fastrnn.backends` says what a backend
is, `kernels/` is what Numba compiles, everything else here prepares its memory and calls it.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals
from fastrnn.backends.numba import layer_backward, layer_forward
from fastrnn.first_use import undisturbed

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""16-bit tensors are converted to float32 around the kernels."""


@cache
def ready() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    missing = [name for name in ("numba", "llvmlite") if find_spec(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT forbids Numba to compile"
    try:
        undisturbed(lambda: import_module("numba"))
    except Exception as error:  # it refuses a NumPy newer than itself
        return f"numba cannot be imported: {' '.join(str(error).split())}"
    return None


def supports(layer: Layer) -> str | None:
    """Why it cannot serve `layer`, as a clause, or None if it can."""
    if layer.x.device.type != "cpu":
        return f"it takes CPU tensors only, got {layer.x.device.type}"
    if layer.x.dtype not in DTYPES:
        return f"it does not compute in {layer.x.dtype}"
    return ready()


bind = layer_forward.bind


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    return bind(layer, history=history, gates=gates)(layer)


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    return layer_backward.backward(layer, kept, grads)
