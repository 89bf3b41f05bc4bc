"""What the GPU reaches at most: memory, products, and the latencies that bound a step of the recurrence.

They are what `docs/performance-gpu.md` divides by and adds up; the latencies come from kernels of the CUDA extension
that do nothing else (`csrc/ceilings.h`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import precision
from fastrnn import extension

REPEATS = 9
"""Each figure is the median of so many."""
COPIED_BYTES = 2 * 10**9
"""Forty times the second-level cache of an H100."""
SIZE = 8192
"""Rows and columns of the matrices that are multiplied: 1.1 TFLOP, a few milliseconds."""
CLUSTERS = (2, 8, 16)
GRIDS = (16, 64)
"""Numbers of blocks, and as many as there are multiprocessors beside."""
MOST_GRID = 160
"""More blocks than these the extension's kernel does not take."""


def measure(device: int = 0) -> dict[str, float | str]:
    """GB/s, TFLOP/s and nanoseconds, by names that tell which.

    Where there is no extension for CUDA, `no_latencies` says why; a device may also run no clusters of some size.
    """
    with torch.cuda.device(device):
        return {**_copy(), **_products(), **_latencies(device)}


def _copy() -> dict[str, float | str]:
    source = torch.randint(256, (COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = _seconds(partial(target.copy_, source))
    return {"copy_gb_per_s": 2 * COPIED_BYTES / seconds / 1e9}  # read and written


def _products() -> dict[str, float | str]:
    """Of random numbers: of zeros a product takes less power, and so runs at a higher clock."""
    found: dict[str, float | str] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        a, b = (torch.randn(SIZE, SIZE, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with precision.products("tf32" if name == "tf32" else "float32"):
            seconds = _seconds(partial(torch.mm, a, b, out=out))
        found[f"{name}_tflop_per_s"] = 2 * SIZE**3 / seconds / 1e12
    return found


def _seconds(work: Callable[[], object]) -> float:
    """The median time of `work` on the GPU, which is warm by then."""
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _latencies(device: int) -> dict[str, float | str]:
    """Of a step, which is an exchange of slices of a state or a barrier."""
    missing = extension.why_missing()
    if missing is None and extension.build().host:
        missing = "the extension is compiled for the CPU"
    if missing is not None:
        return {"no_latencies": missing}
    module = extension.load()
    limits, ceilings = module.limits(device), module.ceilings
    torch.cuda.synchronize()
    steps: dict[str, Callable[[], float]] = {"block_barrier_ns": partial(ceilings.block_barrier, device)}
    for blocks in CLUSTERS:
        if hasattr(ceilings, "cluster_exchange") and blocks <= limits["cluster"]:
            steps[f"cluster_exchange_{blocks}_ns"] = partial(ceilings.cluster_exchange, device, blocks)
    most = min(limits["multiprocessors"], MOST_GRID)
    for blocks in sorted({min(n, most) for n in (*GRIDS, most)}):
        steps[f"grid_exchange_{blocks}_ns"] = partial(ceilings.grid_exchange, device, blocks)
    found: dict[str, float | str] = {}
    for name, step in steps.items():
        step()  # loads the kernel
        found[name] = statistics.median(step() for _ in range(REPEATS))
    return found


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`."""
    yield "ceilings", measure
