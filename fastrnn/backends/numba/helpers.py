"""Threads that help a stream's caller: see `kernels/claims.py`."""

from __future__ import annotations

import ctypes
import sys
import threading
from array import array
from typing import Any

from fastrnn.backends.numba.arguments import FIELDS
from fastrnn.backends.numba.workspace import pages

SEMAPHORE_BYTES = 64
"""At least as many as a C library's sem_t has."""
_FIELDS = FIELDS["stream_float32"]
_WORD = 8
_MOST_PANELS = 2**16 - 1
"""What a claim can count: with more, which are of a million units, a caller could wait for a panel that nobody has."""


class Helpers:
    """So many threads that wait to help with the calls of one stream, until `stop`.

    Elsewhere than on Linux, for millions of units, and in a child that was forked afterwards, there are none: the
    caller does all itself.
    """

    def __init__(self, kernel: int, blocks: array[int], threads: int) -> None:
        self._threads: list[threading.Thread] = []
        panels = max(blocks[_FIELDS.index("panels") :: len(_FIELDS)])
        if threads < 1 or panels > _MOST_PANELS or not sys.platform.startswith("linux"):
            return
        from fastrnn.backends.numba.kernels.claims import CLAIMS_WORDS, STOP

        self._memory = pages(_WORD * CLAIMS_WORDS + SEMAPHORE_BYTES)
        claims = self._memory.data_ptr()
        semaphore = claims + _WORD * CLAIMS_WORDS
        self._library = ctypes.CDLL(None)
        if self._library.sem_init(ctypes.c_void_p(semaphore), 0, 0) != 0:
            return
        self._stop, self._semaphore = claims + _WORD * STOP, semaphore
        places = {
            "claims": claims,
            "semaphore": semaphore,
            "post": _address(self._library.sem_post),
            "sleep": _address(self._library.sem_wait),
        }
        for name, value in places.items():
            blocks[_FIELDS.index(name)] = value
        self._blocks = array("q", blocks)
        self._blocks[_FIELDS.index("helps")] = 1
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
        at = self._blocks.buffer_info()[0]
        try:
            for number in range(threads):
                thread = threading.Thread(target=run, args=(at,), name=f"fastrnn stream {number + 1}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:  # such as the system's having no more
            self.stop()
            raise

    def stop(self) -> None:
        """Ends them; what they read must be there until this has returned."""
        if self._threads:
            ctypes.c_int64.from_address(self._stop).value = 1
            for _ in self._threads:
                self._library.sem_post(ctypes.c_void_p(self._semaphore))
        for thread in self._threads:
            thread.join()
        self._threads = []


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
