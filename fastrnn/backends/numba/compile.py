"""Kernels: compiled when first needed, once, and kept on disk.

The directory's name is a hash of all kernel sources, the versions of Numba and llvmlite, and the CPU that is compiled
for: Numba's own cache sees no change in a function that the cached one calls, and would serve stale kernels.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import pickle
import platform
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastrnn.backends.numba.arguments import FIELDS
from fastrnn.backends.numba.geometry import CHUNK_ROWS, PANEL_VECTORS, Geometry, panel_units
from fastrnn.cells import CELLS

SOURCES = Path(__file__).parent
HOST_SOURCES = ("arguments.py", "compile.py", "geometry.py")
"""Sources outside kernels/ that a kernel depends on."""
DIGEST_LENGTH = 16
SHARED = ("pack", "weights")
"""Tasks whose kernels serve every cell."""


class Kernel(NamedTuple):
    """A compiled kernel."""

    address: int
    """of a C function void (*)(void *) that takes blocks of arguments"""
    geometry: Geometry


_lock = threading.RLock()
_kernels: dict[tuple[str, str, torch.dtype], Kernel] = {}


def _renew_lock() -> None:
    """In a forked child: a thread that held the lock is not there to release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def kernel(cell: str, task: str, dtype: torch.dtype) -> Kernel:
    """The kernel for a cell's `task` ("forward", "unpacked", "backward"), or for one of `SHARED`, in `dtype`.

    The first call in a process loads it from disk, or compiles it and says so on stderr. Thread-safe.
    """
    key = ("" if task in SHARED else cell, task, dtype)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = _build(*key)
    return found


def _build(cell: str, task: str, dtype: torch.dtype) -> Kernel:
    import numba
    from numba.core.ccallback import CFunc

    from fastrnn.backends.numba.kernels import record, simd, tile
    from fastrnn.backends.numba.kernels.backward import backward_kernel
    from fastrnn.backends.numba.kernels.cells import CELL_KERNELS
    from fastrnn.backends.numba.kernels.forward import forward_kernel
    from fastrnn.backends.numba.kernels.pack import pack_kernel
    from fastrnn.backends.numba.kernels.unpacked import unpacked_kernel
    from fastrnn.backends.numba.kernels.weights import weights_kernel

    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]
    gates = len(CELLS[cell].gates) if cell else 1
    name = "_".join(part for part in (cell, task, number.name) if part)
    if task == "pack":
        function = pack_kernel(number)
    elif task == "weights":
        function = weights_kernel(PANEL_VECTORS, CHUNK_ROWS, number)
    elif task == "forward":
        function = forward_kernel(CELL_KERNELS[cell], gates, panel_units(gates), PANEL_VECTORS, number)
    elif task == "unpacked":
        function = unpacked_kernel(CELL_KERNELS[cell], gates, number)
    else:
        function = backward_kernel(CELL_KERNELS[cell], PANEL_VECTORS, number)
    _name_apart(function, name)
    compiled = CFunc(function, ([record.pointer_to_blocks(task)], numba.types.void), {}, {"error_model": "numpy"})
    compiled._cache = _KernelFile(name)
    compiled.compile()
    panel_widths = {PANEL_VECTORS}
    if task == "forward":
        panel_widths.add(gates * panel_units(gates))
    geometry = Geometry(
        lanes=simd.register_bits() // number.bitwidth,
        itemsize=number.bitwidth // 8,
        rows=max(tile.tile_rows(width) for width in panel_widths),
        tile=max(tile.tile_rows(width) * width for width in panel_widths),
    )
    return Kernel(compiled.address, geometry)


def _name_apart(function: Any, name: str) -> None:
    """Puts the kernel's name into those of the functions that were made for it alone, which become symbols.

    Numba tells functions of one name apart by a number that starts at one in every process. Kernels that two processes
    compiled would share symbols in a third one that loads both, and one cell would run the other's code.
    """
    for cell in function.__closure__ or ():
        inner = getattr(cell.cell_contents, "py_func", None)
        if inner is not None and "<locals>" in inner.__qualname__ and not inner.__qualname__.startswith(name):
            inner.__qualname__ = f"{name}.{inner.__qualname__}"
            _name_apart(inner, name)


class _KernelFile:
    """One kernel's place on disk, in the shape of Numba's function cache."""

    def __init__(self, name: str) -> None:
        directory = cache_directory()
        self._name = name
        self._path = None if directory is None else directory / f"{name}.py{sys.version_info[0]}{sys.version_info[1]}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        from numba.core.compiler import CompileResult

        target_context.refresh()
        if self._path is not None:
            try:
                return CompileResult._rebuild(target_context, *pickle.loads(self._path.read_bytes()))
            except FileNotFoundError:
                pass
            except Exception as error:  # a damaged file can raise anything
                warnings.warn(f"fastrnn: {self._path} is unreadable and will be replaced: {error}", stacklevel=2)
        kept = "not kept" if self._path is None else f"kept in {self._path.parent}"
        title = self._name.replace("_", " ")
        print(f"fastrnn: compiling the kernel {title}, once; it is {kept}", file=sys.stderr, flush=True)
        return None

    def save_overload(self, sig: Any, result: Any) -> None:
        from numba.core.serialize import dumps

        if self._path is None:
            return
        try:
            with tempfile.TemporaryDirectory(dir=self._path.parent) as directory:
                whole = Path(directory) / self._path.name
                whole.write_bytes(dumps(result._reduce()))
                os.replace(whole, self._path)
        except OSError as error:
            warnings.warn(f"fastrnn: cannot keep a compiled kernel: {error}", stacklevel=2)


def _sources() -> bytes:
    """What kernels are made from, and what they agree with their callers on."""
    files = [*sorted((SOURCES / "kernels").glob("*.py")), *(SOURCES / name for name in HOST_SOURCES)]
    cells = [(cell.name, cell.gates, cell.saved) for cell in CELLS.values()]
    texts = [file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in files]
    return b"".join([*texts, repr((FIELDS, cells)).encode()])


_SOURCES = _sources()
"""As they were when this module was imported: a later change on disk, by an update of the package, say, is not run."""


def _fingerprint() -> str:
    """A hash of everything that a compiled kernel depends on."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    digest = hashlib.sha256(_SOURCES)
    machine = cpu_target.target_context.codegen().magic_tuple()
    digest.update(repr((numba.__version__, llvmlite.__version__, platform.python_version(), machine)).encode())
    return digest.hexdigest()[:DIGEST_LENGTH]


@cache
def cache_directory() -> Path | None:
    """Where kernels are kept; None, with a warning, if no place can be written to.

    FASTRNN_CACHE_DIR, else NUMBA_CACHE_DIR, else the user's cache directory; where that cannot be written, a directory
    of the user's own among the temporary files.
    """
    chosen = os.environ.get("FASTRNN_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        base = Path(chosen)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "fastrnn"
    name = f"kernels-{_fingerprint()}"
    if _make_private(base / name):
        return base / name
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    fallback = Path(tempfile.gettempdir()) / f"fastrnn-{user}"
    usable = _make_private(fallback) and _make_private(fallback / name)
    where = f"are kept in {fallback}" if usable else "are compiled anew in every process"
    warnings.warn(f"fastrnn: cannot write to {base}: kernels {where}; set FASTRNN_CACHE_DIR", stacklevel=2)
    return fallback / name if usable else None


def _make_private(directory: Path) -> bool:
    """Whether `directory` exists, made if need be, belongs to this user and can be written to: its files are run."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and directory.stat().st_uid != os.getuid():
            return False
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True
