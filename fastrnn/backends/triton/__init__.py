"""The GPU backend in Triton: a program owns a tile of the batch and computes all steps, or a kernel computes a step.

Importing it does not import Triton; the first kernel does. `fastrnn.backends` says what a backend is, `kernels/` is
what Triton compiles, `configurations.py` says which kernel serves which layer. With TRITON_INTERPRET=1 in the
environment Triton runs kernels on the CPU, one operation after another, and this backend takes CPU tensors when it is
asked for by name.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals
from fastrnn.backends.recurrence.backward import backward as recurrence_backward
from fastrnn.backends.recurrence.forward import forward as recurrence_forward
from fastrnn.backends.triton import configurations
from fastrnn.backends.triton.interpreter import INTERPRETED
from fastrnn.first_use import undisturbed

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
"""Of a device: the first with asynchronous copies and bfloat16."""
OLDEST_TRITON = (3, 5)
"""The first that compiles these kernels: earlier ones refuse functions as arguments, or tuples in loops."""
NEWEST_INTERPRETER = (3, 8)
"""Triton 3.9's interpreter, which is for tests, takes no mask that a comparison of numbers is part of."""
MOST_STEPS = 2**31 - 1
"""Sizes are passed as 32-bit integers; offsets are 64 bits wide."""

MOST_HEADS = 2**16 - 1
"""Programs along that axis of a launch, by CUDA."""
MOST_OF_A_MEAN = 2048
"""Units: four for each thread of a program of 16 warps. With twice as many, most of a step's values would be moved to
memory and back, of an LSTM with layer normalisation."""


@cache
def ready() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if release("triton") < OLDEST_TRITON:
        return f"it needs triton {_text(OLDEST_TRITON)} or later, got {version('triton')}"
    if INTERPRETED:
        return _interpreter_breaks()
    if torch.version.cuda is None:
        return "torch is built without CUDA" + (", aten serves ROCm" if torch.version.hip else "")
    if not torch.cuda.is_available():
        return "torch finds no GPU (TRITON_INTERPRET=1 runs kernels on the CPU, slowly)"
    if c_compiler() is None:
        return "Triton's launcher needs a C compiler, and there is none"
    if python_headers() is None:
        return "Triton's launcher needs Python.h, and it is not installed"
    return None


def _interpreter_breaks() -> str | None:
    if release("triton") > NEWEST_INTERPRETER:
        return f"the interpreter is known to work up to Triton {_text(NEWEST_INTERPRETER)}, got {version('triton')}"
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        return f"Triton's interpreter needs numpy below 2.4, got {version('numpy')}"
    return None


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def release(package: str) -> tuple[int, ...]:
    """Major and minor version of an installed package."""
    return tuple(int(part) for part in version(package).split(".")[:2])


def c_compiler() -> str | None:
    """The compiler that Triton's launcher calls: CC where that is set, else gcc or clang; None where there is none."""
    asked = os.environ.get("CC")
    return shutil.which(asked) if asked else shutil.which("gcc") or shutil.which("clang")


def python_headers() -> str | None:
    """The folder of Python.h, which Triton's launcher includes; None where it is not installed."""
    scheme = sysconfig.get_default_scheme()
    folder = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    return folder if Path(folder, "Python.h").exists() else None


def supports(layer: Layer) -> str | None:
    """Why it cannot serve `layer`, as a clause, or None if it can."""
    device = layer.x.device
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"it takes CUDA tensors only, got {device.type}"
    if INTERPRETED and device.type == "cuda":
        return "TRITON_INTERPRET is set, which makes it serve CPU tensors instead"
    if layer.x.dtype not in DTYPES:
        return f"it does not compute in {layer.x.dtype}"
    if layer.projected:
        return "it has no projections (proj_size) yet"
    if layer.cell.over_units and (reason := _why_no_mean(layer)):
        return reason
    if max(layer.x.shape) > MOST_STEPS:
        return f"it takes sizes up to {MOST_STEPS}, got {tuple(layer.x.shape)}"
    if layer.heads > MOST_HEADS:
        return f"it takes up to {MOST_HEADS} heads, got {layer.heads}"
    reason = ready()
    if reason is None and device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        reason = f"it needs a device of capability 8.0 or later, got {major}.{minor}"
    return reason


def _why_no_mean(layer: Layer) -> str | None:
    """Why no program can hold all units of a sequence, over which the layer's cell takes means, or None if one can."""
    means = f"means over units, as the cell {layer.cell.name} takes them"
    if layer.heads > 1:
        return f"it has no {means}, of several heads, got {layer.heads}"
    if layer.hidden_size > MOST_OF_A_MEAN:
        return f"it has {means}, of up to {MOST_OF_A_MEAN} units, got {layer.hidden_size}"
    return None


def is_persistent(layer: Layer) -> bool:
    """Whether one launch computes all steps of a layer that it supports, as far as the table knows."""
    return configurations.forward_tile(layer) is not None


@cache
def _ways() -> ModuleType:
    return undisturbed(lambda: import_module("fastrnn.backends.triton.ways"))


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    return recurrence_forward(layer, _ways().forward, history=history, gates=gates)


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    return recurrence_backward(layer, _ways().backward, kept, grads)
