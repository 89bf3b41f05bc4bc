"""Where and with what a measurement was taken."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone

import torch

import fastrnn
from benchmarks import cuda
from benchmarks.checkout import ROOT
from benchmarks.peers.contender import MODEL_PACKAGE
from fastrnn.__main__ import cpu_model, package_version

PACKAGES = ("torch", "numba", "llvmlite", "numpy")
CUDA_PACKAGES = ("torch", "triton", "torchrl", "numpy")


def describe(device: str = "cpu", peers: Sequence[str] = ()) -> dict[str, object]:
    """The machine, the software and the moment, as plain values for a report and for JSON, of a run on `device`.

    `peers` are the packages of the peers.
    """
    packages = (*(CUDA_PACKAGES if device == "cuda" else PACKAGES), *((MODEL_PACKAGE, *peers) if peers else ()))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        **(cuda.describe() if device == "cuda" else {}),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {"fastrnn": fastrnn.__version__, **{name: package_version(name) for name in packages}},
        "commit": git_commit(),
    }


def available_cores() -> int:
    """How many logical processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str | None:
    """The checkout's commit, with "-dirty" after it if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
