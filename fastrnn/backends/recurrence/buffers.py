"""What a recurrence reads and writes: the arguments of its kernels, contiguous and aligned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Layer

Named = dict[str, "Tensor | Sequence[Tensor | None] | None"]
"""A kernel's tensors by their names in `csrc/arguments.h`; None where there is none."""

ALIGNMENT = 16
"""Bytes. Kernels are compiled for pointers that are multiples of it, so that they load vectors."""


def dense(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor, contiguous, aligned and in `dtype`; itself where it is all that."""
    tensor = tensor.to(dtype or tensor.dtype).contiguous()
    return tensor if address(tensor) % ALIGNMENT == 0 else tensor.clone()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """The device whose stream and memory the products and the kernels use."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def parameters_of(layer: Layer) -> Tensor | None:
    """`ForwardBuffers.parameters`."""
    if not layer.parameters:
        return None
    return torch.stack([torch.stack(layer.parameters_of(direction)) for direction in range(layer.directions)])


def dense_or_none(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if tensor is None else dense(tensor, dtype)


@dataclass(frozen=True)
class Masks:
    """Where sequences end and where they are cut."""

    lengths: Tensor | None
    """(B,) int64"""
    resets: Tensor | None
    """(T, B) uint8"""

    @classmethod
    def of(cls, layer: Layer) -> Masks:
        resets = dense_or_none(layer.resets)
        return cls(dense_or_none(layer.lengths), None if resets is None else resets.view(torch.uint8))


@dataclass(frozen=True)
class ForwardBuffers:
    """Of a forward recurrence; the last three are written."""

    gx: Tensor
    """(directions, T, B, Gx·H) in the storage dtype: x W_ihᵀ + b_ih, and b_hh too where `b_hh` is empty"""
    w_hh: list[Tensor]
    """(N, Gu·D, D) for each direction"""
    b_hh: list[Tensor]
    """(Gu·H,) for each direction where the cell does not simply add gx and gh, else nothing"""
    states0: list[Tensor]
    """(directions, B, H) each"""
    parameters: Tensor | None
    """(directions, P, H), where the cell has any"""
    inputs: list[Tensor]
    """(directions, T, B, H) each; at t >= length they may be NaN"""
    masks: Masks
    recurrent_mask: Tensor | None
    """(directions, B, H), where there is recurrent dropout"""
    histories: list[Tensor]
    """(T, B, directions·H) each: h's, and in the state dtype those of the other states where they are kept"""
    gates: Tensor | None
    """(directions, T, B, S·H) in `Layer.gate_dtype`, where they are kept"""
    finals: list[Tensor]
    """(directions, B, H) each, in the storage dtype"""

    def named(self) -> Named:
        """By the kernels' names."""
        return {
            "gx": self.gx,
            "w_hh": self.w_hh,
            "b_hh": self.b_hh,
            "states0": self.states0,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "lengths": self.masks.lengths,
            "resets": self.masks.resets,
            "histories": self.histories,
            "gates": self.gates,
            "finals": self.finals,
        }


@dataclass
class BackwardBuffers:
    """Of a backward recurrence; `dgates` and `d_states0` are written."""

    layer: Layer
    w_hh: list[Tensor]
    """(N, Gu·D, D) for each direction"""
    histories: list[Tensor]
    """(T, B, directions·H) each: h's, and in the state dtype those of the other states"""
    gates: Tensor | None
    """(directions, T, B, S·H): what forward saved; or (directions, T, B, W·H) in the storage dtype: the
    preactivations, in the first of the W = len(cell.blocks) blocks; what is in the others is never looked at"""
    are_preactivations: bool
    states0: list[Tensor]
    """(directions, B, H) each"""
    parameters: Tensor | None
    inputs: list[Tensor]
    """both as in `ForwardBuffers`"""
    masks: Masks
    recurrent_mask: Tensor | None
    """as in `ForwardBuffers`"""
    d_histories: list[Tensor | None]
    """in the shapes and dtypes of `histories`; None is zero"""
    d_finals: list[Tensor]
    """(directions, B, H) each, or nothing where all are zero"""
    d_states0: list[Tensor]
    """(directions, B, H) each, in the storage dtype"""
    replaces_preactivations: bool = False
    """Whether dgates take the preactivations' place. To be set before `dgates` is looked at, and only for kernels in
    which no thread stores a gradient before all have read the value that lies there. Saved gates are never overwritten:
    with `retain_graph` they are needed again."""

    @cached_property
    def dgates(self) -> Tensor:
        """(directions, T, B, W·H) in the storage dtype: the gradients of `Cell.blocks`, zero at t >= length."""
        if self.replaces_preactivations and self.are_preactivations:
            assert self.gates is not None
            return self.gates
        return empty_dgates(self.layer)

    @property
    def given(self) -> tuple[bool, ...]:
        """Which of `d_histories` are not None."""
        return tuple(d is not None for d in self.d_histories)

    @property
    def given_or_any(self) -> tuple[Tensor, ...]:
        """`d_histories`, any tensor in place of None, of which Triton could not tell the type."""
        return tuple(h if d is None else d for h, d in zip(self.histories, self.d_histories, strict=True))

    def named(self) -> Named:
        """By the kernels' names."""
        return {
            "w_hh": self.w_hh,
            "histories": self.histories,
            "gates": self.gates,
            "states0": self.states0,
            "parameters": self.parameters,
            "inputs": self.inputs,
            "lengths": self.masks.lengths,
            "resets": self.masks.resets,
            "d_histories": self.d_histories,
            "d_finals": self.d_finals,
            "dgates": self.dgates,
            "d_states0": self.d_states0,
        }


def empty_dgates(layer: Layer) -> Tensor:
    """Memory for `BackwardBuffers.dgates`."""
    T, B, _ = layer.x.shape
    return layer.x.new_empty((layer.directions, T, B, len(layer.cell.blocks) * layer.hidden_size))
