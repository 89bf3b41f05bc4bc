"""What the host hands to a kernel: blocks of int64, one for each direction or packing job, named here once.

A block is a `*Shape`, which depends on sizes only and is computed once for each, followed by a `*Addresses`, which is
new in every call, and a forward's by `ForwardArrays`, its tensors. Fields without a comment are sizes, in the words of
`docs/design.md`. Addresses and what ends in `_at` (where something lies in `memory`, or in a task's own scratch there)
are in bytes, an address of 0 meaning "not there"; distances (`*_step` from one t to the next, `*_row` from one row of
the batch to the next) count elements. Arrays are those of one direction, already offset to it, in the state dtype, and
their last dimension is dense.

Arguments call a cell's states h and, all others, c. Where there are several others, an address of c is that of a table
instead: of addresses, int64, one for each, all of the same distances.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER, ALONE = -1, -2
"""Steps after which a launch's teams dissolve: none, they stay together; there is no team, one thread does everything.
The step lies behind the ticket counter."""


LINE_WORDS = 8
"""Numbers of 64 bits in a line of the cache."""


class PackShape(NamedTuple):
    """One matrix to lay out in panels. `jobs` and `tasks` are read from the first block only."""

    jobs: int
    tasks: int  # panels of all jobs together
    panels: int
    straight: int  # 0: rows of the source become lanes; 1: its columns do, its rows are K
    rows: int  # of one gate where they become lanes, else of the source; of one head
    columns: int  # of one head
    gates: int  # whose vectors lie side by side in a panel
    units: int  # how many vectors of units a panel holds for each gate
    heads: int
    extents: int  # of several heads, with what each panel is multiplied: see `extents.py`
    depth: int  # how many rows a panel has
    target_at: int  # (panels, depth, units, gates, lanes)


class PackAddresses(NamedTuple):
    counter: int  # the ticket counter, as `memory` read from the first block only
    memory: int
    source: int  # of each head (rows, columns)
    source_row: int


class ForwardShape(NamedTuple):
    """One direction of a forward. Slices are numbered one after the other, the first direction's first."""

    owners: int  # slices of both directions together
    slices: int  # into how many this direction's rows are split
    steps: int
    batch: int
    inputs: int
    hidden: int
    outputs: int  # P with a projection, else H
    panels: int  # of w_ih and w_hh
    extents: int  # with which numbers of h each panel of w_hh is multiplied: int64 (panels, 2), the first and how many
    depth: int  # the most of any panel: so many rows has each in memory
    reverse: int
    projected: int
    ys_row: int
    history_row: int
    chunk: int  # for how many steps the input's product is computed at a time
    parts: int  # > 0: only that product, each slice's in so many tasks; < 0: only the steps after it; 0: both
    team: int  # how many threads share a slice's hidden units and, but of a cell without u gates, meet after every step
    thread_count: int  # the C function int (*)(void) that gives the number of threads in the parallel region
    barrier: int  # the C function void (*)(void) that returns once all of them have called it
    clock: int  # the C function double (*)(void) that gives the time in seconds
    w_ih_at: int  # in panels, as everything down to w_hr
    bias_ih_at: int
    w_hh_at: int
    bias_hh_at: int
    w_hr_at: int
    scratch_at: int  # one piece of `scratch_size` for each task; what lies where in it:
    scratch_size: int
    tile_at: int  # a tile's results, for each member of a team `tile_size` bytes apart; at 0 lies a row of zeros. Of a
    # step over means all tiles': (rows, panels, vectors of a panel, lanes)
    tile_size: int
    h_at: int  # (2, rows, padded P or H)
    multiplied_at: int  # (rows, padded P or H): what the product reads of h, with recurrent dropout
    c_at: int  # (other states, rows, padded H)
    m_at: int  # (rows, padded H): o tanh(c) before the projection
    gx_at: int  # (chunk, rows, panels, vectors of a panel, lanes)
    kept_at: int  # what a step over means keeps from pass to pass, of one row: (vectors of a row, kept values, lanes)


class ForwardAddresses(NamedTuple):
    counter: int  # the ticket counter, shared by both directions
    memory: int


class ForwardArrays(NamedTuple):
    lengths: int  # (B,) int64
    resets: int  # (T, B) bytes
    x: int  # (T, B, I)
    x_step: int
    x_row: int
    h0: int  # (B, P or H)
    c0: int  # (B, H)
    ys: int  # (T, B, P or H)
    history: int  # (T, B, H): c after each step
    saved: int  # (T, B, S·H)
    h_last: int  # (B, P or H)
    c_last: int  # (B, H)
    parameters: int  # (P, H): the cell's, one after another
    step_inputs: int  # (T, B, N·H): side by side
    recurrent_mask: int  # (B, P or H)


