"""What a stream is called with, and what may be wrong with it."""

from __future__ import annotations

from operator import index
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fastrnn import hints
from fastrnn.checks import not_allocated


def tensor(name: str, value: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor, or what has the buffer protocol as one, of the same memory unless that cannot be a tensor's.

    Raises:
        TypeError: it is neither.
        ValueError: it is of another dtype, or not on the CPU.
        RuntimeError: it has no memory, such as a transform's or a tracer's, or is not dense.
    """
    if not isinstance(value, Tensor):
        try:
            found = np.asarray(memoryview(value))
        except (TypeError, ValueError, BufferError):
            kind = type(value).__name__
            raise TypeError(f"stream: {name} must be a tensor or have the buffer protocol, got {kind}") from None
        if found.dtype != np.dtype(str(dtype).removeprefix("torch.")):
            raise _wrong_dtype(name, dtype, str(found.dtype))
        # Tensors can neither be read-only, which warns, nor have negative strides.
        usual = found.flags.writeable and all(stride >= 0 and stride % found.itemsize == 0 for stride in found.strides)
        made: Tensor = torch.from_numpy(found if usual else found.copy())
        return made
    if value.dtype != dtype:
        raise _wrong_dtype(name, dtype, str(value.dtype).removeprefix("torch."))
    if not value.is_cpu:
        raise ValueError(f"stream: {name} must be on the CPU, got {value.device}")
    if value.layout is not torch.strided:
        raise RuntimeError(f"stream: {name} must be dense, got {value.layout}")
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
    if is_wrapped or type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise RuntimeError(f"stream: {name} must be a tensor in memory, got one of a transform, tracer or mode")
    if value.numel() and value.untyped_storage().data_ptr() == 0:
        raise not_allocated(f"stream: {name}")
    return value.detach()


def _wrong_dtype(name: str, wanted: torch.dtype, got: str) -> ValueError:
    integers = getattr(torch, got, None) if name == "x" else None  # NumPy's names are torch's
    hint = hints.integer_input(integers, wanted) if isinstance(integers, torch.dtype) else ""
    return ValueError(f"stream: {name} must be {str(wanted).removeprefix('torch.')}, got {got}{hint}")


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


def slots(value: Any, rows: int, count: int | None) -> Tensor | None:
    """Which states a call's rows have, int64 and contiguous; None where each row has its own.

    Raises:
        TypeError: there are slots and none are given, or given and none are there; or no integers.
        ValueError: not as many as rows.
        IndexError: one is no int64.
    """
    if count is None:
        if value is not None:
            raise TypeError("stream: slots are for a stream that was made with slots=")
        return None
    if value is None:
        raise TypeError(f"stream: slots must say which of the {count} each row is")
    index = tensor("slots", _integers("slots", value, count), torch.int64)
    if index.shape != (rows,):
        raise ValueError(f"stream: slots must be a number for each row, ({rows},), got {tuple(index.shape)}")
    return in_memory(index)


def states_of(value: Any, count: int) -> Tensor:
    """The numbers of states that `reset` was given, int64 (n,).

    Raises:
        TypeError, ValueError, IndexError: see `Stream.reset`.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, (Tensor, np.ndarray)):
        value = [value]
    value = _integers("rows", value, count)
    is_mask = getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))
    index = tensor("rows", value, torch.bool if is_mask else torch.int64)
    if is_mask:
        if index.shape != (count,):
            raise ValueError(f"stream: rows must be a boolean for each state, ({count},), got {tuple(index.shape)}")
        return index.nonzero()[:, 0]
    if index.dim() > 1:
        raise ValueError(f"stream: rows must have one dimension, got {tuple(index.shape)}")
    index = index.reshape(-1)
    outside = index[(index < 0) | (index >= count)]
    if outside.numel():
        raise IndexError(f"stream: row {int(outside[0])} is out of range: there are {count}")
    return index


def _integers(name: str, value: Any, count: int) -> Any:
    """A list of integers as a tensor; anything else as it is."""
    if not isinstance(value, (list, tuple, range)):
        return value
    try:
        if any(isinstance(each, bool) for each in value):
            raise TypeError("got a bool")
        numbers = [index(each) for each in value]
    except TypeError as error:
        raise TypeError(f"stream: {name} must be integers: {error}") from None
    for number in numbers:
        if not -(2**63) <= number < 2**63:
            raise IndexError(f"stream: {name}: {number} is out of range: there are {count}")
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def wrong_slots(index: Tensor, count: int) -> Exception:
    """Why a kernel did not take them: one is none of so many, or comes twice."""
    outside = index[(index < 0) | (index >= count)]
    if outside.numel():
        return IndexError(f"stream: slot {int(outside[0])} is out of range: there are {count}")
    numbers, times = index.unique(return_counts=True)
    return ValueError(f"stream: slot {int(numbers[times > 1][0])} comes twice")


def output(out: Any, shape: torch.Size) -> Tensor:
    """The caller's memory for the outputs, as a tensor of it.

    Raises:
        TypeError, ValueError, RuntimeError: as `tensor`; it cannot be written to, or asks for gradients.
        ValueError: it has another shape.
    """
    if isinstance(out, Tensor) and out.requires_grad:
        raise RuntimeError("stream: out must not require gradients: a stream computes none")
    target = tensor("out", out)
    if not isinstance(out, Tensor):
        found = np.asarray(memoryview(out))
        if not found.flags.writeable:
            raise ValueError("stream: out must be writable")
        if target.numel() and target.data_ptr() != found.__array_interface__["data"][0]:
            raise ValueError(f"stream: out must not have the strides {found.strides}")
    if target.shape != shape:
        raise ValueError(f"stream: out must have the shape {tuple(shape)}, got {tuple(target.shape)}")
    if any(size > 1 and stride == 0 for size, stride in zip(target.shape, target.stride(), strict=True)):
        raise RuntimeError("stream: out must have memory of its own for each number, it is expanded")
    return target


def is_memory(value: Tensor) -> bool:
    """Whether a kernel can work on it: aligned, as C lays it out, with its numbers' own signs."""
    return value.is_contiguous() and not value.is_neg() and value.data_ptr() % value.itemsize == 0


def in_memory(value: Tensor) -> Tensor:
    """The same numbers where a kernel can read them."""
    return value if is_memory(value) else value.resolve_neg().clone(memory_format=torch.contiguous_format)


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    first, other = a.data_ptr(), b.data_ptr()
    return first < other + b.nbytes and other < first + a.nbytes
