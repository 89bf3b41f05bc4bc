"""A job: the process that runs the cases of a stage, one after the other, and reports each by a line of output.

    python -m benchmarks.gpu.work MODULE OPTIONS [AFTER]

MODULE has `cases`, to which OPTIONS, JSON, are passed. AFTER is the name of a case: it and those before it are left
out.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

MARK = "@fastrnn "
"""Begins a line that is meant for `workers`; any other line is what a library or a compiler had to say."""
STUCK = 70
"""The exit status of a job whose GPU answers no more after a failed case: only a new process goes on."""

Cases = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
"""A stage's cases, in order: a name, and what runs it and returns what is to be told."""


def send(**message: Any) -> None:
    print(MARK + json.dumps(message), flush=True)


def run(cases: Cases, after: str | None = None) -> int:
    """Runs the cases that come after the one named `after`; returns the exit status."""
    for name, case in cases:
        if after is not None:
            after = None if name == after else after
            continue
        send(begin=name)
        began = time.perf_counter()
        try:
            values = case()
        except Exception as error:
            traceback.print_exc()
            values = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        send(record={"case": name, "seconds": round(time.perf_counter() - began, 3), **values})
        if "failed" in values and not _gpu_answers():
            return STUCK
    return 0


def _gpu_answers() -> bool:
    """Whether the GPU can still be used: after some errors, no call of the process succeeds any more."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main(arguments: list[str]) -> int:
    module, options = importlib.import_module(arguments[0]), json.loads(arguments[1])
    return run(module.cases(**options), arguments[2] if len(arguments) > 2 else None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
