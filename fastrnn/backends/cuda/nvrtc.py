"""NVRTC, CUDA's compiler as a library: where it is, and what it makes of a source.

CUDA builds of torch bring it, for kernels of their own. FASTRNN_NVRTC names another one, by its path.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from ctypes.util import find_library
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from fastrnn.first_use import undisturbed

STANDARD = "-std=c++17"
PATTERNS = ("cuda_nvrtc/lib", "cu*/lib")
"""Where the library lies in the packages that torch's CUDA builds depend on, below `nvidia`: of CUDA 12 and 13."""
TOOLKITS = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
"""Where it lies in a toolkit."""
SHOWN = 4000
"""letters of a log that an error quotes"""
TRIAL = "__global__ void trial() {}"
"""What a library has to compile before it is taken."""


class CompileError(RuntimeError):
    """NVRTC failed. The message has what was compiled and NVRTC's log."""


class Compiled(NamedTuple):
    """A kernel."""

    symbol: str
    cubin: bytes


class _Found(NamedTuple):
    library: ctypes.CDLL
    path: str
    numbers: tuple[int, int]

    @property
    def version(self) -> str:
        return ".".join(map(str, self.numbers))


def _candidates() -> Iterator[str]:
    """What may be the library, the likeliest first: paths, and names that the loader knows."""
    chosen = os.environ.get("FASTRNN_NVRTC")
    if chosen:
        yield chosen
        return
    # A driver runs what the toolkits of its own major version compile: of the versions here, torch's own is right.
    major = (torch.version.cuda or "").partition(".")[0] or "*"
    name = f"libnvrtc.so.{major}"

    def inside(folders: Iterable[Path]) -> Iterator[str]:
        return (str(path) for folder in folders for path in sorted(folder.glob(name), reverse=True))

    nvidia = find_spec("nvidia")
    places = (nvidia and nvidia.submodule_search_locations) or ()
    yield from inside(lib for place in places for pattern in PATTERNS for lib in Path(place).glob(pattern))
    if major != "*":
        yield name  # one that torch has loaded, or one on the loader's path
    homes = filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda"))
    yield from inside([Path(torch.__file__).parent / "lib", *(Path(home, lib) for home in homes for lib in TOOLKITS)])
    known = find_library("nvrtc")
    if known and major in ("*", known.rpartition(".")[2]):
        yield known


@cache
def _find() -> _Found | str:
    """The library, or why there is none, as a clause: what the last of the candidates said."""
    problem, chosen = "", os.environ.get("FASTRNN_NVRTC")
    for path in _candidates():
        try:
            return undisturbed(partial(_opened, path))
        except CompileError as error:
            problem = f": {path}: {error}"
        except (OSError, AttributeError) as error:
            if chosen or os.sep in path:  # else a name that the loader need not know
                problem = f": {error}"
    if chosen:
        return f"FASTRNN_NVRTC ({chosen}) is no NVRTC{problem}"
    of = "" if torch.version.cuda is None else f", of CUDA {torch.version.cuda}"
    return f"there is no NVRTC (libnvrtc.so{of}), CUDA's compiler as a library{problem}"


def _opened(path: str) -> _Found:
    """The library at a path, or of a name that the loader knows, once it has compiled a kernel: one that does not find
    its headers says its version all the same.

    Raises:
        OSError: it does not load.
        AttributeError: it is another library.
        CompileError: it compiles nothing.
    """
    # Its headers, which it looks for on the loader's path alone: what is loaded already is found there.
    for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")) if os.sep in path else ():
        ctypes.CDLL(str(builtins))
    library, major, minor = ctypes.CDLL(path), ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    found = _Found(library, path, (major.value, minor.value))
    with _Program(found, TRIAL, "an empty kernel") as program:
        program.compile(STANDARD)
    return found


def why_missing() -> str | None:
    """Why nothing can be compiled, as a clause, or None if NVRTC is there."""
    found = _find()
    return found if isinstance(found, str) else None


def _load() -> _Found:
    found = _find()
    if isinstance(found, str):
        raise ImportError(found)
    return found


def version() -> str:
    """As "13.0". Raises ImportError where there is no NVRTC."""
    return _load().version


def path() -> str:
    """Where it is, or the name by which the loader found it. Raises ImportError where there is none."""
    return _load().path


def architectures() -> tuple[int, ...]:
    """What it compiles for, as 90 for sm_90. Raises ImportError where there is no NVRTC."""
    library, count = _load().library, ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(numbers)
    return tuple(numbers)


def kernel(source: str, title: str, expression: str, architecture: str) -> Compiled:
    """The one kernel of a source that `expression` instantiates, for `sm_<architecture>`.

    Raises:
        CompileError: NVRTC refuses it; `title` says what it was.
        ImportError: there is no NVRTC.
    """
    with _Program(_load(), source, title) as program:
        program.call("nvrtcAddNameExpression", expression.encode())
        program.compile(f"--gpu-architecture=sm_{architecture}", STANDARD)
        symbol = ctypes.c_char_p()
        program.call("nvrtcGetLoweredName", expression.encode(), ctypes.byref(symbol))
        assert symbol.value is not None
        return Compiled(symbol.value.decode(), program.text("nvrtcGetCUBIN"))


def ptx(source: str, title: str) -> str:
    """A source as PTX, for what every architecture shares; raises as `kernel` does."""
    with _Program(_load(), source, title) as program:
        program.compile(f"--gpu-architecture=compute_{min(architectures())}", STANDARD)
        return program.text("nvrtcGetPTX").rstrip(b"\0").decode()


class _Program:
    """A source, as long as NVRTC has it."""

    def __init__(self, found: _Found, source: str, title: str) -> None:
        self._library, self._version, self._title = found.library, found.version, title
        self._handle = ctypes.c_void_p()
        self._check(
            "nvrtcCreateProgram",
            self._library.nvrtcCreateProgram(
                ctypes.byref(self._handle), source.encode(), f"{title}.cu".encode(), 0, None, None
            ),
        )

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.nvrtcDestroyProgram(ctypes.byref(self._handle))

    def call(self, function: str, *arguments: object) -> None:
        """A function of NVRTC's whose first argument is the program."""
        self._check(function, getattr(self._library, function)(self._handle, *arguments))

    def compile(self, *options: str) -> None:
        """With NVRTC's options."""
        encoded = [option.encode() for option in options]
        status = self._library.nvrtcCompileProgram(
            self._handle, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded)
        )
        if status:
            log = self.text("nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            raise CompileError(f"NVRTC {self._version} does not compile {self._title}:\n{log[:SHOWN]}")

    def text(self, function: str) -> bytes:
        """What a function of NVRTC's writes, the size of which another one says."""
        size = ctypes.c_size_t()
        self.call(f"{function}Size", ctypes.byref(size))
        written = ctypes.create_string_buffer(size.value)
        self.call(function, written)
        return written.raw

    def _check(self, function: str, status: int) -> None:
        if status:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            said = self._library.nvrtcGetErrorString(status).decode()
            raise CompileError(f"{function} for {self._title}: {said}")
