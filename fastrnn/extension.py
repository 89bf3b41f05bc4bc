"""The CUDA extension `fastrnn._C`: whether it is there and why not, what it was built for, which devices it finds.

And whether `fastrnn._stream` is there, by which streams are called. Nothing is loaded before the first call. `csrc/`
holds the source of both and `setup.py` builds them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from fastrnn.first_use import undisturbed

PACKAGE = Path(__file__).resolve().parent
NAME = "fastrnn._C"
REASON_FILE = PACKAGE / "_C.missing.txt"
"""What setup.py leaves where it builds no extension: the reason, as a clause."""

DOOR = "fastrnn._stream"
DOOR_REASON_FILE = PACKAGE / "_stream.missing.txt"

COMPUTE_MAJOR, COMPUTE_MINOR = 1000, 10
"""How CUDA writes a version as one number: 13010 is 13.1."""


@dataclass(frozen=True)
class Build:
    """What the extension was compiled for and with."""

    architectures: tuple[str, ...]
    """as nvcc names them, "90a" for sm_90a"""
    cuda: str
    """the version of the toolkit and of the runtime within the extension, as "13.0"; "none" where `host`"""
    host: bool = False
    """whether its kernels are compiled for the CPU, to be tested there"""


@dataclass(frozen=True)
class Device:
    """A GPU as the extension's CUDA runtime sees it."""

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory_per_block: int
    """bytes, the most that a kernel can ask for"""
    architecture: str | None
    """whose code it ran when it was tried, as "90"; None where it ran none"""
    problem: str | None
    """why it ran none, in CUDA's words"""


def _found(name: str, reason_file: Path) -> ModuleType | str:
    """A compiled module, or why it cannot be imported, as a clause."""
    try:
        return undisturbed(lambda: importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            return f"it does not load: {error}"
    except ImportError as error:
        return f"it does not load: {error}"
    if reason_file.exists():
        return f"it was not built: {reason_file.read_text().strip()}"
    if (PACKAGE.parent / "setup.py").exists():
        return "this is a source checkout in which it was not built (pip install -e . builds it here)"
    return "it is not among the installed files"


@cache
def _load() -> ModuleType | str:
    """The extension, or why it cannot be imported, as a clause."""
    return _found(NAME, REASON_FILE)


def why_no_door() -> str | None:
    """Why streams are called by the door in Python, as a clause, or None if the one in C can be imported."""
    found = _found(DOOR, DOOR_REASON_FILE)
    return found if isinstance(found, str) else None


def why_missing() -> str | None:
    """Why there is no extension, as a clause, or None if it can be imported."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def load() -> ModuleType:
    """The extension. Raises ImportError, saying why, where there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise ImportError(f"no CUDA extension ({NAME}): {loaded}", name=NAME)
    return loaded


def build() -> Build:
    """What the extension was built for. Raises ImportError where there is none."""
    module = load()
    cuda = "none" if module.host else _version(module.runtime_version)
    return Build(tuple(module.architectures.split(":")), cuda, module.host)


def devices() -> list[Device]:
    """The GPUs that the extension can address, each tried with a small kernel; a context is made on each.

    Raises:
        ImportError: there is no extension.
        RuntimeError: no driver, one too old, no GPU, or kernels compiled for the CPU; the message says which, in words
            of its own and CUDA's.
    """
    module = load()
    if module.host:
        raise RuntimeError("its kernels are compiled for the CPU (FASTRNN_CUDA=host)")
    try:
        count = module.device_count()
    except RuntimeError as error:
        raise RuntimeError(_explained(str(error), module.driver_version(), module.runtime_version)) from None
    return [_device(module, index) for index in range(count)]


def _device(module: ModuleType, index: int) -> Device:
    architecture: str | None = None
    problem: str | None = None
    try:
        architecture = str(module.probe(index) // COMPUTE_MINOR)
    except RuntimeError as error:
        problem = str(error)
    return Device(index=index, **module.device(index), architecture=architecture, problem=problem)


def _explained(error: str, driver: int, runtime: int) -> str:
    """CUDA's own `error`, preceded by what it means where the versions tell: CUDA says the same for both."""
    if driver == 0:
        return f"no NVIDIA driver is installed ({error})"
    if driver // COMPUTE_MAJOR < runtime // COMPUTE_MAJOR:
        supported, needed = _version(driver), _version(runtime)
        return f"the driver supports CUDA {supported}, the extension needs {needed}: update the driver ({error})"
    return error


def _version(number: int) -> str:
    return f"{number // COMPUTE_MAJOR}.{number % COMPUTE_MAJOR // COMPUTE_MINOR}"
