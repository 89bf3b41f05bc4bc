"""The forward recurrence, way 1: a program computes a tile of the batch in one head and direction, all steps.

The head's recurrent weights stay in registers as the first operand of the product: gate rows are its M, the batch its
N, for which 8 is enough. The loop is rotated: a step ends with the product that the next one begins with, so that this
product and the loads of the next step's gx overlap the stores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import masks
from fastrnn.backends.triton.kernels.tiles import (
    dot,
    gate_rows,
    join_rows,
    load_each,
    load_parameters,
    load_tiles,
    multiplied,
    operand,
    select,
    split_rows,
    storable,
    zeros_like,
)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def forward_kernel(
    gx,  # (directions, T, B, GX, H): x W_ihᵀ + b_ih
    w_forward,  # (N, GU·D, D): w_hh of the first direction
    w_reverse,  # as w_forward: of the second direction, or the same again
    b_forward,  # (GU, H): b_hh of the first direction, or None
    b_reverse,  # as b_forward
    parameters,  # (directions, P, H), or None
    inputs,  # of the steps, a tuple of (directions, T, B, H); or None
    starts,  # a tuple of (directions, B, H), the initial states
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    recurrent_mask,  # (directions, B, H), or None
    histories,  # a tuple of (T, B, directions·H), of h alone or of all states: written
    gates,  # (directions, T, B, S, H): written; or None
    finals,  # a tuple of (directions, B, H): written
    T,
    B,
    reverse,  # whether the first direction runs from the end; the second always does
    PREACTIVATIONS: tl.constexpr,
    STEP: tl.constexpr,
    GX: tl.constexpr,  # gates with a share of the input's product
    GU: tl.constexpr,  # gates with a share of the state's product
    P: tl.constexpr,  # parameters
    S: tl.constexpr,  # saved values
    UNBOUNDED: tl.constexpr,  # which of them may be beyond float16
    FINITE: tl.constexpr,  # whether all values are finite where x is zero, as it is made where a step is not live
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two, at least 16
    BT: tl.constexpr,  # sequences of a program
    STAGES: tl.constexpr,  # how many steps ahead gx is fetched, plus one
    PRECISION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
):
    storage: tl.constexpr = gx.dtype.element_ty
    first, head, direction = tl.program_id(0).to(tl.int64) * BT, tl.program_id(1).to(tl.int64), tl.program_id(2)
    H = tl.num_programs(1) * D
    wide = tl.num_programs(2) * H
    backwards = (direction == 1) | (reverse != 0)
    dt = tl.where(backwards, -1, 1)
    t = tl.where(backwards, T - 1, 0)

    # Tiles are (units, batch). Offsets within a tile are 32 bits wide, what leads to it 64.
    batch = tl.arange(0, BT)[None, :]
    unit = tl.arange(0, DP)[:, None]
    inside = (batch < B - first) & (unit < D)
    gx_tile, gx_inside = _wide_tiles(batch, B - first, H, GX, D, DP)
    gates_tile, gates_inside = _wide_tiles(batch, B - first, H, S, D, DP)
    ys_tile = batch * wide + unit
    state_tile = batch * H + unit

    state_at = (direction * B.to(tl.int64) + first) * H + head * D
    gx_at = gx + ((direction * T.to(tl.int64) + t) * B + first) * (GX * H) + head * D
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    if gates is not None:
        gates_at = gates + ((direction * T.to(tl.int64) + t) * B + first) * (S * H) + head * D
    gx_step = dt * B.to(tl.int64) * (GX * H)
    ys_step = dt * B.to(tl.int64) * wide
    if inputs is not None:
        input_at = ((direction * T.to(tl.int64) + t) * B + first) * H + head * D

    # An elementwise operation after the load keeps W in registers: what is loaded alone stays in shared memory, from
    # where every step would read it again.
    column = tl.arange(0, DP)[None, :]
    w_hh = tl.where(direction == 0, w_forward, w_reverse) + head * (GU * D * D)
    w = ()
    bias = ()
    for k in tl.static_range(0, GU, 4):
        gate, gate_unit = gate_rows(GU - k, DP)
        w_inside = (column < D) & (gate_unit < D) & (gate < GU - k)
        rows = tl.load(w_hh + ((k + gate) * D + gate_unit) * D + column, mask=w_inside, other=0.0)
        w = w + (tl.where(column < D, rows, 0.0),)
        added = tl.zeros((gate.shape[0], BT), STATE)
        if b_forward is not None:
            b_hh = tl.where(direction == 0, b_forward, b_reverse) + head * D
            here = (gate_unit < D) & (gate < GU - k)
            added += tl.load(b_hh + (k + gate) * H + gate_unit, mask=here, other=0.0).to(STATE)
        bias = bias + (added,)

    own = load_parameters(parameters, direction * P * H + head * D, unit, H, inside, D, P, STATE)
    states = ()
    for k in tl.static_range(len(starts)):
        states = states + load_tiles(starts[k] + state_at, state_tile, 0, inside, 1, STATE)
    mask = None
    if recurrent_mask is not None:
        mask = tl.load(recurrent_mask + state_at + state_tile, mask=inside, other=0.0).to(STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + batch, mask=batch < B - first, other=0).to(tl.int32)
    if resets is not None:
        reset_at = resets + tl.where(backwards, T - 1, 0) * B.to(tl.int64) + first
        # A product's operand takes its layout from the narrowest value that it is computed from, as far as elementwise
        # operations go: a byte here would give this product another layout of W than the one in the loop.
        reset = tl.load(reset_at + batch, mask=(batch < B - first) & (not backwards), other=0).to(tl.int32)
        cut = masks.cut(tl.max(reset, axis=0, keep_dims=True), 0, length)
        states = select(cut, zeros_like(states), states)
        # Each step loads the resets of the next: a byte is too narrow for the asynchronous copies that fetch gx.
        reset_at += tl.where(backwards, 0, B)
        coming = tl.load(reset_at + batch, mask=(batch < B - first) & (T > 1), other=0).to(tl.int32)

    gh = _products(w, operand(multiplied(states[0], mask), unit, D, DP, FINITE, storage), bias, PRECISION)
    for step in tl.range(0, T, num_stages=STAGES):
        wide_x = ()
        for k in tl.static_range(len(gx_tile)):
            wide_x = wide_x + (tl.load(gx_at + gx_tile[k], mask=gx_inside[k], other=0.0).to(STATE),)
        fed = ()
        if inputs is not None:
            fed = load_each(inputs, input_at, state_tile, inside, STATE)
            input_at += dt * B.to(tl.int64) * H
        if resets is not None:
            cut = masks.cut(coming, masks.exit(t, backwards), length)
            reset_at += dt * B.to(tl.int64)
            coming = tl.load(reset_at + batch, mask=(batch < B - first) & (step < T - 2), other=0).to(tl.int32)
        if lengths is not None:
            live = masks.live(t, length)
            wide_x = select(live, wide_x, zeros_like(wide_x))
        pre = PREACTIVATIONS(_split(wide_x, GX, DP, BT), _split(gh, GU, DP, BT))
        after, saved = STEP(pre, states, own, fed, unit, D, APPROXIMATE)
        y = after[0].to(storage)
        if lengths is not None:
            y = tl.where(live, y, 0.0)
            after = select(live, after, states)
            if not FINITE:
                saved = select(live, saved, zeros_like(saved))
        for k in tl.static_range(1, len(histories)):
            tl.store(histories[k] + ys_at + ys_tile, after[k], mask=inside)
        if resets is not None:
            after = select(cut, zeros_like(after), after)
        states = after
        gh = _products(w, operand(multiplied(states[0], mask), unit, D, DP, FINITE, storage), bias, PRECISION)
        tl.store(histories[0] + ys_at + ys_tile, y, mask=inside)
        if gates is not None:
            values = storable(saved, gates.dtype.element_ty, UNBOUNDED)
            for k in tl.static_range(len(gates_tile)):
                tl.store(gates_at + gates_tile[k], join_rows(values, 4 * k, DP, BT), mask=gates_inside[k])
            gates_at += dt * B.to(tl.int64) * (S * H)
        t += dt
        gx_at += gx_step
        ys_at += ys_step

    for k in tl.static_range(len(finals)):
        tl.store(finals[k] + state_at + state_tile, states[k], mask=inside)


@triton.jit
def _wide_tiles(batch, sequences, H, COUNT: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Where a sequence's COUNT vectors of H lie in memory, as the offsets of wide tiles, and which of them exist."""
    offsets = ()
    inside = ()
    for k in tl.static_range(0, COUNT, 4):
        gate, unit = gate_rows(COUNT - k, DP)
        here = (batch < sequences) & (unit < D)
        if COUNT - k == 3:
            here = here & (gate < 3)
        offsets = offsets + (batch * (COUNT * H) + (k + gate) * H + unit,)
        inside = inside + (here,)
    return offsets, inside


@triton.jit
def _products(w, h, bias, PRECISION: tl.constexpr):
    """gh as wide tiles."""
    out = ()
    for k in tl.static_range(len(w)):
        out = out + (dot(w[k], h, bias[k], PRECISION),)
    return out


@triton.jit
def _split(wide, COUNT: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """The tiles in wide ones."""
    out = ()
    for k in tl.static_range(len(wide)):
        out = out + split_rows(wide[k], COUNT - 4 * k, DP, BT)
    return out
