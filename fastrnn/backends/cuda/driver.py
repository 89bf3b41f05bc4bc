"""CUDA's driver: kernels that were compiled while the program runs, loaded on a device and launched there.

Nothing here knows what a kernel computes. Each is loaded in the device's primary context, which torch's runtime uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from threading import Lock

LIBRARY = "libcuda.so.1"
MAX_DYNAMIC_SHARED_SIZE_BYTES, NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 8, 14
"""Attributes of a kernel, by cuda.h's names."""
COOPERATIVE, CLUSTER_DIMENSION = 2, 4
"""Attributes of a launch."""
PORTABLE_CLUSTER = 8
"""Blocks: what every device with clusters runs, larger ones must be asked for."""


class _Attribute(ctypes.Structure):
    """cuda.h's CUlaunchAttribute, of whose union the first words are all that is set."""

    _fields_ = (("id", c_int), ("padding", c_char * 4), ("value", c_uint * 16))


class _Configuration(ctypes.Structure):
    """cuda.h's CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", c_uint),
    )


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.cuGetErrorName.argtypes = library.cuGetErrorString.argtypes = [c_int, ctypes.POINTER(c_char_p)]
    return library


def _call(function: str, *arguments: object, what: str = "") -> None:
    """Raises RuntimeError in CUDA's words, naming `what` it was about."""
    library = _library()
    status = getattr(library, function)(*arguments)
    if status:
        said = c_char_p(), c_char_p()
        library.cuGetErrorString(status, byref(said[0]))
        library.cuGetErrorName(status, byref(said[1]))
        text, name = ((one.value or b"unknown").decode() for one in said)
        raise RuntimeError(f"{function}{what and f' of {what}'}: {text} ({name})")


@cache
def _context(index: int) -> c_void_p:
    """The device's primary context; kept, as torch keeps it, to the end."""
    device, context = c_int(), c_void_p()
    _call("cuInit", c_uint(0))
    _call("cuDeviceGet", byref(device), c_int(index))
    _call("cuDevicePrimaryCtxRetain", byref(context), device)
    return context


@contextmanager
def _current(index: int) -> Iterator[None]:
    """The device's primary context is this thread's."""
    _call("cuCtxPushCurrent_v2", _context(index))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", byref(c_void_p()))


class Kernel:
    """A kernel on a device.

    Args:
        cubin: compiled code.
        symbol: the kernel's name in it.
        index: the device's number.
        title: what errors call it.

    Raises:
        OSError: there is no driver.
        RuntimeError: the driver refuses the code.
    """

    def __init__(self, cubin: bytes, symbol: str, index: int, title: str) -> None:
        self._index, self._title = index, title
        self._function, module = c_void_p(), c_void_p()
        self._shared_bytes, self._is_large, self._lock = 0, False, Lock()
        with _current(index):
            _call("cuModuleLoadData", byref(module), c_char_p(cubin), what=title)
            _call("cuModuleGetFunction", byref(self._function), module, symbol.encode(), what=title)

    def launch(
        self,
        *,
        stream: int,
        grid: int,
        threads: int,
        shared_bytes: int,
        parameters: Sequence[bytes],
        cluster: int | None,
        filled: tuple[int, int, int] | None,
    ) -> None:
        """Starts it, and returns before it has ended.

        Args:
            stream: a CUstream of the device; 0 is the default one.
            grid: how many blocks, along x.
            threads: of a block.
            shared_bytes: of a block.
            parameters: each as it lies in memory.
            cluster: how many blocks a cluster has; None for a cooperative launch, whose blocks all run at once.
            filled: (address, bytes, value) of memory that is set before, if any.

        Raises:
            RuntimeError: CUDA refuses the launch.
        """
        attribute = _Attribute(COOPERATIVE if cluster is None else CLUSTER_DIMENSION)
        attribute.value[:3] = (1, 0, 0) if cluster is None else (cluster, 1, 1)
        blocks = (c_uint * 3)(grid, 1, 1), (c_uint * 3)(threads, 1, 1)
        configuration = _Configuration(*blocks, shared_bytes, stream, ctypes.pointer(attribute), 1)
        buffers = [ctypes.create_string_buffer(parameter, len(parameter)) for parameter in parameters]
        addresses = (c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        what = f"{grid} blocks of {threads} threads and {shared_bytes} bytes of shared memory of {self._title}"
        with _current(self._index):
            self._allow(shared_bytes, cluster)
            if filled is not None:
                address, size, value = filled
                _call("cuMemsetD8Async", c_uint64(address), c_ubyte(value), c_size_t(size), c_void_p(stream), what=what)
            _call("cuLaunchKernelEx", byref(configuration), self._function, addresses, None, what=what)

    def _allow(self, shared_bytes: int, cluster: int | None) -> None:
        """What is allowed only grows, also where threads launch side by side."""
        with self._lock:
            if shared_bytes > self._shared_bytes:
                self._set(MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
                self._shared_bytes = shared_bytes
            if cluster is not None and cluster > PORTABLE_CLUSTER and not self._is_large:
                self._set(NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
                self._is_large = True

    def _set(self, attribute: int, value: int) -> None:
        _call("cuFuncSetAttribute", self._function, c_int(attribute), c_int(value), what=self._title)
