"""The gradients of a layer's weights and biases from those of its gates: one launch of own tiles.

It takes layers without lengths, resets and recurrent dropout, whose states before each step lie where the states after
each step do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.backends.addresses import address
from fastrnn.backends.layer import Layer
from fastrnn.backends.numba import launch, workspace
from fastrnn.backends.numba.arguments import FIELDS, WeightsAddresses, WeightsShape
from fastrnn.backends.numba.compile import Kernel, kernel
from fastrnn.backends.numba.extents import Extents, extents
from fastrnn.backends.numba.geometry import CHUNK_ROWS, PANEL_VECTORS, Arena, divide_up
from fastrnn.backends.numba.sharing import SECONDS_PER_PRODUCT, Pace
from fastrnn.backends.numba.split import WORK_PER_THREAD
from fastrnn.backends.numba.tensors import cast, dense, direction_address
from fastrnn.cells.contract import Run
from fastrnn.cells.known import KNOWN

SCHEDULES = 512
"""How many are kept."""
RESULT_BYTES = 768 * 1024
"""Of a task: they stay in a second-level cache of 2 MB beside a chunk of rows."""
LARGEST_BESIDE_MKL = 256
"""Inputs and units: beyond, Intel's library takes 0.8 to 1.0 of the time of these tiles on Intel's own processors,
below it 1.0 to 1.8 times as long. On AMD's it was seen to reach half of their speed."""
_COUNTER = FIELDS["weights"].index("counter")


class _Job(NamedTuple):
    """One product, and where its matrices begin, counted in elements: those of one direction."""

    direction: int
    recurrent: bool
    """whether its result is d w_hh, else d w_ih"""
    shape: WeightsShape
    early_d: int
    x: int
    """in ys where it is recurrent"""
    d: int
    first_row: int
    """of the gradient, of the first head's"""
    first_bias: int
    of: Extents
    """kept for its table"""


class _Schedule(NamedTuple):
    """What depends on sizes only."""

    kernel: int
    threads: int
    jobs: list[_Job]
    memory: int
    """bytes"""
    pace: Pace


def serves(layer: Layer) -> bool:
    """Whether these are the layers that it takes, and it is fast for them."""
    masks = (layer.lengths, layer.resets, layer.recurrent_mask)
    if any(mask is not None for mask in masks) or layer.projected or 0 in layer.x.shape:
        return False
    return max(layer.x.shape[2], layer.hidden_size) <= LARGEST_BESIDE_MKL or not _has_fast_products()


