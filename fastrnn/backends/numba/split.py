"""How a layer's batch is split into tasks, and how a backend sees the tensors of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.backends.layer import Layer
from fastrnn.backends.numba.geometry import divide_up

WORK_PER_THREAD = 2_000_000
"""Multiplications. Measured on 2 cores: with half of it a second thread costs up to 25 us, with twice it saves 20 %."""


def split(batch: int, directions: int, steps: int, products: int, available: int) -> tuple[int, int]:
    """In how many slices to split each direction's rows, and how many threads to use.

    `products` are the multiplications for each row of the batch and step, `available` the threads there are.
    """
    work = directions * steps * batch * products
    threads = max(1, min(available, directions * batch, work // WORK_PER_THREAD))
    return divide_up(threads, directions), threads


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


def masks(layer: Layer) -> tuple[Tensor | None, Tensor | None]:
    """lengths (B,) int64 and resets (T, B) bool, contiguous."""
    lengths = None if layer.lengths is None else layer.lengths.contiguous()
    return lengths, None if layer.resets is None else layer.resets.contiguous()


def address(tensor: Tensor | None, offset: int = 0) -> int:
    """Of element number `offset` of a tensor's memory; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() + offset * tensor.itemsize


def direction_address(tensor: Tensor | None, direction: int) -> int:
    """Of one direction's part of a contiguous (directions, ...) tensor; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() + direction * tensor.stride(0) * tensor.itemsize
