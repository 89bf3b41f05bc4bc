"""`lengths` as users have them: a tensor, a list or tuple, or a NumPy array, which become a tensor beside the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrnn import checks

Lengths = Tensor | list[int] | tuple[int, ...] | npt.NDArray[np.integer[Any]] | int
"""What `lengths=` takes: integers, one for each sequence, and for unbatched input one alone."""


def on_device(operator: str, value: Any, batch: int | None, steps: int, device: torch.device) -> Tensor:
    """`lengths` as a user gave them -> (B,) int64 on `device`, the input's; (1,) for unbatched input.

    Numbers that come from the host are looked at there. What lies beside the input already is looked at in the
    operator, so that a compiled graph does it, too.

    Args:
        operator: for messages.
        value: integers in [0, T], (B,), or () for unbatched input: a tensor on `device` or on the CPU, a list, tuple
            or NumPy array, or an int.
        batch, steps: B, or None for unbatched input, and T.

    Raises:
        TypeError: for other types.
        ValueError: for other shapes and dtypes, for tensors on another device, and for numbers out of range.
    """
    tensor = value if isinstance(value, Tensor) else _as_tensor(operator, value, batch, steps)
    if tensor.device == device or not tensor.is_cpu:
        checks.lengths(operator, tensor, batch, device)
        return tensor.reshape(-1).to(torch.int64)
    checks.lengths(operator, tensor, batch, tensor.device)
    # A copy that nobody else has need not be waited for.
    tensor = tensor.reshape(-1).to(torch.int64, copy=True)
    if checks.has_numbers(tensor):
        checks.lengths_range(operator, tensor, steps)
    return tensor.to(device, non_blocking=device.type == "cuda")


FEW = 64
"""Lengths that are looked at one by one, which for so many takes less than torch's operations."""


def in_range(operator: str, lengths: Tensor, steps: int) -> Tensor:
    """Lengths (B,) that lie within [0, T]: looked at on the CPU, clamped where looking would synchronise.

    Raises:
        ValueError: one does not.
    """
    if not lengths.is_cpu:
        return lengths.clamp(0, steps)
    if lengths.shape[0] > FEW or any(not 0 <= length <= steps for length in lengths.tolist()):
        checks.lengths_range(operator, lengths, steps)
    return lengths


def _as_tensor(operator: str, value: Any, batch: int | None, steps: int) -> Tensor:
    """Of what is no tensor, on the CPU whatever the default device is; shapes are not looked at."""
    if isinstance(value, np.ndarray):
        if torch.compiler.is_compiling():  # to whom it is a tensor already
            return torch.as_tensor(value)
        if value.dtype.kind not in "iu":
            raise checks.wrong_lengths(ValueError, operator, batch, f"{value.dtype} of shape {value.shape}")
        return torch.tensor(value.astype(np.int64, order="C"), device="cpu")
    each = value if isinstance(value, (list, tuple)) else (value,)
    for index, number in enumerate(each):
        if not _is_integer(number):
            place = "" if each is not value else f" at index {index}"
            raise checks.wrong_lengths(TypeError, operator, batch, type(number).__name__ + place)
        if type(number) is int and number.bit_length() > 63:
            raise checks.out_of_range(operator, steps, number, index)
    return torch.tensor(value, dtype=torch.int64, device="cpu")


def _is_integer(number: Any) -> bool:
    """Whether it is one, a compiler's or a tensor's included; truth values are not."""
    if isinstance(number, Tensor):
        return number.dim() == 0 and number.dtype in checks.INTEGERS
    return isinstance(number, (int, np.integer, torch.SymInt)) and not isinstance(number, bool)
