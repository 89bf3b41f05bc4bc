"""The kernel for the gradients of weights and biases: sums over all T·B rows of a product of two numbers of each.

A task owns some columns of the gates' gradients. In chunks of rows it copies them, a panel at a time, to where they
stay in the first-level cache, and adds up its products with the numbers of the rows that were multiplied by these
weights: of the state's with those of the heads that the panel's columns belong to.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from fastrnn.backends.numba.kernels.extents import extent
from fastrnn.backends.numba.kernels.inner import inner
from fastrnn.backends.numba.kernels.rows import clear_row
from fastrnn.backends.numba.kernels.simd import (
    address,
    ask_for,
    lanes,
    load,
    load_some,
    store,
    store_some,
    take_ticket,
    zeros,
)
from fastrnn.backends.numba.kernels.tile import outer_product, share, tile_rows
from fastrnn.backends.numba.kernels.transpose import transpose_some

AHEAD = 12
"""How many rows ahead gradients are asked for: a panel's rows lie too far apart for the processor to foresee them."""


def weights_kernel(vecs: int, chunk: int, dtype: Any) -> Any:
    """The kernel of one dtype, over blocks of `WeightsShape` and `WeightsAddresses`, one for each job.

    Panels hold `vecs` vectors, chunks `chunk` rows.
    """
    tile, tile_most = outer_product(vecs), tile_rows(vecs)

    @inner
    def copy_panel(like: Any, source: int, row: int, rows: int, columns: int, panel: int, sums: int) -> None:
        """panel (rows, vecs, lanes) from a matrix whose rows are `row` apart; adds each column's sum to `sums`.

        Sums of chunks are added up, because the error of one long sum would grow with all T·B rows.
        """
        lane_count = lanes(like)
        for v in range(vecs):
            some = columns - v * lane_count
            total = like
            for r in range(rows):
                value = load_some(like, source, r * row + v * lane_count, some)
                ask_for(like, source, (r + AHEAD) * row + v * lane_count)
                store(panel, (r * vecs + v) * lane_count, value)
                total = total + value
            store(sums, v * lane_count, load(like, sums, v * lane_count) + total)

    @inner
    def copy_rows(like: Any, source: int, row: int, rows: int, inputs: int, blocks: int, target: int) -> None:
        """target: for each block of numbers, those of the first row, those of the second, and so on.

        What the last vector of a block is too long by, the next one overwrites.
        """
        for block in range(blocks):
            begin, numbers = share(inputs, blocks, block)
            for r in range(rows):
                for i in range(0, numbers, lanes(like)):
                    value = load_some(like, source, r * row + begin + i, inputs - begin - i)
                    store(target, begin * chunk + r * numbers + i, value)

    @inner
    def add_products(
        a: Any, like: Any, x: int, x_row: int, d: int, rows: int, first: int, panels: int, base: int
    ) -> None:
        """Adds to the results of a task the products of `rows` rows of x and of gradients at `d`."""
        width = vecs * lanes(like)
        results, panel_at, rows_at = base + a.results_at, base + a.panel_at, base + a.rows_at
        for start in range(0, rows, chunk):
            count = min(chunk, rows - start)
            copied, inputs, blocks = 0, 0, 0
            for p in range(panels):
                first_input, of_panel = extent(a.extents, first + p)
                if first_input != copied or of_panel != inputs:
                    copied, inputs, blocks = first_input, of_panel, (of_panel + tile_most - 1) // tile_most
                    copy_rows(like, address(like, x, start * x_row + copied), x_row, count, inputs, blocks, rows_at)
                column = (first + p) * width
                source = address(like, d, start * a.gates_row + column)
                sums = address(like, base + a.sums_at, p * width)
                copy_panel(like, source, a.gates_row, count, a.columns - column, panel_at, sums)
                for block in range(blocks):
                    begin, numbers = share(inputs, blocks, block)
                    at = address(like, rows_at, begin * chunk)
                    to = address(like, results, (p * a.depth + begin) * width)
                    tile(like, numbers, at, numbers, panel_at, count, to, width)

    @inner
    def put(a: Any, like: Any, first: int, panels: int, base: int) -> None:
        """A task's results, (panels, depth, vecs, lanes), into the gradients, (head, inputs) of each and (columns,).

        Of what columns gave with other heads' numbers nothing is taken.
        """
        lane_count = lanes(like)
        width = vecs * lane_count
        for p in range(panels):
            first_input, _ = extent(a.extents, first + p)
            for v in range(vecs):
                column = (first + p) * width + v * lane_count
                some = a.columns - column
                if some <= 0:
                    continue
                if a.d_bias != 0:
                    store_some(a.d_bias, column, load(like, base + a.sums_at, p * width + v * lane_count), some)
                own, end = column, min(column + lane_count, a.columns)
                while own < end:
                    head = own // a.head
                    row, count = own - head * a.head, min((head + 1) * a.head, end) - own
                    for i in range(0, a.inputs, lane_count):
                        at = (p * a.depth + head * a.inputs - first_input + i) * width + v * lane_count + own - column
                        to = address(like, a.d_weights, (head * a.head_rows + row) * a.inputs + i)
                        source = address(like, base + a.results_at, at)
                        transpose_some(like, source, width, a.inputs - i, count, to, a.inputs)
                    own += count

    @inner
    def run(a: Any, like: Any, task: int, base: int) -> None:
        width = vecs * lanes(like)
        first, panels = share(a.panels, a.tasks, task)
        clear_row(like, base + a.sums_at, panels * width)
        clear_row(like, base + a.results_at, panels * a.depth * width)
        if a.early > 0:
            add_products(a, like, a.early_x, a.early_row, a.early_d, a.early, first, panels, base)
        if a.rows > 0:
            add_products(a, like, a.x, a.x_row, a.d, a.rows, first, panels, base)
        put(a, like, first, panels, base)

    def weights(pointer: Any) -> None:
        like = zeros(dtype)
        jobs = carray(pointer, 1)[0].jobs
        blocks = carray(pointer, jobs)
        while True:
            ticket = take_ticket(blocks[0].counter)
            task, job = ticket, 0
            while job < jobs and task >= blocks[job].tasks:
                task -= blocks[job].tasks
                job += 1
            if job >= jobs:
                break
            a = blocks[job]
            run(a, like, task, blocks[0].memory + a.scratch_at + task * a.scratch_size)

    return weights
