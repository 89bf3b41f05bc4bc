"""Where the tests run a backend, and what of a layer it takes there.

Triton's kernels run on a GPU where there is one, and otherwise on the CPU by Triton's interpreter; those of the CUDA
extension where it was built for.
"""

from __future__ import annotations

from functools import cache

import torch

from fastrnn import extension
from fastrnn.backends import OPERATOR_BACKENDS, module
from fastrnn.backends.triton.interpreter import INTERPRETED
from tests.layers import Shape, random_layer


def device_of(*backends: str) -> str | None:
    """The device on which all of `backends` run; None where there is no such device."""
    on_gpu = ("triton" in backends and not INTERPRETED) or ("cuda" in backends and extension_is_for_gpus())
    if on_gpu and "numba" in backends:
        return None
    return "cuda" if on_gpu else "cpu"


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