class UnpackedShape(NamedTuple):
    """A layer in one direction whose weights stay as torch keeps them."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    head: int  # units of one
    reverse: int
    team: int  # how many threads share the units, and meet after every step; 1: one does all
    thread_count: int  # as in a forward, as the next two
    barrier: int
    clock: int


class UnpackedAddresses(NamedTuple):
    counter: int  # the ticket counter
    x: int  # (T, B, I), dense
    h0: int  # (B, H)
    c0: int
    w_ih: int  # (Gx·H, I), dense
    w_hh: int  # (heads, Gu·D, D), dense
    bias_ih: int  # (Gx·H,)
    bias_hh: int
    parameters: int  # the addresses of P, (H,) each
    step_inputs: int  # (T, B, N·H), dense: those of a step side by side
    ys: int  # (T, B, H), dense
    h_last: int  # (B, H)
    c_last: int


class BackwardShape(NamedTuple):
    """One direction of a backward."""

    owners: int  # as in a forward
    slices: int
    steps: int
    batch: int
    hidden: int
    outputs: int
    reverse: int
    projected: int
    team: int  # as in a forward, as the next three
    thread_count: int
    barrier: int
    clock: int
    segments: int  # of a panel's product: 1, or one for each u gate where there are several heads
    extents: int  # as in a forward, of numbers of a segment, which a gate has of its block
    depth: int  # as in a forward, of all segments; rows of w_hh have the order of the blocks
    products_at: int  # at which element of a row of dgates dgh starts
    gates_row: int  # W·H
    states_row: int  # of h and c
    w_hh_at: int  # in panels of columns, as w_hr
    w_hr_at: int
    scratch_at: int  # as in a forward
    scratch_size: int
    tile_at: int
    tile_size: int
    carry_at: int  # (rows, padded P or H)
    dc_at: int  # (other states, rows, padded H)
    dc_apart: int  # elements from one to the next
    d_parameters_at: int  # (rows, P, padded H)
    dh_at: int  # (rows, padded P)
    kept_at: int  # as in a forward
    # Of a cell without a product of the state whose kernel computes the gradient of x, all else being 0:
    inputs: int
    w_ih_at: int  # in panels of columns, its gates in the order of the blocks; of one input the column itself
    chunk: int  # for how many steps at a time
    parts: int  # as in a forward, of x's gradient; there are as many as members of a team


class BackwardAddresses(NamedTuple):
    counter: int
    memory: int
    lengths: int
    resets: int
    parameters: int  # as in a forward
    step_inputs: int
    recurrent_mask: int
    h: int  # (T, B, H): after each step, as c. What a derivative does not look at need not be there
    c: int
    h0: int  # (B, H): before the first step, as c0
    c0: int
    saved: int  # (T, B, S·H)
    dgates: int  # (T, B, W·H): the blocks of gradients, written
    dys: int  # (T, B, P or H)
    dys_step: int
    dys_row: int
    dhistory: int  # (T, B, H): gradient of c after each step
    dhistory_step: int
    dhistory_row: int
    dh_last: int  # (B, P or H)
    dc_last: int  # (B, H)
    dh0: int  # (B, P or H), written
    dc0: int  # (B, H), written
    d_parameters: int  # (B, P, H), written: each sequence's share, so that threads share no sum
    dh_out: int  # (T, B, P): the gradient of every projected h, written
    dx: int  # (T, B, I), written


class WeightsShape(NamedTuple):
    """One product whose result is a gradient of weights. `jobs` is read from the first block only."""

    jobs: int
    tasks: int  # into how many its panels are split
    panels: int  # of columns
    inputs: int  # numbers of a row that these weights multiply: columns of the gradient; of one head
    columns: int  # of the gates' gradients that belong to these weights: its rows, of all heads
    head: int  # of these one head's
    head_rows: int  # from one head's rows of the gradient to the next one's
    extents: int  # as in a forward, of the numbers that a panel of columns is multiplied with
    depth: int  # the most of any panel
    gates_row: int
    early: int  # how many rows of `early_x` and `early_d` there are
    early_row: int
    rows: int  # and of `x` and `d`
    x_row: int
    scratch_at: int  # as in a forward
    scratch_size: int
    results_at: int  # (panels of a task, depth, vectors of a panel, lanes)
    sums_at: int  # (panels of a task, vectors of a panel, lanes)
    panel_at: int  # (rows of a chunk, vectors of a panel, lanes)
    rows_at: int  # (depth, rows of a chunk), in blocks of inputs, and a vector more


class WeightsAddresses(NamedTuple):
    counter: int  # the ticket counter, as `memory` read from the first block only
    memory: int
    early_x: int  # (early, inputs of all heads)
    early_d: int  # (early, columns), rows `gates_row` apart, as d
    x: int  # (rows, inputs of all heads)
    d: int  # (rows, columns)
    d_weights: int  # of each head (head, inputs), dense, written
    d_bias: int  # (columns,), written


class Pointwise(NamedTuple):
    """A cell's single step, all of it dense."""

    batch: int
    hidden: int
    gx: int  # (B, Gx·H), with its bias, as gh
    gh: int  # (B, Gu·H)
    h: int  # (B, H)
    c: int  # (B, H)
    h_new: int  # (B, H), written
    c_new: int  # (B, H), written
    saved: int  # (B, S·H), written
    parameters: int  # (P, H): the cell's, row by row
    inputs: int  # (B, N·H): those of the step side by side
    kept: int  # scratch memory of a step over means, as a forward's; of others of no account


