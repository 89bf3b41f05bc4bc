"""Stage `prove`: the tests that compute on a GPU, by pytest, the most telling first."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.checkout import ROOT

SELECTIONS: dict[str, tuple[str, ...]] = {
    "gpu": ("test_gpu",),
    "cuda kernels": ("test_cuda_host", "test_cuda_grid", "test_cuda_modules"),
    "other cells": (
        "test_emitted_triton",
        "test_triton_other_cells",
        "test_triton_over_units",
        "test_triton_pointwise",
    ),
    "triton kernels": ("test_triton_ways", "test_triton_recurrent_dropout", "test_backends", "test_triton_activations"),
    "modules": (
        "test_module_values",
        "test_module_autograd",
        "test_packing",
        "test_return_states",
        "test_autocast",
        "test_determinism",
        "test_dependent_arguments",
        "test_unusual_tensors",
        "test_ops",
        "test_transforms",
    ),
    "compilers": ("test_compile", "test_errors", "test_random_configurations", "test_benchmarks_cuda"),
}
"""By name, files in the folders of tests/; of each what is marked `gpu`."""
SHORT = ("other cells",)
"""Of these not the exhaustive cases, whose kernels would take a minute to compile."""
DRY = {"cells": ("test_cells",)}
PARALLEL = ("-n", str(max(1, (os.cpu_count() or 1) - 2)), "--dist", "worksteal")
"""Most of the time goes into Triton's compilation."""
TIMEOUT = ("--timeout=120", "--timeout-method=thread")
"""Where pytest-timeout is there: a kernel that hangs then costs its worker alone."""
MOST_FAILURES = 40
KEPT_LINES = 60


def cases(dry: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`."""
    for name, files in (DRY if dry else SELECTIONS).items():
        options = ["-m", "gpu", *PARALLEL, *([] if name in SHORT else ["--exhaustive"])]
        yield f"pytest {name}", partial(run, files, [] if dry else options)


def run(files: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """The last line that pytest prints, and where it fails its last lines."""
    timeout = TIMEOUT if importlib.util.find_spec("pytest_timeout") else ()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *timeout, *options]
    paths = [path for path in (ROOT / "tests").glob("*/test_*.py") if path.stem in files]
    command += [f"--maxfail={MOST_FAILURES}", *(str(path) for path in sorted(paths))]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return {"said": lines[-1]}
    wrong = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return {"failed": f"pytest: {lines[-1]}", "tests": wrong[:MOST_FAILURES], "log": lines[-KEPT_LINES:]}
