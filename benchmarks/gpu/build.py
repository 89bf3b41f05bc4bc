"""Stage `build`: the extension, in place, for the GPU that is there, unless it was built for it of these sources.

In a dry run it is built for the CPU, where the tests keep it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import ROOT
from tests.backends import cuda_host

HOPPER = (9, 0)
"""Whose own instructions need code for 90a."""
EXTENSION = ROOT / "fastrnn" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
SOURCES_FILE = ROOT / "fastrnn" / "_C.sources.txt"
"""What it was built of, and which file was built, by their hashes. Times of change would not do: a copy of the checkout
may keep them, and an edit while it is built is older than the extension."""
HOST_FOLDER = ROOT / ".pytest_cache" / "d" / "fastrnn-host"
"""Of the extension for the CPU: as pytest names its cache's."""


def cases(host: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. With `host` the kernels are compiled for the CPU."""
    yield "extension", _run_for_host if host else run


def _run_for_host() -> dict[str, Any]:
    missing = cuda_host.missing()
    if missing is not None:
        return {"not built": missing}
    HOST_FOLDER.mkdir(parents=True, exist_ok=True)
    cuda_host.load(HOST_FOLDER)
    return {"built": "host"}


def run() -> dict[str, Any]:
    """What was built, or that nothing had to be. Raises setup.py's NotBuilt; what was printed is in the log."""
    architecture, sources = _architecture(), cuda_host.hash_of_sources()
    if is_built_of(sources) and _serves(architecture):
        return {"found": architecture}
    SOURCES_FILE.unlink(missing_ok=True)
    # By setup.py's functions: as a command it reads pyproject.toml, whose licence a setuptools before 77 refuses.
    setup = cuda_host.setup_module()
    os.environ["FASTRNN_CUDA_ARCHS"] = architecture
    os.chdir(ROOT)  # setup.py's paths begin there
    with tempfile.TemporaryDirectory() as objects:
        setup.compile_and_link(setup.find_sources(Path("csrc")), setup.find_nvcc(), Path(objects), EXTENSION)
    SOURCES_FILE.write_text(_record(sources))  # as they were before it began
    return {"built": architecture}


def is_built_of(sources: str) -> bool:
    """Whether the extension that is there was built here of sources of this hash."""
    return EXTENSION.exists() and SOURCES_FILE.exists() and SOURCES_FILE.read_text() == _record(sources)


def _record(sources: str) -> str:
    return f"{sources} {hashlib.sha256(EXTENSION.read_bytes()).hexdigest()}\n"


def _architecture() -> str:
    """As FASTRNN_CUDA_ARCHS names that of the current GPU."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if (major, minor) == HOPPER else ''}"


def _serves(architecture: str) -> bool:
    """Whether the extension that is there loads and has code for it, asked in a process of its own."""
    ask = "from fastrnn import extension as e; b = e.build(); print('' if b.host else ' '.join(b.architectures))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False)
    return architecture in done.stdout.split()