class PointwiseBackward(NamedTuple):
    """Its derivative."""

    batch: int
    hidden: int
    saved: int  # (B, S·H)
    h_before: int  # (B, H); of states only those are there that the derivative looks at
    c_before: int  # (B, H)
    h_after: int  # (B, H)
    c_after: int  # (B, H)
    parameters: int  # as in `Pointwise`, as the next
    inputs: int
    dh: int  # (B, H)
    dc: int  # (B, H)
    dgates: int  # (B, W·H), written
    dh0: int  # (B, H): what reaches the h before directly, written
    dc0: int  # (B, H), written
    kept: int  # as in `Pointwise`


class StreamCall(NamedTuple):
    """One call of a stream, of any number of layers: read from the first block only.

    The first seven are what a `Door` knows. A row of the call is one of `streams` states.
    """

    x: int  # float32, (steps, rows, inputs of the first layer), dense; (rows, steps, inputs) where it `swaps`
    ys: int  # written, as x, of the last layer's outputs
    steps: int
    rows: int
    slots: int  # int64 (rows,): which state each row has; 0: row r has state r
    status: int  # written: 0, or 1 where a slot is none or comes twice, and then nothing else is
    busy: int  # not the kernel's
    helps: int  # 1: called by a helper, with a copy of the blocks
    layers: int
    swaps: int
    chunk: int  # steps at a time
    streams: int  # how many states there are
    marks: int  # bytes (streams,), zero but while slots are compared
    taken: int  # int64 (batch,): the slots as they were then, since the caller's memory may change meanwhile
    claims: int  # see `kernels/claims.py`; 0: nobody helps
    semaphore: int
    post: int  # the C functions sem_post and sem_wait
    sleep: int


class StreamLayer(NamedTuple):
    """One of its layers. What ends in `_row` counts elements from one row to the next; weights are in panels.

    With int8, rows that are multiplied become int16 at `q*`, each with a scale, and `*_limit` is what the largest of a
    row becomes: as much as sums of 32 bits have room for.
    """

    inputs: int
    hidden: int
    outputs: int  # P with a projection, else H
    panels: int
    extents: int  # as in a forward
    depth: int
    projected: int
    w_ih: int
    bias_ih: int
    scales_ih: int
    w_hh: int
    bias_hh: int
    scales_hh: int
    w_hr: int
    no_bias: int  # zeros for a panel of w_hr
    scales_hr: int
    parameters: int  # (P, H): the cell's, one after another
    step_inputs: int  # (N, H): those of every step, which are the same
    h_from: int  # (streams, P or H): the states before the call
    h_to: int  # and after it, as far as they are stepped; may be the same
    h_home_row: int
    others_from: int  # (other states, streams, H)
    others_to: int
    others_home_row: int
    others_home_apart: int  # from one state to the next
    rows_at: int  # (chunk, rows, padded inputs): what the layer reads
    rows_row: int
    h: int  # (2, rows, padded outputs)
    h_row: int
    current: int  # which of the two h is
    others: int  # (other states, rows, padded H)
    others_row: int
    m: int  # (rows, padded H): what is projected
    gx: int  # (chunk, rows, panels, vectors of a panel, lanes)
    gh: int  # (rows, panels, vectors of a panel, lanes)
    kept: int  # as in a forward, of one row
    qx: int
    qx_row: int
    qx_scales: int
    qx_limit: int
    qh: int
    qh_row: int
    qh_scales: int
    qh_limit: int
    qm_limit: int  # m is read once h has been: at `qh`


class ParallelArguments(NamedTuple):
    """A launch that threads share."""

    function: int  # another kernel
    data: int  # its blocks
    threads: int
    parallel: int  # GOMP_parallel
    clock: int  # as in a forward
    nanoseconds: int  # how long it took, written


FIELDS = {
    "parallel": ParallelArguments._fields,
    **{f"stream_{weights}": StreamCall._fields + StreamLayer._fields for weights in ("float32", "float16", "int8")},
    "pack": PackShape._fields + PackAddresses._fields,
    "forward": ForwardShape._fields + ForwardAddresses._fields + ForwardArrays._fields,
    "unpacked": UnpackedShape._fields + UnpackedAddresses._fields,
    "backward": BackwardShape._fields + BackwardAddresses._fields,
    "weights": WeightsShape._fields + WeightsAddresses._fields,
    "pointwise": Pointwise._fields,
    "pointwise_backward": PointwiseBackward._fields,
}
"""A block's fields for each kind of kernel."""
