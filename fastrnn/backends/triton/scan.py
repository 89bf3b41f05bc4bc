"""Whether a recurrence without a product is computed as a scan over chunks of steps; see `kernels/scan.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from fastrnn.backends.layer import Layer
from fastrnn.backends.triton.configurations import STAGES
from fastrnn.cells.compiler.linearity import Linear

BYTES_IN_FLIGHT = 32 * 1024
"""Of a multiprocessor, that memory takes to be busy: bandwidth times latency. An H200 moves 4.2e12 bytes a second and
takes some 0.8 µs for one, which is 25 KiB for each of its 132; an A100 asks for half of it, a B200 for some 45."""
SHORTEST = 32
"""Steps of a chunk: fewer take hardly longer than a chunk's beginning, a launch and what is composed."""
FEWEST = 4
"""Chunks. Both launches of a scan take a chunk's steps, one after another, and both read what a step reads: with four
chunks half of the steps, and up to twice the bytes."""
MOST_STATES = 4
"""Of a summary, whose matrix has their square."""
INTERPRETED_MULTIPROCESSORS = 132


def chunk_steps(layer: Layer, linear: Linear | None, moved: int) -> int | None:
    """How many steps a chunk of a scan has; None where one program of a tile computes all steps.

    `linear` is the recurrence, where it is linear, and `moved` how many bytes a step of a unit and sequence reads and
    writes. While memory takes for one byte, a program moves what it fetches ahead. There are as many chunks as make
    that all that memory can move, but no more than a chunk has steps: each composes the summaries of all before it.
    """
    if linear is None or not 0 < len(linear.states) <= MOST_STATES:
        return None
    steps, batch, _ = layer.x.shape
    ahead = moved * (STAGES - 1) * batch * layer.hidden_size * layer.directions
    wanted = -(-_multiprocessors(layer.x.device) * BYTES_IN_FLIGHT // max(ahead, 1))
    chunk = max(SHORTEST, -(-steps // wanted))
    while chunk * chunk < steps:
        chunk += 1
    return chunk if chunk * (FEWEST - 1) < steps else None


def constants(linear: Linear | None) -> dict[str, Any]:
    """What kernels know of a recurrence when they are compiled: where in their tuples the entries of matrices are."""
    if linear is None:
        return {"FACTORS": (), "PRODUCTS": ()}
    count = range(len(linear.states))
    return {
        name: tuple(entries.index((i, j)) if (i, j) in entries else -1 for i in count for j in count)
        for name, entries in (("FACTORS", linear.entries), ("PRODUCTS", linear.entries_of_products))
    }


def values_of_summary(linear: Linear) -> int:
    """How many values a summary is, of each unit and sequence."""
    return len(linear.entries_of_products) + len(linear.states)


def _multiprocessors(device: torch.device) -> int:
    return INTERPRETED_MULTIPROCESSORS if device.type == "cpu" else _of_gpu(device.index or 0)


@cache
def _of_gpu(index: int) -> int:
    count: int = torch.cuda.get_device_properties(index).multi_processor_count
    return count
