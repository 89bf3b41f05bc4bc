"""The cells' steps over tuples of tiles; their equations stand in `fastrnn.cells`.

A cell is four functions. `preactivations(gx, gh)` gives what the activations apply to, in the order of `Cell.saved`;
`activated(preactivations)` what `Cell.saved` names; `update(activated, states)` the states after the step; and
`derivative(dstates, activated, before, after)` the gradients that take the saved values' place, in their order, and
those that reach the states before the step directly. `Cell.adds_pre_activations` says which of the former are dgx and
dgh. An RNN saves nothing: what it activates is h itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.activations import relu, sigmoid, tanh


@triton.jit
def lstm_preactivations(gx, gh):
    return gx[0] + gh[0], gx[1] + gh[1], gx[2] + gh[2], gx[3] + gh[3]


@triton.jit
def lstm_activated(pre, APPROXIMATE: tl.constexpr):
    return (
        sigmoid(pre[0], APPROXIMATE),
        sigmoid(pre[1], APPROXIMATE),
        tanh(pre[2], APPROXIMATE),
        sigmoid(pre[3], APPROXIMATE),
    )


@triton.jit
def lstm_update(activated, states, APPROXIMATE: tl.constexpr):
    i, f, g, o = activated
    c = f * states[1] + i * g
    return o * tanh(c, APPROXIMATE), c


@triton.jit
def lstm_derivative(dstates, activated, before, after, APPROXIMATE: tl.constexpr):
    i, f, g, o = activated
    tanh_c = tanh(after[1], APPROXIMATE)
    dc = dstates[1] + dstates[0] * o * (1.0 - tanh_c * tanh_c)
    dgates = (
        dc * g * i * (1.0 - i),
        dc * before[1] * f * (1.0 - f),
        dc * i * (1.0 - g * g),
        dstates[0] * tanh_c * o * (1.0 - o),
    )
    return dgates, (tl.zeros_like(dc), dc * f)


@triton.jit
def gru_preactivations(gx, gh):
    return gx[2], gx[0] + gh[0], gx[1] + gh[1], gh[2]


@triton.jit
def gru_activated(pre, APPROXIMATE: tl.constexpr):
    r = sigmoid(pre[1], APPROXIMATE)
    return tanh(pre[0] + r * pre[3], APPROXIMATE), r, sigmoid(pre[2], APPROXIMATE), pre[3]


@triton.jit
def gru_update(activated, states, APPROXIMATE: tl.constexpr):
    n, z = activated[0], activated[2]
    return (n + z * (states[0] - n),)


@triton.jit
def gru_derivative(dstates, activated, before, after, APPROXIMATE: tl.constexpr):
    n, r, z, a = activated
    dn = dstates[0] * (1.0 - z) * (1.0 - n * n)
    dz = dstates[0] * (before[0] - n) * z * (1.0 - z)
    return (dn, dn * a * r * (1.0 - r), dz, dn * r), (dstates[0] * z,)


@triton.jit
def rnn_preactivations(gx, gh):
    return (gx[0] + gh[0],)


@triton.jit
def rnn_tanh_activated(pre, APPROXIMATE: tl.constexpr):
    return (tanh(pre[0], APPROXIMATE),)


@triton.jit
def rnn_relu_activated(pre, APPROXIMATE: tl.constexpr):
    return (relu(pre[0]),)


@triton.jit
def rnn_update(activated, states, APPROXIMATE: tl.constexpr):
    return activated


@triton.jit
def rnn_tanh_derivative(dstates, activated, before, after, APPROXIMATE: tl.constexpr):
    dh, h = dstates[0], after[0]
    return (dh * (1.0 - h * h),), (tl.zeros_like(dh),)


@triton.jit
def rnn_relu_derivative(dstates, activated, before, after, APPROXIMATE: tl.constexpr):
    dh = dstates[0]
    return (tl.where(after[0] <= 0.0, 0.0, dh),), (tl.zeros_like(dh),)


class Functions(NamedTuple):
    """A cell's four functions; see the module."""

    preactivations: Any
    activated: Any
    update: Any
    derivative: Any


FUNCTIONS = {
    "lstm": Functions(lstm_preactivations, lstm_activated, lstm_update, lstm_derivative),
    "gru": Functions(gru_preactivations, gru_activated, gru_update, gru_derivative),
    "rnn_tanh": Functions(rnn_preactivations, rnn_tanh_activated, rnn_update, rnn_tanh_derivative),
    "rnn_relu": Functions(rnn_preactivations, rnn_relu_activated, rnn_update, rnn_relu_derivative),
}
"""By cell name, what the kernels take as compile-time arguments."""
