"""The aten backend: torch's own kernels (oneDNN, cuDNN, or a loop over steps) as an engine.

They take a whole stack of layers and keep opaque state for backward, so that this backend stands above the operators:
it serves a `Stack`, not a `Layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from fastrnn.backends import aten_cuda
from fastrnn.backends.stack import Stack

_ENGINES = {"rnn_tanh": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu, "lstm": _VF.lstm, "gru": _VF.gru}
_CELL_ENGINES = {
    "rnn_tanh": _VF.rnn_tanh_cell,
    "rnn_relu": _VF.rnn_relu_cell,
    "lstm": _VF.lstm_cell,
    "gru": _VF.gru_cell,
}
_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ready() -> str | None:
    """None: it needs nothing but torch."""
    return None


def supports(stack: Stack) -> str | None:
    """Why torch's kernels cannot serve the call, or None if they can."""
    if stack.cell_name not in _ENGINES:
        return f"torch has no kernels for {stack.cell.name}"
    if stack.lengths is not None and stack.packed is None:
        return "torch's kernels take no lengths"
    if stack.resets is not None:
        return "torch's kernels take no resets"
    if stack.recompute:
        return "torch's kernels cannot recompute gates in backward"
    if stack.recurrent_mask is not None:
        return "torch's kernels have no recurrent dropout"
    if stack.return_states:
        return "torch's kernels do not give the states of every step"
    if stack.x.shape[0] == 0:
        return "torch's kernels take no empty sequence"
    if any(w[1].dim() == 3 for w in stack.weights):
        return "torch's kernels have no heads"
    if stack.x.dtype not in _FLOATING:
        return f"torch's kernels take no {stack.x.dtype}"
    return None


def run(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of the last layer and the final states, as `Stack.states0`.

    The output is (T, B, directions·P or directions·H), or, of a packed call, packed as its data.
    """
    return aten_cuda.run(stack, _run) if stack.x.is_cuda and torch.backends.cudnn.enabled else _run(stack)


def _run(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
    if stack.is_one_step and torch._C._get_tracing_state() is None:  # a trace is run with other numbers of steps
        return _single_step(stack)
    states0 = stack.states0 if len(stack.states0) > 1 else stack.states0[0]
    flat = [tensor for weights in stack.weights for tensor in weights]
    engine: Any = _ENGINES[stack.cell_name]
    options = (stack.biased, stack.num_layers, stack.dropout, stack.training, stack.bidirectional)
    if stack.packed is not None:
        output, *finals = engine(*stack.packed, states0, flat, *options)
    else:
        batch_first = False
        output, *finals = engine(stack.x, states0, flat, *options, batch_first)
    return output, tuple(finals)


def _single_step(stack: Stack) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of one layer by torch's cell kernels, which take a third of the time of a sequence of length one."""
    after = step(stack.cell_name, stack.x[0], [state[0] for state in stack.states0], stack.weights[0])
    finals = tuple(state.unsqueeze(0) for state in after)
    return finals[0].clone(), finals


def step(cell_name: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The states after one step by torch's cell kernel: x (B, I), states (B, H), the biases last, None or left out."""
    engine: Any = _CELL_ENGINES[cell_name]
    after = engine(x, states if len(states) > 1 else states[0], *weights)
    return after if isinstance(after, tuple) else (after,)
