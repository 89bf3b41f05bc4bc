"""Launching a kernel from a handle: what `kernel[grid](...)` works out in every call is worked out once.

A handle is kept for each kernel, its constants, the dtypes and absences of its arguments, and the device. Arguments are
aligned (`buffers.dense`) and integers are not specialised, so that nothing else tells one compiled kernel from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastrnn.backends.triton.interpreter import INTERPRETED

Grid = tuple[int, int, int]

MOST_STACK = 64
"""Bytes of a thread, tolerated: what is put aside before the time loop and fetched again after it."""

_handles: dict[tuple[Any, ...], Any] = {}


def _kind(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    return argument.dtype if isinstance(argument, Tensor) else type(argument)


class Launcher:
    """A kernel compiled for a kind of arguments.

    Args:
        kernel: a function under `triton.jit`, its compile-time parameters last.
        arguments: the run-time arguments in the kernel's order: tensors, None, integers below 2³¹ or tuples of
            tensors; the first is a tensor or a tuple. Calls may pass others of the same dtypes, None at the
            same places.
        constants: the compile-time arguments by name; those that the kernel does not have are left out.
        warps, stages: what Triton calls num_warps and num_stages.
    """

    def __init__(
        self, kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], warps: int, stages: int
    ) -> None:
        self._kernel = kernel
        self._constants = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
        self._options = {"num_warps": warps, "num_stages": stages}
        if INTERPRETED:
            return
        first = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        device: torch.device = first.device
        key = (kernel, self._constants, warps, stages, device.index, *map(_kind, arguments))
        self._handle: Any = _handles.get(key)
        if self._handle is None:
            self._handle = kernel.warmup(*arguments, *self._constants, grid=(1,), **self._options)
            _handles[key] = self._handle

    def too_large(self) -> str | None:
        """Why the kernel is too large for the device that is current, or None; looked at once for each handle."""
        return None if INTERPRETED else _too_large(self._handle)

    def __call__(self, grid: Grid, *arguments: Any) -> None:
        """Launches on the current stream of the current device, which must be the arguments' own."""
        if INTERPRETED:
            self._kernel[grid](*arguments, *self._constants, **self._options)
            return
        self._handle[grid](*arguments, *self._constants)


@cache
def _too_large(handle: Any) -> str | None:
    from triton.runtime.errors import OutOfResources

    try:
        handle[1, 1, 1]  # loads it, and launches nothing
    except OutOfResources as error:
        return str(error)
    stack = 4 * handle.n_spills
    return f"{stack} bytes of a thread have no room in registers" if stack > MOST_STACK else None
