"""Cases with planted faults, for the tests of `benchmarks.gpu`: what a job of it may do wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

FOREVER = 600


def _fine() -> dict[str, Any]:
    return {"value": 1}


def _raises() -> dict[str, Any]:
    raise ValueError("planted")


def _hangs() -> dict[str, Any]:
    time.sleep(FOREVER)
    return {}


def _dies() -> dict[str, Any]:
    print("last words", flush=True)
    os._exit(3)


def _prints_rubbish() -> dict[str, Any]:
    for line in (b'@fastrnn {"record"', b"@fastrnn [1]", b'@fastrnn {"begin": 3}', b"\x00\xff"):
        os.write(1, line + b"\n")
    return {"value": 2}


def _leaves_children() -> dict[str, Any]:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
    return {"child": child.pid}


FAULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fine": _fine,
    "raises": _raises,
    "hangs": _hangs,
    "dies": _dies,
    "prints rubbish": _prints_rubbish,
    "leaves children": _leaves_children,
}


def cases(names: list[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `benchmarks.gpu.work`. Names may have a number after them, to tell repetitions apart."""
    for name in names:
        yield name, FAULTS[name.rstrip(" 0123456789")]
