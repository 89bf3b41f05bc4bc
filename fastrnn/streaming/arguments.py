"""What a stream is called with, and what may be wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.checks import not_allocated


def tensor(name: str, value: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor, or what has the buffer protocol as one, of the same memory where it can be.

    Raises:
        TypeError: it is neither.
        ValueError: it is of another dtype, or not on the CPU.
        RuntimeError: it has no memory, or is not dense.
    """
    if not isinstance(value, Tensor):
        try:
            found = np.asarray(memoryview(value))
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"stream: {name} must be a tensor or have the buffer protocol, got {kind}") from None
        if found.dtype != np.dtype(str(dtype).removeprefix("torch.")):
            raise _wrong_dtype(name, dtype, str(found.dtype))
        # A view of what must not be written is only read.
        made: Tensor = torch.from_numpy(found if found.flags.writeable else found.copy())
        return made
    if value.dtype != dtype:
        raise _wrong_dtype(name, dtype, str(value.dtype).removeprefix("torch."))
    if not value.is_cpu:
        raise ValueError(f"stream: {name} must be on the CPU, got {value.device}")
    if value.layout is not torch.strided:
        raise RuntimeError(f"stream: {name} must be dense, got {value.layout}")
    if value.numel() and value.untyped_storage().data_ptr() == 0:
        raise not_allocated(f"stream: {name}")
    return value.detach()


def _wrong_dtype(name: str, wanted: torch.dtype, got: str) -> ValueError:
    return ValueError(f"stream: {name} must be {str(wanted).removeprefix('torch.')}, got {got}")


def rows_and_steps(x: Tensor, features: int, batch_first: bool) -> tuple[int, int]:
    """Of (rows, I), (steps, rows, I) or, with `batch_first`, (rows, steps, I).

    Raises:
        ValueError, RuntimeError: as torch.nn, for another number of dimensions or another I.
    """
    if x.dim() not in (2, 3):
        raise ValueError(f"stream: Expected input to be 2D or 3D, got {x.dim()}D instead")
    if x.shape[-1] != features:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {features}, got {x.shape[-1]}")
    if x.dim() == 2:
        return x.shape[0], 1
    return (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])


def slots(value: Any, rows: int, count: int | None, batch: int) -> Tensor | None:
    """Which states a call's rows have, int64 and contiguous; None where each row has its own.

    Raises:
        TypeError: there are slots and none are given, or given and none are there; or no integers.
        ValueError: not as many as rows.
    """
    if count is None:
        if value is not None:
            raise TypeError("stream: slots are for a stream that was made with slots=")
        return None
    if value is None:
        raise TypeError(f"stream: slots must say which of the {count} each row is")
    if isinstance(value, (list, tuple, range)):
        try:
            value = torch.tensor(list(value), dtype=torch.int64)
        except (TypeError, RuntimeError, ValueError) as error:
            raise TypeError(f"stream: slots must be integers: {error}") from None
    index = tensor("slots", value, torch.int64)
    if index.shape != (rows,):
        raise ValueError(f"stream: slots must be a number for each row, ({rows},), got {tuple(index.shape)}")
    return index.contiguous()


def wrong_slots(index: Tensor, count: int) -> Exception:
    """Why a kernel did not take them: one is none of so many, or comes twice."""
    outside = index[(index < 0) | (index >= count)]
    if outside.numel():
        return IndexError(f"stream: slot {int(outside[0])} is out of range: there are {count}")
    numbers, times = index.unique(return_counts=True)
    return ValueError(f"stream: slot {int(numbers[times > 1][0])} comes twice")


def output(out: Any, shape: torch.Size) -> Tensor:
    """The caller's memory for the outputs, as a tensor.

    Raises:
        TypeError, ValueError, RuntimeError: as `tensor`; it cannot be written to, or asks for gradients.
        ValueError: it has another shape.
    """
    if isinstance(out, Tensor):
        if out.requires_grad:
            raise RuntimeError("stream: out must not require gradients: a stream computes none")
    elif _is_readonly(out):
        raise ValueError("stream: out must be writable")
    target = tensor("out", out)
    if target.shape != shape:
        raise ValueError(f"stream: out must have the shape {tuple(shape)}, got {tuple(target.shape)}")
    return target


def _is_readonly(value: Any) -> bool:
    try:
        return memoryview(value).readonly
    except TypeError:
        return False  # which `tensor` tells


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    first, other = a.data_ptr(), b.data_ptr()
    return first < other + b.nbytes and other < first + a.nbytes
