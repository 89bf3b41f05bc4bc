"""How kernels see the tensors of a layer: in one dtype, with dense rows, by address."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Layer


def dense_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with its last dimension dense; itself where it is so already."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, contiguous; itself where it is so already."""
    return (tensor if tensor.dtype == dtype else tensor.to(dtype)).contiguous()


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; itself where it is so already."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def side_by_side(values: Sequence[Tensor]) -> Tensor | None:
    """Parameters of a cell or inputs of its steps, (..., H) each, as one (..., N·H), contiguous; None without any."""
    if len(values) < 2:
        return values[0].contiguous() if values else None
    return torch.cat(list(values), -1)


def masks(layer: Layer) -> tuple[Tensor | None, Tensor | None]:
    """lengths (B,) int64 and resets (T, B) bool, contiguous."""
    lengths = None if layer.lengths is None else layer.lengths.contiguous()
    return lengths, None if layer.resets is None else layer.resets.contiguous()


def unit_parameters(layer: Layer) -> Tensor | None:
    """The cell's parameters side by side, (directions, P·H) in the state dtype; None if it has none."""
    found = side_by_side([cast(p, layer.state_dtype) for p in layer.parameters])
    return None if found is None else found.view(layer.directions, -1)


def step_inputs(layer: Layer) -> Tensor | None:
    """The inputs of a layer's steps side by side, (directions, T, B, N·H) in the state dtype; None if it has none."""
    return side_by_side([cast(value, layer.state_dtype) for value in layer.inputs])


def direction_address(tensor: Tensor | None, direction: int) -> int:
    """Of one direction's part of a contiguous (directions, ...) tensor; as `address`."""
    return address(tensor, direction * tensor.stride(0) if tensor is not None and direction else 0)
