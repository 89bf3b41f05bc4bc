"""Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells.contract import Cell, States


def rnn_tanh_step(
    gx: Tensor, gh: Tensor, before: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    (a_a,) = (gx + gh).unbind(-2)
    return (torch.tanh(a_a),), ()


def rnn_tanh_step_backward(
    d_after: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    (h_after,) = after
    (dh_after,) = d_after
    da_a = dh_after * (1 - h_after * h_after)
    return (da_a,), (torch.zeros_like(d_after[0]),)


RNN_TANH = Cell(
    name="rnn_tanh",
    x_gates=("a",),
    u_gates=("a",),
    states=("h",),
    parameters=(),
    inputs=(),
    blocks=("a_a",),
    saved=(),
    unbounded=(),
    activations={"h": "tanh"},
    step_reads=(),
    reads_before=(),
    reads_after=("h",),
    outside=(),
    step=rnn_tanh_step,
    step_backward=rnn_tanh_step_backward,
)


def rnn_relu_step(
    gx: Tensor, gh: Tensor, before: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    (a_a,) = (gx + gh).unbind(-2)
    return (torch.relu(a_a),), ()


def rnn_relu_step_backward(
    d_after: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    (h_after,) = after
    (dh_after,) = d_after
    da_a = torch.where(h_after <= 0, 0, dh_after)
    return (da_a,), (torch.zeros_like(d_after[0]),)


RNN_RELU = Cell(
    name="rnn_relu",
    x_gates=("a",),
    u_gates=("a",),
    states=("h",),
    parameters=(),
    inputs=(),
    blocks=("a_a",),
    saved=(),
    unbounded=(),
    activations={"h": "relu"},
    step_reads=(),
    reads_before=(),
    reads_after=("h",),
    outside=(),
    step=rnn_relu_step,
    step_backward=rnn_relu_step_backward,
)


def lstm_step(
    gx: Tensor, gh: Tensor, before: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    a_i, a_f, a_g, a_o = (gx + gh).unbind(-2)
    c_before = before[1]
    i = torch.sigmoid(a_i)
    f = torch.sigmoid(a_f)
    g = torch.tanh(a_g)
    o = torch.sigmoid(a_o)
    c = f * c_before + i * g
    return (o * torch.tanh(c), c), (i, f, g, o)


def lstm_step_backward(
    d_after: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    c_before = before[1]
    c_after = after[1]
    dh_after, dc_after = d_after
    i, f, g, o = saved
    tanh_c = torch.tanh(c_after)
    dc = dc_after + dh_after * o * (1 - tanh_c * tanh_c)
    di = dc * g
    da_i = di * i * (1 - i)
    df = dc * c_before
    da_f = df * f * (1 - f)
    dg = dc * i
    da_g = dg * (1 - g * g)
    do = dh_after * tanh_c
    da_o = do * o * (1 - o)
    return (da_i, da_f, da_g, da_o), (torch.zeros_like(d_after[0]), dc * f)


def lstm_d_states(
    d_after: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> States:
    c_after = after[1]
    dh_after, dc_after = d_after
    o = saved[3]
    tanh_c = torch.tanh(c_after)
    dc = dc_after + dh_after * o * (1 - tanh_c * tanh_c)
    return (dh_after, dc)


LSTM = Cell(
    name="lstm",
    x_gates=("i", "f", "g", "o"),
    u_gates=("i", "f", "g", "o"),
    states=("h", "c"),
    parameters=(),
    inputs=(),
    blocks=("a_i", "a_f", "a_g", "a_o"),
    saved=("i", "f", "g", "o"),
    unbounded=(),
    activations={"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"},
    step_reads=("c",),
    reads_before=("c",),
    reads_after=("c",),
    outside=(),
    step=lstm_step,
    step_backward=lstm_step_backward,
    d_states=lstm_d_states,
)


def gru_step(
    gx: Tensor, gh: Tensor, before: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    x_r, x_z, x_n = gx.unbind(-2)
    u_r, u_z, u_n = gh.unbind(-2)
    a_r = x_r + u_r
    a_z = x_z + u_z
    (h_before,) = before
    r = torch.sigmoid(a_r)
    z = torch.sigmoid(a_z)
    n = torch.tanh(x_n + r * u_n)
    return ((1 - z) * n + z * h_before,), (n, r, z, u_n)


def gru_step_backward(
    d_after: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> tuple[States, States]:
    (h_before,) = before
    (dh_after,) = d_after
    n, r, z, u_n = saved
    t1 = 1 - z
    dn = dh_after * t1
    dx_n = dn * (1 - n * n)
    dr = dx_n * u_n
    da_r = dr * r * (1 - r)
    dz = dh_after * (h_before - n)
    da_z = dz * z * t1
    du_n = dx_n * r
    return (dx_n, da_r, da_z, du_n), (dh_after * z,)


def gru_gradients_outside(
    blocks: States, saved: States, before: States, after: States, parameters: States = (), inputs: States = ()
) -> States:
    r = saved[1]
    dx_n = blocks[0]
    return (dx_n * r,)


GRU = Cell(
    name="gru",
    x_gates=("r", "z", "n"),
    u_gates=("r", "z", "n"),
    states=("h",),
    parameters=(),
    inputs=(),
    blocks=("x_n", "a_r", "a_z", "u_n"),
    saved=("n", "r", "z", "u_n"),
    unbounded=("u_n",),
    activations={"n": "tanh", "r": "sigmoid", "z": "sigmoid"},
    step_reads=("h",),
    reads_before=("h",),
    reads_after=(),
    outside=("u_n",),
    step=gru_step,
    step_backward=gru_step_backward,
    gradients_outside=gru_gradients_outside,
)

CELLS = {"rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU, "lstm": LSTM, "gru": GRU}
