"""The kernels of `test_triton_activations.py`: what a decorator of Triton needs to be in a file that can be read."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import activations


@triton.jit
def activations_kernel(x, sigmoid, tanh, APPROXIMATE: tl.constexpr):
    at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    value = tl.load(x + at)
    tl.store(sigmoid + at, activations.sigmoid(value, APPROXIMATE))
    tl.store(tanh + at, activations.tanh(value, APPROXIMATE))


@triton.jit
def functions_kernel(x, y, exp, log, softplus, sqrt, larger, smaller, APPROXIMATE: tl.constexpr):
    at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    value, other = tl.load(x + at), tl.load(y + at)
    tl.store(exp + at, activations.exp(value, APPROXIMATE))
    tl.store(log + at, activations.log(value, APPROXIMATE))
    tl.store(softplus + at, activations.softplus(value, APPROXIMATE))
    tl.store(sqrt + at, activations.sqrt(value))
    tl.store(larger + at, activations.maximum(value, other))
    tl.store(smaller + at, activations.minimum(0.1, other))
