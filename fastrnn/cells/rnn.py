"""Simple recurrent network, as torch.nn.RNN: Elman (1990).

h' = φ(gx + gh)        φ is tanh or relu
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells.spec import Cell, States


def step_tanh(gx: Tensor, gh: Tensor, states: States) -> tuple[States, tuple[Tensor, ...]]:
    return ((gx + gh).squeeze(-2).tanh(),), ()


def step_tanh_backward(
    dstates: States, saved: tuple[Tensor, ...], before: States, after: States
) -> tuple[Tensor, Tensor, States]:
    """da = dh (1 - h'²): the output alone tells the derivative, nothing else is saved."""
    (dh,), (h,) = dstates, after
    da = (dh * (1 - h * h)).unsqueeze(-2)
    return da, da, (torch.zeros_like(dh),)


def step_relu(gx: Tensor, gh: Tensor, states: States) -> tuple[States, tuple[Tensor, ...]]:
    return ((gx + gh).squeeze(-2).relu(),), ()


def step_relu_backward(
    dstates: States, saved: tuple[Tensor, ...], before: States, after: States
) -> tuple[Tensor, Tensor, States]:
    """da = dh where h' > 0, else 0. As torch's relu, the derivative at 0 is 0 and at NaN is dh."""
    (dh,), (h,) = dstates, after
    da = torch.where(h <= 0, 0, dh).unsqueeze(-2)
    return da, da, (torch.zeros_like(dh),)


RNN_TANH = Cell("rnn_tanh", ("a",), ("h",), (), step_tanh, step_tanh_backward)
RNN_RELU = Cell("rnn_relu", ("a",), ("h",), (), step_relu, step_relu_backward)
