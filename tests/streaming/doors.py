"""Doors to a kernel that is written in Python, and what it was called with."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastrnn import extension
from fastrnn.streaming import plain_door
from fastrnn.streaming.plain_door import BUSY, INPUT, OUTPUT, ROWS, SLOTS, STATUS, STEPS

KINDS = ("compiled", "by attributes", "plain")
"""In C as it is; in C with a torch that has no exchange API; in Python."""

I, O, BATCH, MOST_STEPS = 3, 2, 5, 4


def door_class(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """`Door` of this kind. Skips where it is not built."""
    if kind == "plain":
        return plain_door.Door
    if (reason := extension.why_no_door()) is not None:
        pytest.skip(f"no {extension.DOOR}: {reason}")
    compiled = importlib.import_module(extension.DOOR)
    if kind == "compiled":
        return compiled.Door
    # Another copy, which looks for the API anew.
    copy = shutil.copy(compiled.__file__, folder)
    patch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    loader = ExtensionFileLoader("without_exchange._stream", copy)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module.Door


def usual() -> torch.Tensor:
    """An input that every door takes."""
    return torch.zeros(BATCH, I)


def floats(address: int, *shape: int) -> np.ndarray:
    """The memory at `address`."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), shape)


def expected(x: Any, slots: Any = None) -> np.ndarray:
    """What the kernel computes of x (..., I): output o of a row is the sum of its inputs, o and its first slot."""
    first = 0 if slots is None else int(np.asarray(slots)[0])
    return np.asarray(x).sum(-1, keepdims=True) + np.arange(O, dtype=np.float32) + first


class Kernel:
    """The function, and the numbers that it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.status = 0
        self.during: Callable[[], None] = lambda: None
        self.function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._run)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def _run(self, block: int) -> None:
        numbers = (ctypes.c_int64 * (BUSY + 1)).from_address(block)
        self.calls.append(list(numbers))
        self.during()
        numbers[STATUS] = self.status
        if self.status == 0:
            lines = numbers[STEPS] * numbers[ROWS]
            slots = None
            if numbers[SLOTS]:
                slots = np.ctypeslib.as_array((ctypes.c_int64 * numbers[ROWS]).from_address(numbers[SLOTS]))
            floats(numbers[OUTPUT], lines, O)[:] = expected(floats(numbers[INPUT], lines, I), slots)


def make(base: Any, **changes: Any) -> Any:
    """A door that is derived from `base`; `changes` are its arguments."""

    class Derived(base):
        def __init__(self) -> None:
            self.kernel = Kernel()
            self.block = (ctypes.c_int64 * (BUSY + 1))()
            self.sizes = {"steps": MOST_STEPS, "batch": BATCH, "batch_first": False, "slots": 0, "work": 1} | changes
            self.memory = torch.zeros(self.sizes["steps"] * self.sizes["batch"] * O)
            self.slow: list[tuple[Any, Any, Any]] = []
            self.refused: Exception | None = None
            super().__init__(
                kernel=self.kernel.address, block=ctypes.addressof(self.block), features=I, outputs=O, **self.sizes
            )

        def _view(self, rows: int, steps: int, dims: int) -> tuple[torch.Tensor, int]:
            long = (rows, steps) if self.sizes["batch_first"] else (steps, rows)
            shape = (rows, O) if dims == 2 else (*long, O)
            return self.memory[: rows * steps * O].view(shape), self.memory.data_ptr()

        def _slowly(self, x: Any, out: Any, slots: Any) -> Any:
            """Serves what is float32 and has two or three dimensions; does not look at the rest."""
            self.slow.append((x, out, slots))
            if self.refused is not None:
                raise self.refused
            x = torch.tensor(np.asarray(x if not isinstance(x, torch.Tensor) else x.detach()))
            rows = x.shape[0] if x.dim() == 2 or self.sizes["batch_first"] else x.shape[1]
            result, address = self._view(rows, x.numel() // rows // I, x.dim())
            if out is not None:
                result, address = out, np.asarray(out).ctypes.data
            numbers = None if slots is None else np.asarray(slots)
            self._enter()
            try:
                status = self._start(
                    x.data_ptr(), address, x.numel() // rows // I, rows, 0 if slots is None else numbers.ctypes.data
                )
            finally:
                self._leave()
            if status:
                raise ValueError(f"status {status}")
            return result

    return Derived()
