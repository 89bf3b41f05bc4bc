"""What stage `sanitize` runs under compute-sanitizer: layers of few steps, with masks, that one way of the CUDA kernels
computes, in clusters and teams of several blocks, which exchange."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.smoke import Smoke, run
from tests.random_layers import Shape

UNITS = {"block": 40, "cluster": 200, "grid": 41}
"""By way. Of so few a cluster would be one block; of an odd number the grid stores one by one."""
SHAPE = Shape(steps=4, batch=9, inputs=4, lengths=True, resets=True)
CELLS = ("lstm", "gru")


def cases(
    way: str, device: str = "cuda", seconds: float | None = None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`. After so many seconds the process ends by itself: who started it can only end the tool."""
    if seconds is not None:
        signal.alarm(math.ceil(seconds))
    torch.set_num_threads(1)
    for cell in CELLS:
        one = Smoke(f"cuda {way}", cell, "bfloat16", replace(SHAPE, hidden=UNITS[way]))
        yield str(one), partial(run, one, device)
