"""The GPU backend in CUDA C++: a cluster of blocks keeps the weights in registers and shared memory for all steps.

Its kernels are the extension's, `csrc/`, which `fastrnn.extension` loads at the first question. They take raw pointers;
`launch.py` fills them in. In an extension that was built for the CPU (FASTRNN_CUDA=host) the same kernels run on CPU
tensors, slowly, for tests; this backend then takes those when it is asked for by name.

The kernels of cells that are not built in are compiled by NVRTC when they are needed (`run_time.py`) and launched by
CUDA's driver (`driver.py`), on a GPU and where this backend is asked for by name: `auto` leaves them to Triton, since
nobody has measured them.

float32 is multiplied as TF32, where torch allows its own recurrent layers that. Whether it does is looked at forward:
the backward of what this backend, by name, computed forward is its own, whatever torch allows by then.
"""

from __future__ import annotations

import torch

from fastrnn import extension
from fastrnn.backends import tf32
from fastrnn.backends.cuda import run_time
from fastrnn.backends.layer import Backward, Forward, Gradients, Layer, Residuals
from fastrnn.backends.recurrence.backward import backward as recurrence_backward
from fastrnn.backends.recurrence.forward import forward as recurrence_forward
from fastrnn.cells import CELLS

ELEMENTS = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "tf32"}
"""By dtype, what the extension calls how it is multiplied."""
LARGEST = 2**31 - 8
"""Sizes are 32-bit integers, to which kernels add up to 7: the batch is rounded up to tiles of eight sequences, and
steps are counted beyond the last. Units count in every direction, as in a row of ys. Offsets are 64 bits wide."""


def ready() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    missing = extension.why_missing()
    if missing is not None:
        return f"no CUDA extension: {missing}"
    if extension.load().host:
        return None
    if torch.version.cuda is None:
        return "torch is built without CUDA" + (", aten serves ROCm" if torch.version.hip else "")
    return None if torch.cuda.is_available() else "torch finds no GPU"


def supports(layer: Layer) -> str | None:
    """Why it cannot serve `layer`, as a clause, or None if it can."""
    return _why_not(layer, tf32.allowed())


def supports_backward(layer: Layer) -> str | None:
    """As `supports`, of a layer whose forward it may have computed when torch allowed TF32."""
    return _why_not(layer, True)


def _why_not(layer: Layer, tf32_allowed: bool) -> str | None:
    if layer.cell.over_units:
        return f"it has no means over units, which the cell {layer.cell.name} takes"
    device = layer.x.device
    if device.type not in ("cpu", "cuda"):
        return f"it takes CUDA tensors only, got {device.type}"
    if device.type == "cpu" and (extension.why_missing() is not None or not extension.load().host):
        return "it takes CUDA tensors only, got cpu"
    reason = ready()
    if reason is not None:
        return reason
    if device.type == "cuda" and extension.load().host:
        return "its kernels are compiled for the CPU (FASTRNN_CUDA=host)"
    if device.type == "cpu" and layer.cell_name not in CELLS:
        return "its kernels for cells that are not built in are compiled at run time, for GPUs"
    if layer.x.dtype not in ELEMENTS:
        return f"it computes in bfloat16, float16 and float32 only, got {layer.x.dtype}"
    if layer.x.dtype == torch.float32 and not tf32_allowed:
        return "it multiplies float32 as TF32 only, which torch.backends.cudnn forbids recurrent layers"
    if layer.projected:
        return "it has no projections (proj_size) yet"
    if layer.recurrent_mask is not None:
        return "it has no recurrent dropout yet"
    largest = max(*layer.x.shape, layer.directions * layer.hidden_size)
    if largest > LARGEST:
        return f"it takes sizes up to {LARGEST}, got {largest}"
    return _why_no_kernel(layer)


def _why_no_kernel(layer: Layer) -> str | None:
    """The planner's answer, for the forward and for the backward: a layer does not say whether it will have one."""
    element = ELEMENTS[layer.x.dtype]
    sizes = (layer.hidden_size // layer.heads, layer.x.shape[1], layer.heads, layer.directions)
    index = layer.x.device.index or 0
    try:
        if layer.cell_name not in CELLS:
            return run_time.why_not(layer.cell_name, element, sizes, index)
        why_not = extension.load().why_not
        reason: str | None = why_not("forward", layer.cell_name, element, *sizes, index)
        return reason or why_not("backward", layer.cell_name, element, *sizes, index)
    except RuntimeError as error:
        return f"CUDA: {error}"


def forward(layer: Layer, *, history: bool, gates: bool) -> Forward:
    """One layer's outputs; see `Forward`."""
    from fastrnn.backends.cuda import launch

    return recurrence_forward(layer, launch.forward, history=history, gates=gates)


def backward(layer: Layer, kept: Residuals, grads: Gradients) -> Backward:
    """One layer's gradients; see `Backward`."""
    from fastrnn.backends.cuda import launch

    return recurrence_backward(layer, launch.backward, kept, grads)
