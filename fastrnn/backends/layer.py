"""What an operator hands to a backend: one layer, in one or two directions, and the gradients it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.cells import CELLS, Cell

Form = tuple[tuple[int, ...], torch.dtype]
"""A tensor's shape and dtype."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states, gates and accumulation for tensors of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates are saved for tensors of `dtype`: `dtype` itself, but float16 for bfloat16.

    Nearly all of them lie in [-1, 1], where float16 has 3 bits more; bfloat16 would double the gradients' error.
    """
    return torch.float16 if dtype == torch.bfloat16 else dtype


def as_gates(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cell saved, in `dtype`. The GRU's h W_n + b_hn may lie beyond float16's range: it stays finite."""
    if dtype == torch.float16 != values.dtype:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)


@dataclass
class Layer:
    """The arguments of one layer. Lists hold one tensor for each direction, the forward one first.

    All floating tensors share one dtype, the storage dtype. Checked before it reaches a backend: shapes, dtypes,
    devices, and on the CPU the range of `lengths`. Any tensor may be non-contiguous.
    """

    cell_name: str
    x: Tensor
    """(T, B, I)"""
    w_ih: list[Tensor]
    """(G·H, I)"""
    w_hh: list[Tensor]
    """(N, G·D, D), with a projection (1, G·H, P); each head's rows are gate by gate, D = H / N"""
    biases: list[Tensor]
    """(G·H,): b_ih, b_hh for each direction, or nothing at all"""
    extras: list[Tensor]
    """a cell's further parameters for each direction: w_hr (P, H) of a projected LSTM, else nothing"""
    states0: list[Tensor]
    """(directions, B, P or H) for h, (directions, B, H) for each other state"""
    lengths: Tensor | None
    """(B,) int64"""
    resets: Tensor | None
    """(T, B) bool"""
    reverse: bool
    """of a single direction: whether it runs from the end. Two directions are forward and reverse."""

    def tensors(self) -> list[Tensor]:
        return [self.x, *self.w_ih, *self.w_hh, *self.biases, *self.extras, *self.states0]

    @property
    def cell(self) -> Cell:
        return CELLS[self.cell_name]

    @property
    def directions(self) -> int:
        return len(self.w_ih)

    @property
    def hidden_size(self) -> int:
        return self.w_ih[0].shape[0] // len(self.cell.gates)

    @property
    def output_size(self) -> int:
        """P with a projection, else H."""
        return self.states0[0].shape[-1]

    @property
    def heads(self) -> int:
        return self.w_hh[0].shape[0]

    @property
    def projected(self) -> bool:
        return len(self.extras) > 0  # not bool(), which compilers before torch 2.13 do not trace

    @property
    def state_dtype(self) -> torch.dtype:
        return state_dtype(self.x.dtype)

    @property
    def gate_dtype(self) -> torch.dtype:
        return gate_dtype(self.x.dtype)

    @property
    def history_forms(self) -> list[Form]:
        """Of every state's history, as in `Forward.states`."""
        steps, batch = self.x.shape[:2]
        wide = (steps, batch, self.directions * self.hidden_size)
        others: list[Form] = [(wide, self.state_dtype)] * (len(self.cell.states) - 1)
        return [((steps, batch, self.directions * self.output_size), self.x.dtype), *others]

    @property
    def saved_forms(self) -> list[Form]:
        """Of what a cell saves, as in `Forward.saved`."""
        steps, batch = self.x.shape[:2]
        saves = len(self.cell.saved)
        return [((self.directions, steps, batch, saves * self.hidden_size), self.gate_dtype)] if saves else []

    def reversed(self, direction: int) -> bool:
        return self.reverse or direction == 1


class Forward(NamedTuple):
    """What a backend's `forward` returns. No tensor here shares memory with another or with an argument."""

    states: list[Tensor]
    """h of every step (T, B, directions·P or directions·H) in the storage dtype, zero at t >= length; then, if
    `history` was asked for, the cell's other states (T, B, directions·H) in the state dtype, unspecified but finite
    at t >= length"""
    finals: list[Tensor]
    """as `states0`: every state after the last step, in the storage dtype"""
    saved: list[Tensor]
    """if `gates` was asked for and the cell saves any: one tensor (directions, T, B, S·H) in the gate dtype, the S
    blocks that `Cell.saved` names side by side, unspecified but finite at t >= length"""


class Backward(NamedTuple):
    """What a backend's `backward` returns: gradients in the dtype of what they belong to, none of them aliasing."""

    x: list[Tensor]
    """one (T, B, I), or nothing where it was not asked for"""
    w_ih: list[Tensor]
    w_hh: list[Tensor]
    biases: list[Tensor]
    extras: list[Tensor]
    """for each direction as in `Layer`; all empty where the weights' gradients were not asked for"""
    states0: list[Tensor]


@dataclass(frozen=True)
class Gradients:
    """What reaches a backward: gradients of the outputs (None is zero) and which results are needed."""

    states: list[Tensor | None]
    """as `Forward.states`; shorter where histories were not asked for"""
    finals: list[Tensor | None]
    need_x: bool = True
    need_weights: bool = True


@dataclass(frozen=True)
class Residuals:
    """What forward kept for backward, in the layout of `Forward`; `gates` is empty where they are to be recomputed."""

    states: list[Tensor]
    gates: list[Tensor] = field(default_factory=list)
