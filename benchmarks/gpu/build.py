"""Stage `build`: the extension, in place, for the GPU that is there, unless it was built for it of these sources.

In a dry run it is built for the CPU, where the tests keep it.
"""

from __future__ import annotations

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
    architecture = _architecture()
    built = sorted((ROOT / "fastrnn").glob("_C.*.so"), key=_age)
    if built and _age(built[0]) > max(map(_age, (ROOT / "csrc").rglob("*.*"))) and _serves(architecture):
        return {"found": architecture}
    # By setup.py's functions: as a command it reads pyproject.toml, whose licence a setuptools before 77 refuses.
    setup, target = cuda_host.setup_module(), ROOT / "fastrnn" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    os.environ["FASTRNN_CUDA_ARCHS"] = architecture
    os.chdir(ROOT)  # setup.py's paths begin there
    with tempfile.TemporaryDirectory() as objects:
        setup.compile_and_link(setup.find_sources(Path("csrc")), setup.find_nvcc(), Path(objects), target)
    return {"built": architecture}


def _architecture() -> str:
    """As FASTRNN_CUDA_ARCHS names that of the current GPU."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if (major, minor) == HOPPER else ''}"


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _serves(architecture: str) -> bool:
    """Whether the extension that is there loads and has code for it, asked in a process of its own."""
    ask = "from fastrnn import extension as e; b = e.build(); print('' if b.host else ' '.join(b.architectures))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False)
    return architecture in done.stdout.split()
