"""What `fastrnn._stream` is in C (`csrc/stream/door.c`), for where that is not built: a kernel called by ctypes.

A `Door` belongs to one kernel. The class that is derived from it has two methods: `_slowly`, which serves any call or
raises what is wrong with it, and `_view`. In Python every call goes to `_slowly`. In C those are served without it that
are as usual: float32 in memory as C lays it out, tensors or what has the buffer protocol, of the expected sizes.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, NoReturn, SupportsIndex

INPUT, OUTPUT, STEPS, ROWS, SLOTS, STATUS, BUSY = range(7)
"""The int64 numbers of a kernel's block: addresses of x and of the output; how many steps and rows; the address of as
many int64 numbers of slots, or 0; 0 where the kernel has done it, else why it changed nothing; 1 while it is in use."""

RELEASED = 1_000_000
"""Multiplications from which on a call releases the interpreter's lock: some 50 µs. A shorter one keeps it, since a
thread that takes it in between gives it back after 5 ms."""


class Door:
    """Calls a kernel.

    Args:
        kernel: the address of a C function `void (*)(void *)`.
        block: the address that it is called with, of `BUSY + 1` int64 numbers. Whoever derives from this keeps both,
            and all that the kernel reads, as long as the door.
        features: I, the last dimension of x.
        outputs: O, the last dimension of the output.
        steps: the most of one call.
        batch: the rows of a call, with slots the most.
        batch_first: whether x is (rows, steps, I) rather than (steps, rows, I).
        slots: how many states there are, to be chosen from by a call's `slots`; 0: each row has its own.
        work: multiplications of one row in one step.

    Raises:
        ValueError: an address or a size that is not positive.
    """

    def __init__(
        self,
        *,
        kernel: int,
        block: int,
        features: int,
        outputs: int,
        steps: int,
        batch: int,
        batch_first: bool,
        slots: int,
        work: int,
    ) -> None:
        if min(kernel, block, features, outputs, steps, batch) < 1 or min(slots, work) < 0:
            raise ValueError("Door: addresses and sizes must be positive, slots and work not negative")
        # Two underscores: in C the derived class sees none of these, so here it can take none for its own.
        self.__keeping = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(kernel)
        self.__releasing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
        self.__block = (ctypes.c_int64 * (BUSY + 1)).from_address(block)
        self.__work = work
        self.__turn = threading.Lock()

    def __call__(self, x: Any, *, out: Any = None, slots: Any = None) -> Any:
        """One call with x (rows, I), (steps, rows, I) or (rows, steps, I). Returns `out`, or an output of its own.

        Raises:
            RuntimeError: another thread is within a call.
        """
        return self._slowly(x, out, slots)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raises TypeError: addresses mean nothing in a copy."""
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def _slowly(self, x: Any, out: Any, slots: Any) -> Any:
        """Serves any call, by `_start` between `_enter` and `_leave`, or raises what is wrong with it."""
        raise NotImplementedError

    def _view(self, rows: int, steps: int, dims: int) -> tuple[Any, int]:
        """The output of a call of so many rows, steps and dimensions, and its memory's address.

        In C it is called within `_enter`, and what it returns is kept for further calls that are alike, until `_shut`.
        """
        raise NotImplementedError

    def _enter(self) -> None:
        """Takes the kernel for this thread, until `_leave`. Raises RuntimeError where it is taken."""
        if not self.__turn.acquire(blocking=False):
            raise RuntimeError("Stream: another thread is using this stream")
        self.__block[BUSY] = 1

    def _leave(self) -> None:
        """Gives it back."""
        self.__block[BUSY] = 0
        self.__turn.release()

    def _shut(self) -> None:
        """Sends all calls to come to `_slowly`, as they are here anyway, and lets go of the output. Within `_enter`."""

    def _start(self, x: int, out: int, steps: int, rows: int, slots: int) -> int:
        """Calls the kernel with these numbers, within `_enter`. Returns the status."""
        self.__block[:STATUS] = [x, out, steps, rows, slots]
        kernel = self.__releasing if rows * steps * self.__work > RELEASED else self.__keeping
        kernel(ctypes.addressof(self.__block))
        return self.__block[STATUS]
