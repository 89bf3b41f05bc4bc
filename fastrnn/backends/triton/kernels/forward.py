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
    load_tiles,
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
    h0,  # (directions, B, H)
    c0,  # as h0, or None for a cell with one state
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    ys,  # (T, B, directions·H): written, in the storage dtype
    cs,  # (T, B, directions·H): written, in the state dtype; or None
    gates,  # (directions, T, B, S, H): written; or None
    h_last,  # (directions, B, H): written
    c_last,  # as h_last, or None
    T,
    B,
    reverse,  # whether the first direction runs from the end; the second always does
    PREACTIVATIONS: tl.constexpr,
    STEP: tl.constexpr,
    GX: tl.constexpr,  # gates with a share of the input's product
    GU: tl.constexpr,  # gates with a share of the state's product
    S: tl.constexpr,  # saved values
    UNBOUNDED: tl.constexpr,  # which of them may be beyond float16
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two, at least 16
    BT: tl.constexpr,  # sequences of a program
    STAGES: tl.constexpr,  # how many steps ahead gx is fetched, plus one
    PRECISION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
):
    tl.static_assert(GX == GU)  # the tiles' rows are those of both
    GP: tl.constexpr = 1 if GU == 1 else 4
    STATES: tl.constexpr = 1 if c0 is None else 2
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
    gate, gate_unit = gate_rows(GP, DP)
    inside = (batch < B - first) & (unit < D)
    gates_inside = (batch < B - first) & (gate_unit < D)
    gx_inside = gates_inside & (gate < GX)
    gx_tile = batch * (GX * H) + gate * H + gate_unit
    gates_tile = batch * (S * H) + gate * H + gate_unit
    ys_tile = batch * wide + unit
    state_tile = batch * H + unit

    state_at = (direction * B.to(tl.int64) + first) * H + head * D
    gx_at = gx + ((direction * T.to(tl.int64) + t) * B + first) * (GX * H) + head * D
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    if gates is not None:
        gates_at = gates + ((direction * T.to(tl.int64) + t) * B + first) * (S * H) + head * D
    gx_step = dt * B.to(tl.int64) * (GX * H)
    ys_step = dt * B.to(tl.int64) * wide

    # An elementwise operation after the load keeps W in registers: what is loaded alone stays in shared memory, from
    # where every step would read it again.
    column = tl.arange(0, DP)[None, :]
    w_hh = tl.where(direction == 0, w_forward, w_reverse) + head * (GU * D * D)
    w_inside = (column < D) & (gate_unit < D) & (gate < GU)
    w = tl.load(w_hh + (gate * D + gate_unit) * D + column, mask=w_inside, other=0.0)
    w = tl.where(column < D, w, 0.0)
    bias = tl.zeros((GP * DP, BT), STATE)
    if b_forward is not None:
        b_hh = tl.where(direction == 0, b_forward, b_reverse) + head * D
        bias += tl.load(b_hh + gate * H + gate_unit, mask=(gate_unit < D) & (gate < GU), other=0.0).to(STATE)

    states = load_tiles(h0 + state_at, state_tile, 0, inside, 1, STATE)
    if STATES == 2:
        states = states + load_tiles(c0 + state_at, state_tile, 0, inside, 1, STATE)
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

    gh = dot(w, states[0].to(storage), bias, PRECISION)
    for step in tl.range(0, T, num_stages=STAGES):
        x = tl.load(gx_at + gx_tile, mask=gx_inside, other=0.0).to(STATE)
        if resets is not None:
            cut = masks.cut(coming, masks.exit(t, backwards), length)
            reset_at += dt * B.to(tl.int64)
            coming = tl.load(reset_at + batch, mask=(batch < B - first) & (step < T - 2), other=0).to(tl.int32)
        if lengths is not None:
            live = masks.live(t, length)
            x = tl.where(live, x, 0.0)
        pre = PREACTIVATIONS(split_rows(x, GP, DP, BT), split_rows(gh, GP, DP, BT))
        after, saved = STEP(pre, states, (), (), APPROXIMATE)
        y = after[0].to(storage)
        if lengths is not None:
            y = tl.where(live, y, 0.0)
            after = select(live, after, states)
        if cs is not None:
            tl.store(cs + ys_at + ys_tile, after[1], mask=inside)
        if resets is not None:
            after = select(cut, zeros_like(after), after)
        states = after
        gh = dot(w, states[0].to(storage), bias, PRECISION)
        tl.store(ys + ys_at + ys_tile, y, mask=inside)
        if gates is not None:
            values = storable(saved, gates.dtype.element_ty, UNBOUNDED)
            tl.store(gates_at + gates_tile, join_rows(values, GP, DP, BT), mask=gates_inside)
            gates_at += dt * B.to(tl.int64) * (S * H)
        t += dt
        gx_at += gx_step
        ys_at += ys_step

    tl.store(h_last + state_at + state_tile, states[0], mask=inside)
    if STATES == 2:
        tl.store(c_last + state_at + state_tile, states[1], mask=inside)
