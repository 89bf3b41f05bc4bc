"""What weights in fewer bits compute, step by step in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.cells import Cell

LARGEST = 2**15 - 1
"""What the largest number of a row that is multiplied with int8 becomes, unless sums of 32 bits would overflow."""


def rounded_weight(weight: Tensor, format: str) -> Tensor:
    """A matrix (G·H, K) as it is kept: float16 to the nearest, int8 in 255 levels for each row."""
    if format == "float16":
        return weight.half().double()
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (weight.double() / scale).round() * scale, 0.0)


def rounded_row(row: Tensor, format: str) -> Tensor:
    """What is multiplied with it (B, K): with int8 in 16 bits by row."""
    if format != "int8":
        return row
    limit = min(LARGEST, (2**31 - 1) // (127 * row.shape[1]))
    most = row.abs().amax(1, keepdim=True)
    return torch.where(most > 0, (row * (limit / most)).round() * (most / limit), 0.0)


def emulated(module: nn.Module, cell: Cell, x: Tensor, format: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """The outputs (T, B, H or P) of a stack of one head for x (T, B, I), from zeros."""
    weights: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    sequence = x.to(dtype)
    for layer in range(module.num_layers):

        def of(name: str, layer: int = layer) -> Any:
            return weights.get(f"{name}_l{layer}")

        w_ih, w_hh, w_hr = (
            None if of(name) is None else rounded_weight(of(name), format).to(dtype)
            for name in ("weight_ih", "weight_hh", "weight_hr")
        )
        hidden, batch = w_ih.shape[0] // len(cell.x_gates), x.shape[1]
        b_ih, b_hh = (0 if of(name) is None else of(name).to(dtype) for name in ("bias_ih", "bias_hh"))
        parameters = [of(name).to(dtype) for name in cell.parameters]
        width = hidden if w_hr is None else w_hr.shape[0]
        states = [sequence.new_zeros(batch, hidden if k else width) for k in range(len(cell.states))]
        outputs = []
        for step in sequence:
            gx = rounded_row(step, format) @ w_ih.T + b_ih
            gh = gx[:, :0] if w_hh is None else rounded_row(states[0], format) @ w_hh.T + b_hh
            after, _ = cell.step(
                gx.view(batch, -1, hidden), gh.view(batch, len(cell.u_gates), hidden), states, parameters, ()
            )
            states = list(after)
            if w_hr is not None:
                states[0] = rounded_row(states[0], format) @ w_hr.T
            outputs.append(states[0])
        sequence = torch.stack(outputs)
    return sequence
