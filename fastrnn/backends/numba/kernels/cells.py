"""Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.numba.kernels.activations import sigmoid, tanh
from fastrnn.backends.numba.kernels.cell_kernel import CellKernel, DerivativeAt, StepAt
from fastrnn.backends.numba.kernels.inner import forced
from fastrnn.backends.numba.kernels.simd import at_least, fma, lanes, load, load_some, store, store_some, where_le


@forced
def rnn_tanh_step(like: Any, at: StepAt, some: int) -> Any:
    a_a = load(like, at.gx, 0) + load(like, at.gh, 0)
    return tanh(a_a)


@forced
def rnn_tanh_derivative(like: Any, dh: Any, at: DerivativeAt, some: int) -> Any:
    h_after = load_some(like, at.h_after, 0, some)
    da_a = dh * (1.0 - h_after * h_after)
    store_some(at.blocks, 0, da_a, some)
    return like


@forced
def rnn_relu_step(like: Any, at: StepAt, some: int) -> Any:
    a_a = load(like, at.gx, 0) + load(like, at.gh, 0)
    return at_least(a_a, 0.0)


@forced
def rnn_relu_derivative(like: Any, dh: Any, at: DerivativeAt, some: int) -> Any:
    h_after = load_some(like, at.h_after, 0, some)
    da_a = where_le(h_after, 0.0, 0.0, dh)
    store_some(at.blocks, 0, da_a, some)
    return like


@forced
def lstm_step(like: Any, at: StepAt, some: int) -> Any:
    a_i = load(like, at.gx, 0) + load(like, at.gh, 0)
    a_f = load(like, at.gx, lanes(like)) + load(like, at.gh, lanes(like))
    a_g = load(like, at.gx, 2 * lanes(like)) + load(like, at.gh, 2 * lanes(like))
    a_o = load(like, at.gx, 3 * lanes(like)) + load(like, at.gh, 3 * lanes(like))
    c_before = load(like, at.others, 0)
    i = sigmoid(a_i)
    f = sigmoid(a_f)
    g = tanh(a_g)
    o = sigmoid(a_o)
    c = fma(f, c_before, i * g)
    store(at.others, 0, c)
    if at.saved != 0:
        store_some(at.saved, 0, i, some)
        store_some(at.saved, at.block, f, some)
        store_some(at.saved, 2 * at.block, g, some)
        store_some(at.saved, 3 * at.block, o, some)
    return o * tanh(c)


@forced
def lstm_derivative(like: Any, dh: Any, at: DerivativeAt, some: int) -> Any:
    i = load_some(like, at.saved, 0, some)
    f = load_some(like, at.saved, at.block, some)
    g = load_some(like, at.saved, 2 * at.block, some)
    o = load_some(like, at.saved, 3 * at.block, some)
    c_before = load_some(like, at.others_before, 0, some)
    c_after = load_some(like, at.others_after, 0, some)
    dc_after = load(like, at.d_others, 0)
    tanh_c = tanh(c_after)
    dc = fma(dh * o, 1.0 - tanh_c * tanh_c, dc_after)
    di = dc * g
    da_i = di * i * (1.0 - i)
    df = dc * c_before
    da_f = df * f * (1.0 - f)
    dg = dc * i
    da_g = dg * (1.0 - g * g)
    do = dh * tanh_c
    da_o = do * o * (1.0 - o)
    store(at.d_others, 0, dc * f)
    store_some(at.blocks, 0, da_i, some)
    store_some(at.blocks, at.block, da_f, some)
    store_some(at.blocks, 2 * at.block, da_g, some)
    store_some(at.blocks, 3 * at.block, da_o, some)
    return like


@forced
def gru_step(like: Any, at: StepAt, some: int) -> Any:
    x_n = load(like, at.gx, 2 * lanes(like))
    u_n = load(like, at.gh, 2 * lanes(like))
    a_r = load(like, at.gx, 0) + load(like, at.gh, 0)
    a_z = load(like, at.gx, lanes(like)) + load(like, at.gh, lanes(like))
    h_before = load(like, at.h, 0)
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(fma(r, u_n, x_n))
    if at.saved != 0:
        store_some(at.saved, 0, n, some)
        store_some(at.saved, at.block, r, some)
        store_some(at.saved, 2 * at.block, z, some)
        store_some(at.saved, 3 * at.block, u_n, some)
    return fma(z, h_before, (1.0 - z) * n)


@forced
def gru_derivative(like: Any, dh: Any, at: DerivativeAt, some: int) -> Any:
    n = load_some(like, at.saved, 0, some)
    r = load_some(like, at.saved, at.block, some)
    z = load_some(like, at.saved, 2 * at.block, some)
    u_n = load_some(like, at.saved, 3 * at.block, some)
    h_before = load_some(like, at.h_before, 0, some)
    t1 = 1.0 - z
    dn = dh * t1
    dx_n = dn * (1.0 - n * n)
    dr = dx_n * u_n
    da_r = dr * r * (1.0 - r)
    dz = dh * (h_before - n)
    da_z = dz * z * t1
    du_n = dx_n * r
    store_some(at.blocks, 0, dx_n, some)
    store_some(at.blocks, at.block, da_r, some)
    store_some(at.blocks, 2 * at.block, da_z, some)
    store_some(at.blocks, 3 * at.block, du_n, some)
    return dh * z


CELL_KERNELS = {
    "rnn_tanh": CellKernel(
        rnn_tanh_step,
        rnn_tanh_derivative,
        x_gates=1,
        u_gates=1,
        states=1,
        parameters=0,
        inputs=0,
        blocks=1,
        saved=0,
    ),
    "rnn_relu": CellKernel(
        rnn_relu_step,
        rnn_relu_derivative,
        x_gates=1,
        u_gates=1,
        states=1,
        parameters=0,
        inputs=0,
        blocks=1,
        saved=0,
    ),
    "lstm": CellKernel(
        lstm_step,
        lstm_derivative,
        x_gates=4,
        u_gates=4,
        states=2,
        parameters=0,
        inputs=0,
        blocks=4,
        saved=4,
    ),
    "gru": CellKernel(
        gru_step,
        gru_derivative,
        x_gates=3,
        u_gates=3,
        states=1,
        parameters=0,
        inputs=0,
        blocks=4,
        saved=4,
    ),
}