@cache
def _has_fast_products() -> bool:
    """Whether torch multiplies matrices by Intel's library, on one of Intel's processors."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def weight_gradients(layer: Layer, dgates: Tensor, ys: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """d w_ih, d w_hh and the biases' gradients, as in `Backward`, from dgates (directions, T, B, W·H) and ys.

    dgates and ys (T, B, directions·H) are dense and in the state dtype.
    """
    dtype, storage = layer.state_dtype, layer.x.dtype
    x, h0 = dense(layer.x, dtype), dense(layer.states0[0], dtype)
    results = [[w.new_empty(w.shape, dtype=dtype) for w in group] for group in (layer.w_ih, layer.w_hh, layer.biases)]
    d_w_ih, d_w_hh, d_biases = results
    cut = _schedule(
        layer.cell_name,
        dtype,
        tuple(x.shape),
        layer.hidden_size,
        layer.heads,
        layer.directions,
        layer.reverse,
        launch.available_threads(),
    )
    memory = workspace.take(cut.memory)
    item = x.itemsize
    blocks = []
    for job in cut.jobs:
        d = direction_address(dgates, job.direction)
        to, source = (d_w_hh, ys) if job.recurrent else (d_w_ih, x)
        d_bias = 0
        if d_biases:
            d_bias = d_biases[2 * job.direction + job.recurrent].data_ptr() + job.first_bias * item
        addresses = WeightsAddresses(
            counter=0,
            memory=memory.data_ptr(),
            early_x=direction_address(h0, job.direction),
            early_d=d + job.early_d * item,
            x=address(source, job.x),
            d=d + job.d * item,
            d_weights=to[job.direction].data_ptr() + job.first_row * job.shape.inputs * item,
            d_bias=d_bias,
        )
        blocks.append(job.shape + addresses)
    launch.run(cut.kernel, cut.threads, blocks, _COUNTER, cut.pace)
    workspace.give_back(memory)
    return tuple([cast(d, storage) for d in group] for group in results)  # type: ignore[return-value]


@lru_cache(SCHEDULES)
def _schedule(
    cell: str,
    dtype: torch.dtype,
    x_shape: tuple[int, int, int],
    hidden: int,
    heads: int,
    directions: int,
    reverse: bool,
    available: int,
) -> _Schedule:
    steps, batch, inputs = x_shape
    compiled = kernel("", "weights", dtype)
    contract = KNOWN[cell]
    gates_row = len(contract.blocks) * hidden
    head = hidden // heads
    work = directions * hidden * (len(contract.x_gates) * inputs + len(contract.u_gates) * head) * steps * batch
    threads = max(1, min(available, work // WORK_PER_THREAD))
    arena, jobs = Arena(), []
    for direction in range(directions):
        backwards = reverse or direction == 1
        for run in contract.x_runs:
            columns = run.count * hidden
            shape, of = _shape(compiled, arena, threads, inputs, columns, 1, 0, gates_row, 0, steps * batch, inputs)
            d, first_row = run.block * hidden, run.gate * hidden
            jobs.append(_Job(direction, False, shape, 0, 0, d, first_row, first_row, of))
        # What enters the first step is the initial state, what enters another is what the step before left.
        output_row = directions * hidden
        early, late = (steps - 1, 0) if backwards else (0, 1)
        x = direction * hidden + (batch * output_row if backwards else 0)
        for run in contract.u_runs if heads == 1 else _single(contract.u_runs):
            columns, rows = run.count * hidden, (steps - 1) * batch
            head_rows = len(contract.u_gates) * head
            shape, of = _shape(
                compiled, arena, threads, head, columns, heads, head_rows, gates_row, batch, rows, output_row
            )
            d, first_row, first_bias = run.block * hidden, run.gate * head, run.gate * hidden
            early_d, d = early * batch * gates_row + d, late * batch * gates_row + d
            jobs.append(_Job(direction, True, shape, early_d, x, d, first_row, first_bias, of))
    jobs[0] = jobs[0]._replace(shape=jobs[0].shape._replace(jobs=len(jobs)))
    kind = ("weights", cell, dtype, batch, inputs, hidden, heads, directions)
    pace = Pace(kind, steps, work * SECONDS_PER_PRODUCT, threads)
    return _Schedule(compiled.address, threads, jobs, arena.size, pace)


def _single(runs: Sequence[Run]) -> Iterator[Run]:
    """Each gate by itself: those of one head do not follow one another in the gradient's rows of all."""
    for run in runs:
        for gate in range(run.count):
            yield Run(run.block + gate, run.gate + gate, 1)


def _shape(
    compiled: Kernel,
    arena: Arena,
    threads: int,
    inputs: int,
    columns: int,
    heads: int,
    head_rows: int,
    gates_row: int,
    early: int,
    rows: int,
    x_row: int,
) -> tuple[WeightsShape, Extents]:
    """One job's, its scratch memory in the arena."""
    geometry, item = compiled.geometry, compiled.geometry.itemsize
    width = PANEL_VECTORS * geometry.lanes
    panels = geometry.panels(columns, PANEL_VECTORS)
    of = extents(columns, inputs, heads, width)
    largest = max(1, RESULT_BYTES // (of.depth * width * item))
    tasks = min(panels, max(divide_up(panels, largest), threads))
    each = divide_up(panels, tasks)
    scratch = Arena()
    places = {
        "results_at": scratch.take(each * of.depth * width * item),
        "sums_at": scratch.take(each * width * item),
        "panel_at": scratch.take(CHUNK_ROWS * width * item),
        "rows_at": scratch.take((CHUNK_ROWS * of.depth + geometry.lanes) * item),
    }
    shape = WeightsShape(
        jobs=0,
        tasks=tasks,
        panels=panels,
        inputs=inputs,
        columns=columns,
        head=columns // heads,
        head_rows=head_rows,
        extents=of.address,
        depth=of.depth,
        gates_row=gates_row,
        early=early,
        early_row=heads * inputs,
        rows=rows,
        x_row=x_row,
        scratch_at=arena.take(tasks * scratch.size),
        scratch_size=scratch.size,
        **places,
    )
    return shape, of
