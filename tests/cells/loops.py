"""The library's cells as their papers write them, and layers of them as loops: plain PyTorch, nothing of fastrnn's.

What a layer computes is compared with these. One sequence is computed after the other, each from its first live step to
its last, so that lengths, resets and directions need no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.backends.layer import Layer

States = tuple[Tensor, ...]
Step = Callable[..., Any]
"""`step(x, u, states, *parameters, *inputs)` -> the states after it. x (Gx·H,) and u (Gu·H,) are the products of the
input and of h with their biases, gate by gate; everything else is (H,)."""


def peephole_lstm(x: Tensor, u: Tensor, states: States, p_i: Tensor, p_f: Tensor, p_o: Tensor) -> States:
    _, c = states
    a_i, a_f, a_g, a_o = (x + u).chunk(4)
    i = torch.sigmoid(a_i + p_i * c)
    f = torch.sigmoid(a_f + p_f * c)
    c = f * c + i * torch.tanh(a_g)
    o = torch.sigmoid(a_o + p_o * c)
    return o * torch.tanh(c), c


def cifg(x: Tensor, u: Tensor, states: States) -> States:
    _, c = states
    a_f, a_g, a_o = (x + u).chunk(3)
    f = torch.sigmoid(a_f)
    c = f * c + (1 - f) * torch.tanh(a_g)
    return torch.sigmoid(a_o) * torch.tanh(c), c


def mgu(x: Tensor, u: Tensor, states: States) -> States:
    (h,) = states
    (x_f, x_n), (u_f, u_n) = x.chunk(2), u.chunk(2)
    f = torch.sigmoid(x_f + u_f)
    n = torch.tanh(x_n + f * u_n)
    return ((1 - f) * h + f * n,)


def ligru(x: Tensor, u: Tensor, states: States) -> States:
    (h,) = states
    a_z, a_n = (x + u).chunk(2)
    z = torch.sigmoid(a_z)
    return (z * h + (1 - z) * torch.relu(a_n),)


def star(x: Tensor, u: Tensor, states: States) -> States:
    (h,) = states
    x_k, x_z = x.chunk(2)
    k = torch.sigmoid(x_k + u)
    z = torch.tanh(x_z)
    return (torch.tanh((1 - k) * h + k * z),)


def indrnn(x: Tensor, u: Tensor, states: States, w: Tensor) -> States:
    (h,) = states
    return (torch.relu(x + w * h),)


def mingru(x: Tensor, u: Tensor, states: States) -> States:
    (h,) = states
    x_z, n = x.chunk(2)
    z = torch.sigmoid(x_z)
    return ((1 - z) * h + z * n,)


def minlstm(x: Tensor, u: Tensor, states: States) -> States:
    (h,) = states
    x_f, x_i, n = x.chunk(3)
    f, i = torch.sigmoid(x_f), torch.sigmoid(x_i)
    return (f / (f + i) * h + i / (f + i) * n,)


def slstm(x: Tensor, u: Tensor, states: States) -> States:
    """The authors' code looks whether all of n is 0; here each unit does. m is a constant to the gradient."""
    _, c, n, m = states
    a_i, a_f, a_z, a_o = (x + u).chunk(4)
    log_f = F.logsigmoid(a_f) + m
    new_m = torch.where(n == 0, a_i, torch.maximum(log_f, a_i)).detach()
    i = torch.exp(a_i - new_m)
    f = torch.where(n == 0, 0, torch.exp(log_f - new_m))
    c, n = f * c + i * torch.tanh(a_z), f * n + i
    return torch.sigmoid(a_o) * c / n, c, n, new_m


def zoneout_lstm(x: Tensor, u: Tensor, states: States, keep_h: Tensor, keep_c: Tensor) -> States:
    h, c = states
    a_i, a_f, a_g, a_o = (x + u).chunk(4)
    new_c = torch.sigmoid(a_f) * c + torch.sigmoid(a_i) * torch.tanh(a_g)
    new_h = torch.sigmoid(a_o) * torch.tanh(new_c)
    return keep_h * h + (1 - keep_h) * new_h, keep_c * c + (1 - keep_c) * new_c


def zoneout_gru(x: Tensor, u: Tensor, states: States, keep_h: Tensor) -> States:
    (h,) = states
    (x_r, x_z, x_n), (u_r, u_z, u_n) = x.chunk(3), u.chunk(3)
    r, z = torch.sigmoid(x_r + u_r), torch.sigmoid(x_z + u_z)
    n = torch.tanh(x_n + r * u_n)
    return (keep_h * h + (1 - keep_h) * ((1 - z) * n + z * h),)


