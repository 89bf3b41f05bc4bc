"""Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.activations import relu, sigmoid, tanh
from fastrnn.backends.triton.kernels.functions import Functions


@triton.jit
def rnn_tanh_preactivations(gx, gh):
    return (gx[0] + gh[0],)


@triton.jit
def rnn_tanh_step(pre, before, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr):
    (a_a,) = pre
    return (tanh(a_a, APPROXIMATE),), ()


@triton.jit
def rnn_tanh_derivative(
    d_after, saved, before, after, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr
):
    (h_after,) = after
    (dh_after,) = d_after
    da_a = dh_after * (1.0 - h_after * h_after)
    return (da_a,), (tl.zeros_like(d_after[0]),)


@triton.jit
def rnn_relu_preactivations(gx, gh):
    return (gx[0] + gh[0],)


@triton.jit
def rnn_relu_step(pre, before, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr):
    (a_a,) = pre
    return (relu(a_a),), ()


@triton.jit
def rnn_relu_derivative(
    d_after, saved, before, after, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr
):
    (h_after,) = after
    (dh_after,) = d_after
    da_a = tl.where(h_after <= 0.0, 0.0, dh_after)
    return (da_a,), (tl.zeros_like(d_after[0]),)


@triton.jit
def lstm_preactivations(gx, gh):
    return (gx[0] + gh[0], gx[1] + gh[1], gx[2] + gh[2], gx[3] + gh[3])


@triton.jit
def lstm_step(pre, before, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr):
    a_i, a_f, a_g, a_o = pre
    c_before = before[1]
    i = sigmoid(a_i, APPROXIMATE)
    f = sigmoid(a_f, APPROXIMATE)
    g = tanh(a_g, APPROXIMATE)
    o = sigmoid(a_o, APPROXIMATE)
    c = f * c_before + i * g
    return (o * tanh(c, APPROXIMATE), c), (i, f, g, o)


@triton.jit
def lstm_derivative(
    d_after, saved, before, after, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr
):
    c_before = before[1]
    c_after = after[1]
    dh_after, dc_after = d_after
    i, f, g, o = saved
    tanh_c = tanh(c_after, APPROXIMATE)
    dc = dc_after + dh_after * o * (1.0 - tanh_c * tanh_c)
    di = dc * g
    da_i = di * i * (1.0 - i)
    df = dc * c_before
    da_f = df * f * (1.0 - f)
    dg = dc * i
    da_g = dg * (1.0 - g * g)
    do = dh_after * tanh_c
    da_o = do * o * (1.0 - o)
    return (da_i, da_f, da_g, da_o), (tl.zeros_like(d_after[0]), dc * f)


@triton.jit
def gru_preactivations(gx, gh):
    return (gx[2], gx[0] + gh[0], gx[1] + gh[1], gh[2])


@triton.jit
def gru_step(pre, before, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr):
    x_n, a_r, a_z, u_n = pre
    (h_before,) = before
    r = sigmoid(a_r, APPROXIMATE)
    z = sigmoid(a_z, APPROXIMATE)
    n = tanh(x_n + r * u_n, APPROXIMATE)
    return (n + z * (h_before - n),), (n, r, z, u_n)


@triton.jit
def gru_derivative(d_after, saved, before, after, parameters, inputs, unit, D: tl.constexpr, APPROXIMATE: tl.constexpr):
    (h_before,) = before
    (dh_after,) = d_after
    n, r, z, u_n = saved
    t1 = 1.0 - z
    dn = dh_after * t1
    dx_n = dn * (1.0 - n * n)
    dr = dx_n * u_n
    da_r = dr * r * (1.0 - r)
    dz = dh_after * (h_before - n)
    da_z = dz * z * t1
    du_n = dx_n * r
    return (dx_n, da_r, da_z, du_n), (dh_after * z,)


FUNCTIONS = {
    "rnn_tanh": Functions(rnn_tanh_preactivations, rnn_tanh_step, rnn_tanh_derivative),
    "rnn_relu": Functions(rnn_relu_preactivations, rnn_relu_step, rnn_relu_derivative),
    "lstm": Functions(lstm_preactivations, lstm_step, lstm_derivative),
    "gru": Functions(gru_preactivations, gru_step, gru_derivative),
}
