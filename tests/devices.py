"""Where the tests run a backend, what of a layer it takes there, and by which kernels torch computes beside it.

Triton's kernels run on a GPU where there is one, and otherwise on the CPU by Triton's interpreter; those of the CUDA
extension where it was built for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from fastrnn import extension
from fastrnn.backends import OPERATOR_BACKENDS, module
from fastrnn.backends.triton.interpreter import INTERPRETED
from tests.random_layers import Shape, random_layer


def device_of(*backends: str) -> str | None:
    """The device on which all of `backends` run; None where there is no such device."""
    on_gpu = ("triton" in backends and not INTERPRETED) or ("cuda" in backends and extension_is_for_gpus())
    if on_gpu and "numba" in backends:
        return None
    return "cuda" if on_gpu else "cpu"


def on_gpu(parameters: dict[str, Any]) -> bool:
    """Whether a test with these parameters computes on a GPU: by the backends or by the device that they name."""
    given = [value for value in parameters.values() if isinstance(value, torch.device)]
    names = [value for value in parameters.values() if isinstance(value, str)]
    return device_of(*names) == "cuda" or any(device.type == "cuda" for device in given)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Within it torch's recurrent layers on a GPU compute by loops over steps and fused cells, as on the CPU.

    cuDNN's have no second derivative, no backward in eval mode and a dropout of their own, warn of weights that do not
    lie side by side, and round as their heuristics please. By the attribute: `cudnn.flags` would reset TF32, too. The
    loops' float32 products follow `torch.backends.cuda.matmul`, which does not allow TF32 unless it is told to.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def extension_is_for_gpus() -> bool:
    """Whether there is a CUDA extension that takes tensors on a GPU, and a GPU."""
    return module("cuda").ready() is None and not extension.load().host


PLAIN = Shape()


@cache
def why_not(backend: str, shape: Shape = PLAIN) -> str | None:
    """Why the tests cannot run a backend with a float64 LSTM of that shape, or None if they can."""
    reason: str | None = module(backend).ready()
    if reason is None and backend in OPERATOR_BACKENDS:
        with torch.device(device_of(backend) or "cpu"):
            reason = module(backend).supports(random_layer("lstm", shape))
    return None if reason is None else f"{backend}: {reason}"
