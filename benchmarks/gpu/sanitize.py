"""Stage `sanitize`: small layers (`sanitized`) under NVIDIA's compute-sanitizer, for bad memory accesses and races."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.checkout import ROOT
from benchmarks.gpu.workers import message_in

GROUPS = (
    ("memcheck", ("block", "cluster", "grid")),
    ("racecheck", ("grid", "block")),
    ("racecheck", ("cluster",)),
)
"""A tool, and the ways that it looks at side by side: most of the time passes before the first launch. racecheck has
failed by itself on clusters, and is to take nothing else along."""
SECONDS = 35.0
"""For all groups: those of the stage."""
FOUND = 9
"""The exit status that the tool is to have where it found something."""
OPTIONS = {
    "memcheck": (),
    # A block of a cluster has eight barriers that asynchronous stores count on, which the tool need not guess then.
    "racecheck": ("--num-cuda-barriers", "8", "--force-blocking-launches"),
}
ENVIRONMENT = {"NV_COMPUTE_SANITIZER_MAX_RACECHECK_CLUSTER_RECORDS": "0"}
"""Without records of what a cluster's blocks access when others have ended, of which the tool may fail."""
KEPT_LINES = 12
GIVES_UP = {
    "Device not supported": "the machine does not let compute-sanitizer at the device",
    "Internal Sanitizer Error": "compute-sanitizer itself failed",
}
"""What it prints where it is at fault, whatever its exit status, and what is told of it."""


def cases(seconds: float = SECONDS) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. The groups have equal shares of the time; what one leaves is for those after it."""
    began = time.monotonic()
    for number, (tool, ways) in enumerate(GROUPS, 1):
        left = began + seconds * number / len(GROUPS) - time.monotonic()
        with ThreadPoolExecutor(len(ways)) as pool:
            runs = {way: pool.submit(run, tool, way, left) for way in ways}
            for way, begun in runs.items():
                yield f"{tool} {way}", begun.result


def run(tool: str, way: str, seconds: float) -> dict[str, Any]:
    """What the tool found, or why it could not look."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        return {"not run": "there is no compute-sanitizer"}
    options = json.dumps({"way": way, "seconds": seconds})
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--kernel-name", "kns=fastrnn"]
    command += [*OPTIONS[tool], sys.executable, "-m", "benchmarks.gpu.work", "benchmarks.gpu.sanitized", options]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"FASTRNN_CUDA_WAY": way},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace").splitlines()
        return {"not run": f"it took more than {seconds:.0f} s", "log": said[-KEPT_LINES:]}
    return judged(tool, done.stdout, done.returncode)


def judged(tool: str, text: str, status: int) -> dict[str, Any]:
    """What a run's output and exit status say. It is clean if layers were computed, and every one was right."""
    lines = text.splitlines()
    for sign, reason in GIVES_UP.items():
        if sign in text:
            return {"not run": reason, "log": lines[-KEPT_LINES:]}
    records = [message["record"] for line in lines if (message := message_in(line)) and "record" in message]
    right = [row for row in records if row.get("ok")]
    told: dict[str, Any] = {"said": [line for line in lines if line.startswith("=========")][-KEPT_LINES:]}
    told["right"] = len(right)
    wrong = [row for row in records if "failed" in row or row.get("ok") is False]
    if status == FOUND:
        problem = f"{tool} found something"
    elif wrong:
        problem = f"under {tool} {wrong[0]['case']}: {wrong[0].get('failed') or wrong[0]['wrong']}"
    elif status:
        problem = f"{tool} ended with {status}"
    elif not right:
        problem = f"{tool} saw no layer computed: {', '.join(str(row.get('reason')) for row in records)}"
    else:
        return told
    return told | {"failed": problem, "log": lines[-KEPT_LINES:]}
