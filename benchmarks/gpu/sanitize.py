"""Stage `sanitize`: the smallest layers under NVIDIA's compute-sanitizer, for bad memory accesses and races."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.checkout import ROOT

TOOLS = ("memcheck", "racecheck")
WAYS = ("block", "cluster", "grid")
SECONDS = 60
"""For one tool on one way."""
KEPT_LINES = 12
GIVES_UP = {
    "Device not supported": "the machine does not let compute-sanitizer at the device",
    "Internal Sanitizer Error": "compute-sanitizer itself failed",
}
"""What it prints where it is at fault, and what is told of it."""


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`."""
    for tool in TOOLS:
        for way in WAYS:
            yield f"{tool} {way}", partial(run, tool, way)


def run(tool: str, way: str) -> dict[str, Any]:
    """What the tool found, or why it could not look."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        return {"not run": "there is no compute-sanitizer"}
    options = json.dumps(
        {"backend": f"cuda {way}", "cells": ["lstm", "gru"], "precisions": ["bfloat16"], "small": True}
    )
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kns=fastrnn"]
    command += [sys.executable, "-m", "benchmarks.gpu.work", "benchmarks.gpu.smoke", options]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"FASTRNN_CUDA_WAY": way},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace").splitlines()
        return {"not run": f"it took more than {SECONDS} s", "log": said[-KEPT_LINES:]}
    lines = done.stdout.splitlines()
    told: dict[str, Any] = {"said": [line for line in lines if line.startswith("=========")][-KEPT_LINES:]}
    if done.returncode == 0:
        return told
    for sign, reason in GIVES_UP.items():
        if sign in done.stdout:
            return {"not run": reason, "log": lines[-KEPT_LINES:]}
    return told | {"failed": f"{tool} ended with {done.returncode}", "log": lines[-KEPT_LINES:]}
