"""The backward recurrence, way 1: a program computes a tile of the batch in one head and direction, all steps.

The batch is M of the product here, 16 at least, and each gate has a product of its own with that gate's rows of w_hh.
Two chains of sums halve the latency of the four.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import masks
from fastrnn.backends.triton.kernels.tiles import (
    dot,
    join_columns,
    load_tiles,
    select,
    split_columns,
    zeros_like,
)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def backward_kernel(
    w_forward,  # (N, GU·D, D): w_hh of the first direction
    w_reverse,  # as w_forward: of the second direction, or the same again
    ys,  # (T, B, directions·H)
    cs,  # (T, B, directions·H) in the state dtype, or None for a cell with one state
    gates,  # (directions, T, B, W, H): what forward saved, or the preactivations; None for a cell that saves nothing
    h0,  # (directions, B, H)
    c0,  # as h0, or None for a cell with one state
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    dys,  # as ys, or None
    dcs,  # as cs, or None
    dh_last,  # (directions, B, H), or None
    dc_last,  # as dh_last, or None
    dgates,  # (directions, T, B, W, H): written; the gradients of `Cell.blocks`
    dh0,  # (directions, B, H): written
    dc0,  # as dh0, or None
    T,
    B,
    reverse,  # whether the first direction of the forward ran from the end; the second always does
    STEP: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    GU: tl.constexpr,  # gates with a share of the state's product
    W: tl.constexpr,  # blocks
    S: tl.constexpr,  # saved values: W, or none
    DGH: tl.constexpr,  # which block is the gradient of each of those gates
    READS_BEFORE: tl.constexpr,  # which states before a step are looked at
    READS_AFTER: tl.constexpr,  # which states after it
    D: tl.constexpr,
    DP: tl.constexpr,  # D padded to a power of two, at least 16
    BT: tl.constexpr,  # sequences of a program
    STAGES: tl.constexpr,  # how many steps ahead tiles are fetched, plus one
    PRECISION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
    ARE_PREACTIVATIONS: tl.constexpr,  # whether `gates` holds what the step is still to be applied to
):
    STATES: tl.constexpr = 1 if c0 is None else 2
    tl.static_assert(S == 0 or S == W)  # the saved values' tile is the blocks' own
    storage: tl.constexpr = w_forward.dtype.element_ty
    first, head, direction = tl.program_id(0).to(tl.int64) * BT, tl.program_id(1).to(tl.int64), tl.program_id(2)
    H = tl.num_programs(1) * D
    wide = tl.num_programs(2) * H
    backwards = (direction == 1) | (reverse != 0)
    dt = tl.where(backwards, 1, -1)  # against the direction of the forward
    t = tl.where(backwards, 0, T - 1)

    # Tiles are (batch, units). Offsets within a tile are 32 bits wide, what leads to it 64.
    batch = tl.arange(0, BT)[:, None]
    unit = tl.arange(0, DP)[None, :]
    column = tl.arange(0, W * DP)[None, :]
    inside = (batch < B - first) & (unit < D)
    gates_inside = (batch < B - first) & (column % DP < D)
    gates_tile = batch * (W * H) + column // DP * H + column % DP
    ys_tile = batch * wide + unit
    state_tile = batch * H + unit

    state_at = (direction * B.to(tl.int64) + first) * H + head * D
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    gates_at = ((direction * T.to(tl.int64) + t) * B + first) * (W * H) + head * D
    ys_step = dt * B.to(tl.int64) * wide
    gates_step = dt * B.to(tl.int64) * (W * H)

    # A product before the loop makes the compiler hold W in registers. It is zero.
    row = tl.arange(0, DP)[:, None]
    w_hh = tl.where(direction == 0, w_forward, w_reverse) + head * (GU * D * D)
    nothing = tl.zeros((BT, DP), STATE)
    dh = nothing
    w = ()
    for gate in tl.static_range(GU):
        rows_of_gate = tl.load(w_hh + (gate * D + row) * D + unit, mask=(row < D) & (unit < D), other=0.0)
        w = w + (tl.where(row < D, rows_of_gate, 0.0),)
        dh = dot(nothing.to(storage), w[gate], dh, PRECISION)

    dc = nothing
    if dh_last is not None:
        dh += tl.load(dh_last + state_at + state_tile, mask=inside, other=0.0).to(STATE)
        if STATES == 2:
            dc += tl.load(dc_last + state_at + state_tile, mask=inside, other=0.0).to(STATE)
    start = load_tiles(h0 + state_at, state_tile, 0, inside, 1, STATE)
    if STATES == 2:
        start = start + load_tiles(c0 + state_at, state_tile, 0, inside, 1, STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + batch, mask=batch < B - first, other=0).to(tl.int32)
    if resets is not None:
        # Each step loads the resets of the next: a byte is too narrow for the asynchronous copies that fetch the rest.
        reset_at = resets + tl.where(backwards, 1, T - 1) * B.to(tl.int64) + first
        coming = tl.load(reset_at + batch, mask=(batch < B - first) & (backwards < T), other=0).to(tl.int32)

    for step in tl.range(0, T, num_stages=STAGES):
        arriving = dh
        if dys is not None:
            arriving += tl.load(dys + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
        has_before = inside & (step < T - 1)
        starts = masks.starts(step == T - 1, t, length, backwards)
        if lengths is not None:
            live = masks.live(t, length)
        # What is not looked at is any tile. The next iteration loads again, as the state after its step, what this one
        # loads as the state before: what is carried would not be fetched ahead.
        h_before, h_after = start[0], start[0]
        if READS_AFTER[0]:
            h_after = tl.load(ys + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
        if READS_BEFORE[0]:
            h_before = tl.load(ys + ys_at + ys_step + ys_tile, mask=has_before, other=0.0).to(STATE)
            h_before = tl.where(starts, start[0], h_before)
        if STATES == 2:
            arriving_c = dc
            if dcs is not None:
                arriving_c += tl.load(dcs + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
            c_before, c_after = start[1], start[1]
            if READS_AFTER[1]:
                c_after = tl.load(cs + ys_at + ys_tile, mask=inside, other=0.0)
            if READS_BEFORE[1]:
                c_before = tl.load(cs + ys_at + ys_step + ys_tile, mask=has_before, other=0.0)
                c_before = tl.where(starts, start[1], c_before)
            before, after, d_after, carried = (h_before, c_before), (h_after, c_after), (arriving, arriving_c), (dh, dc)
        else:
            before, after, d_after, carried = (h_before,), (h_after,), (arriving,), (dh,)
        if resets is not None:
            cut = masks.cut(coming, masks.entry(t, backwards), length)
            reset_at += dt * B.to(tl.int64)
            coming = tl.load(reset_at + batch, mask=(batch < B - first) & (step < T - 1 - backwards), other=0).to(
                tl.int32
            )
            before = select(cut, zeros_like(before), before)
        saved = ()
        if gates is not None:
            kept = tl.load(gates + gates_at + gates_tile, mask=gates_inside, other=0.0).to(STATE)
            saved = split_columns(kept, W, DP, BT)
            if ARE_PREACTIVATIONS:
                saved = STEP(saved, before, (), (), APPROXIMATE)[1]
        d, direct = DERIVATIVE(d_after, saved, before, after, (), (), APPROXIMATE)
        if lengths is not None:
            d = select(live, d, zeros_like(d))
            direct = select(live, direct, carried)
        through, other = direct[0], nothing
        for gate in tl.static_range(GU):
            if gate % 2 == 0:
                through = dot(d[DGH[gate]].to(storage), w[gate], through, PRECISION)
            else:
                other = dot(d[DGH[gate]].to(storage), w[gate], other, PRECISION)
        if GU > 1:
            through += other
        if STATES == 2:
            flowing = (through, direct[1])
        else:
            flowing = (through,)
        if resets is not None:
            flowing = select(cut, zeros_like(flowing), flowing)
        dh = flowing[0]
        if STATES == 2:
            dc = flowing[1]
        tl.store(dgates + gates_at + gates_tile, join_columns(d, W, DP, BT).to(storage), mask=gates_inside)
        t += dt
        ys_at += ys_step
        gates_at += gates_step

    tl.store(dh0 + state_at + state_tile, dh, mask=inside)
    if STATES == 2:
        tl.store(dc0 + state_at + state_tile, dc, mask=inside)