def layer_norm_lstm(
    x: Tensor,
    u: Tensor,
    states: States,
    *parameters: Tensor,
    together: Sequence[int] = (4,),
    keeps_normal: bool = False,
) -> States:
    """Gains and biases as the papers' vectors (4H,); of `together` each number of gates is one vector."""
    gain_x, gain_u, bias = (torch.cat(parameters[first : first + 4]) for first in (0, 4, 8))
    gain_c, bias_c = parameters[12:]
    of_x, of_u = (_normalised(product, together, states[0]) for product in (x, u))
    a_i, a_f, a_g, a_o = (of_x * gain_x + of_u * gain_u + bias).chunk(4)
    c = torch.sigmoid(a_f) * states[1] + torch.sigmoid(a_i) * torch.tanh(a_g)
    normal = F.layer_norm(c, c.shape, gain_c, bias_c)
    return torch.sigmoid(a_o) * torch.tanh(normal), normal if keeps_normal else c


def layer_norm_gru(x: Tensor, u: Tensor, states: States, *parameters: Tensor, together: Sequence[int] = (3,)) -> States:
    """Gains as vectors (3H,), and of n a bias for each product."""
    (h,) = states
    gain_x, gain_u = (torch.cat(parameters[first : first + 3]) for first in (0, 3))
    bias_r, bias_z, bias_xn, bias_un = parameters[6:]
    x_r, x_z, x_n = (_normalised(x, together, h) * gain_x).chunk(3)
    u_r, u_z, u_n = (_normalised(u, together, h) * gain_u).chunk(3)
    r, z = torch.sigmoid(x_r + u_r + bias_r), torch.sigmoid(x_z + u_z + bias_z)
    n = torch.tanh(x_n + bias_xn + r * (u_n + bias_un))
    return (z * h + (1 - z) * n,)


def _normalised(product: Tensor, together: Sequence[int], h: Tensor) -> Tensor:
    parts = product.split([count * len(h) for count in together])
    return torch.cat([F.layer_norm(part, part.shape) for part in parts])


PAPERS: tuple[Step, ...] = (
    *(peephole_lstm, cifg, slstm, zoneout_lstm),
    *(mgu, ligru, star, zoneout_gru),
    *(indrnn, mingru, minlstm),
    *(layer_norm_lstm, layer_norm_gru),
)
STEPS: dict[str, Step] = {step.__name__: step for step in PAPERS}
"""By the cells' names."""
VARIANTS: dict[str, Step] = {
    "layer_norm_lstm_per_gate": partial(layer_norm_lstm, together=(1, 1, 1, 1)),
    "layer_norm_lstm_normalised_memory": partial(layer_norm_lstm, keeps_normal=True),
    "layer_norm_gru_candidate_apart": partial(layer_norm_gru, together=(2, 1)),
    "layer_norm_gru_per_gate": partial(layer_norm_gru, together=(1, 1, 1)),
}
"""Of the library's cells, by their own names."""


def loop(step: Step, layer: Layer) -> tuple[Tensor, list[Tensor]]:
    """The outputs (T, B, directions·H), zero beyond a sequence's length, and every state after its last step.

    Resets are as `docs/design.md` has them: one at t lies between the steps t - 1 and t, whichever comes first. Forward
    one at 0 lies before all steps, in reverse behind them.
    """
    batch = range(layer.x.shape[1])
    outputs, finals = [], []
    for direction in range(layer.directions):
        sequences = [_sequence(step, layer, direction, b) for b in batch]
        outputs.append(torch.stack([rows for rows, _ in sequences], 1))
        finals.append([torch.stack(rows) for rows in zip(*(states for _, states in sequences), strict=True)])
    return torch.cat(outputs, -1), [torch.stack(rows) for rows in zip(*finals, strict=True)]


def _sequence(step: Step, layer: Layer, direction: int, b: int) -> tuple[Tensor, States]:
    """Of one sequence the outputs (T, H) and the states after its last step, (H,) each."""
    steps, backwards = layer.x.shape[0], layer.reversed(direction)
    length = steps if layer.lengths is None else int(layer.lengths[b])
    b_ih, b_hh = layer.biases[2 * direction : 2 * direction + 2] if layer.biases else (None, None)
    states = tuple(state[direction, b] for state in layer.states0)
    rows = [torch.zeros_like(states[0]) for _ in range(steps)]
    for t in reversed(range(length)) if backwards else range(length):
        between = t + 1 if backwards else t
        if layer.resets is not None and between < length and layer.resets[between, b]:
            states = tuple(torch.zeros_like(state) for state in states)
        x = F.linear(layer.x[t, b], layer.w_ih[direction], b_ih)
        u = _state_product(layer.w_hh[direction], states[0])
        u = u if b_hh is None else u + b_hh
        inputs = (value[direction, t, b] for value in layer.inputs)
        states = step(x, u, states, *layer.parameters_of(direction), *inputs)
        rows[t] = states[0]
    return torch.stack(rows) if rows else states[0].new_zeros(0, len(states[0])), states


def _state_product(w_hh: Tensor, h: Tensor) -> Tensor:
    """W h gate by gate, (Gu·H,): each head, (Gu·D, D) of w_hh, multiplies its own units."""
    heads, rows, size = w_hh.shape
    each = [w @ own for w, own in zip(w_hh, h.split(size), strict=True)]
    return torch.stack(each).reshape(heads, rows // size, size).transpose(0, 1).reshape(-1)
