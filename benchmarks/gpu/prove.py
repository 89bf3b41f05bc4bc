"""Stage `prove`: tests that only a GPU can pass, by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.checkout import ROOT

SELECTIONS: dict[str, list[str]] = {
    "gpu": ["tests/test_gpu.py"],
    "backends": ["-n", "14", "tests/test_backends.py", "-k", "triton or cuda"],
    "cuda kernels": ["-n", "14", "tests/test_cuda_host.py", "tests/test_cuda_grid.py", "-k", "cuda and not host"],
}
DRY = {"cells": ["tests/test_cells.py", "-k", "gru"]}
LAST_LINES = 15


def cases(dry: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`."""
    for name, arguments in (DRY if dry else SELECTIONS).items():
        yield f"pytest {name}", partial(run, arguments)


def run(arguments: list[str]) -> dict[str, Any]:
    """The end of what pytest says; a failure where it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = done.stdout.splitlines()
    told: dict[str, Any] = {"said": lines[-1:], "log": lines[-LAST_LINES:] if done.returncode else []}
    return told | ({"failed": f"pytest ended with {done.returncode}"} if done.returncode else {})
