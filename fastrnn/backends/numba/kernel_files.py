"""Where compiled kernels are kept on disk, and how they are read and written.

The directory's name is a hash of all kernel sources, the versions of Numba and llvmlite, and the CPU that is compiled
for: Numba's own cache sees no change in a function that the cached one calls, and would serve stale kernels. A file
holds a kernel as Numba keeps it, a pickle with machine code in it, after a digest of that and of the kernel's name.
`trust.py` tells whose files are read.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from fastrnn import cache, trust
from fastrnn.backends.notices import notice, say
from fastrnn.backends.numba.arguments import FIELDS

SOURCES = Path(__file__).parent
HOST_SOURCES = ("arguments.py", "compile.py", "geometry.py")
"""Sources outside kernels/ that a kernel depends on."""
NAME_LENGTH = 16
"""digits of the hash that a directory is named by"""


class Places(NamedTuple):
    """Directories of kernels."""

    read: tuple[Path, ...]
    """where a kernel is looked for, in this order"""
    kept: Path | None
    """where a new one is written, the last of `read`; None if nowhere"""


class KernelFile:
    """One kernel's place on disk, in the shape of Numba's function cache."""

    def __init__(self, name: str, title: str) -> None:
        self._title = title
        self._file = f"{name}.py{sys.version_info[0]}{sys.version_info[1]}"
        self._places = places()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel from disk; None, which is said, if it is to be compiled."""
        from numba.core.compiler import CompileResult

        target_context.refresh()
        for directory in self._places.read:
            path = directory / self._file
            try:
                trust.directory(directory)  # again: since then a cleaner of temporary files may have taken it away
                return CompileResult._rebuild(target_context, *pickle.loads(read(path)))
            except FileNotFoundError:
                pass
            except Exception as error:  # what an unknown version has written can raise anything
                notice(f"{path} is not used: {error}")
        kept = "not kept" if self._places.kept is None else f"kept in {self._places.kept}"
        say(f"compiling the kernel {self._title}, once; it is {kept}")
        return None

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keeps a compiled kernel. That it cannot be kept is said, and harms nothing."""
        from numba.core.serialize import dumps

        if self._places.kept is None:
            return
        try:
            write(trust.directory(self._places.kept) / self._file, dumps(result._reduce()))
        except OSError as error:
            notice(f"cannot keep a compiled kernel: {error}")


def read(path: Path) -> bytes:
    """What `write` has written; raises as `cache.read_sealed` does. Numba, too, can crash when it unpickles damage."""
    return cache.read_sealed(path, str(_fingerprint()))


def write(path: Path, payload: bytes) -> None:
    """Writes a file that `read` reads."""
    cache.write_sealed(path, payload, str(_fingerprint()))


@functools.cache
def places() -> Places:
    """Where kernels are kept: FASTRNN_CACHE_DIR, else NUMBA_CACHE_DIR, else the user's cache directory.

    Where that cannot be written, a directory of the user's own among the temporary files; kernels that are there, in a
    container's image, say, are read first. Warns if what is there is not read either.
    """
    fingerprint = _fingerprint()
    if fingerprint is None:
        notice("kernels are compiled anew in every process: fastrnn is installed without its sources")
        return Places((), None)
    name = f"kernels-{fingerprint}"
    read: tuple[Path, ...] = ()
    trouble, remedy = "", "set FASTRNN_CACHE_DIR"
    base = cache.base()
    try:
        directory = trust.directory(base.expanduser() / name, make=True)
        read = (directory,)
        if _can_write(directory):
            return Places(read, directory)
    except trust.UntrustedError as error:
        trouble = f"{base} is not trusted, because {error}"
        remedy += ", or FASTRNN_TRUST_CACHE_DIR=1 if you trust all who can write there"
    except (OSError, RuntimeError):  # RuntimeError: this user has no home directory
        trouble = f"cannot write to {base}"
    fallback, kept = cache.fallback(), None
    if fallback is not None:
        try:
            directory = trust.directory(fallback / name, make=True)
            if _can_write(directory):
                read, kept = (*read, directory), directory
        except OSError:  # so there is none
            pass
    if trouble:
        where = "are compiled anew in every process" if kept is None else f"are kept in {fallback}"
        notice(f"{trouble}: kernels {where}; {remedy}")
    return Places(read, kept)


def _can_write(directory: Path) -> bool:
    """Whether files can be made in `directory`."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True


def _sources() -> bytes | None:
    """What kernels are made from, and what they agree with their callers on; None if it is installed compiled only."""
    files = [*sorted((SOURCES / "kernels").glob("*.py")), *(SOURCES / name for name in HOST_SOURCES)]
    try:
        texts = [file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in files]
    except OSError:
        return None
    return b"".join([*texts, repr(FIELDS).encode()])


_SOURCES = _sources()
"""As they were when this module was imported: a later change on disk, by an update of the package, say, is not run."""


def _fingerprint() -> str | None:
    """A hash of everything that a compiled kernel depends on, if that is known."""
    if _SOURCES is None:
        return None
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    digest = hashlib.sha256(_SOURCES)
    machine = cpu_target.target_context.codegen().magic_tuple()
    digest.update(repr((numba.__version__, llvmlite.__version__, platform.python_version(), machine)).encode())
    return digest.hexdigest()[:NAME_LENGTH]
