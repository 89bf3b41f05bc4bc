"""Measuring on a GPU: whether there is one, its time, its L2 cache, its memory, and what it is.

Two times are taken of a run, since a short call may be bound by the host that launches it:

- *Eager*: events around a burst of calls, as a program makes them. It includes the launch gaps, and they are not
  hidden: nothing else is queued in between. For data that fit into L2 the calls rotate over copies of x and dy, so
  that inputs come from memory. Clearing L2 in between would give the host time to run ahead, and hide a part of the
  gaps that depends on the case.
- *Graph*: a CUDA graph of one call, replayed, which the host launches at once. Here L2 is cleared before each replay,
  outside its pair of events: that the host runs ahead meanwhile is welcome. Rotating would take a graph of as many
  calls as copies, up to millions of kernels where one is launched a step.
"""

from __future__ import annotations

import gc
import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FALLBACK_L2_BYTES = 128 * 2**20
"""For a GPU that does not say, a generous guess: too much costs some memory, too little would mislead."""
L2_FACTOR = 2
"""What goes by between two uses of an input, in sizes of L2: no replacement policy keeps half of it."""
MAX_COPIES = 4096
"""Tiny inputs would take millions; above 30 kB each, on an L2 of 60 MB, this bound does not act."""
MIN_TF32_CAPABILITY = (8, 0)
"""Ampere, the first with TF32."""
CAPTURE_WARM_UP_CALLS = 3
"""On another stream before a capture, as torch's notes on CUDA graphs ask: workspaces are then there."""

Run = Callable[[], object]


class NotCaptured(Exception):
    """A run could not be captured as a CUDA graph, and why."""


def why_not() -> str | None:
    """Why nothing can be measured on a GPU here, or None if it can."""
    if torch.version.hip is not None:
        return f"torch {torch.__version__} is built for ROCm"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        first_line, *_ = str(error).split("\n")
        return f"torch finds no GPU: {first_line}"
    return "torch finds no GPU"


def has_tf32() -> bool:
    """Whether the current GPU multiplies in TF32."""
    return torch.cuda.get_device_capability() >= MIN_TF32_CAPABILITY


def l2_bytes(properties: Any = None) -> int:
    """The size of L2 by `properties`, or by the current GPU's, or FALLBACK_L2_BYTES."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device()) if properties is None else properties
    return int(getattr(properties, "L2_cache_size", 0)) or FALLBACK_L2_BYTES


def copies(inputs: Sequence[Tensor], l2: int) -> int:
    """How many sets of `inputs` together exceed L2_FACTOR times `l2` bytes.

    1 where a single set does not fit into L2, and at most MAX_COPIES.
    """
    size = max(1, sum(tensor.nbytes for tensor in inputs))
    return 1 if size > l2 else min(MAX_COPIES, L2_FACTOR * l2 // size + 1)


def burst(function: Run, calls: int, event: Callable[..., Any] | None = None) -> float:
    """The burst of eager calls by the GPU's clock, in seconds, launch gaps included. The queue is empty before."""
    event = event or torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return milliseconds(start, end) / 1e3


def cold_burst(clear: Run, event: Callable[..., Any] | None = None) -> Callable[[Run, int], float]:
    """A burst that calls `clear` before each call, outside its time: the seconds are the sum of the calls'."""
    make = event or torch.cuda.Event

    def measure(function: Run, calls: int) -> float:
        pairs = [(make(enable_timing=True), make(enable_timing=True)) for _ in range(calls)]
        for start, end in pairs:
            clear()
            start.record()
            function()
            end.record()
        pairs[-1][1].synchronize()
        return math.fsum(milliseconds(start, end) for start, end in pairs) / 1e3

    return measure


def milliseconds(start: Any, end: Any) -> float:
    """Between two events."""
    return float(start.elapsed_time(end))


def l2_clearer() -> Run:
    """A function that fills L2 with other data, of L2_FACTOR times its size."""
    other = torch.empty(L2_FACTOR * l2_bytes(), dtype=torch.uint8, device="cuda")
    return other.zero_


def capture(run: Run) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one call. Raises NotCaptured."""
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(CAPTURE_WARM_UP_CALLS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:
        raise NotCaptured(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return graph


def peak_bytes(run: Run, device: Any = None) -> int:
    """By how many bytes one call raises what torch has allocated on the GPU, at its highest.

    It counts temporaries, what is saved for backward, gradients and outputs, and cuDNN's workspace; not weights,
    inputs or copies, which are there before, nor what goes by torch's allocator. `run` was called before.
    """
    cuda = device or torch.cuda
    gc.collect()
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before: int = cuda.memory_allocated()
    run()
    cuda.synchronize()
    peak: int = cuda.max_memory_allocated()
    return max(0, peak - before)


def describe() -> dict[str, object]:
    """The GPU, its driver, the libraries and the settings that decide how torch computes."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes(properties),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "settings": {
            "cudnn.enabled": torch.backends.cudnn.enabled,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "allow_fp16_reduced_precision_reduction": bool(
                torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
            ),
            "allow_bf16_reduced_precision_reduction": bool(
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            ),
        },
    }


def driver() -> str | None:
    """The driver's version by nvidia-smi; None where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[0] if lines else None
