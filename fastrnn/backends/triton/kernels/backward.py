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
    load_each,
    load_parameters,
    load_tiles,
    multiplied,
    operand,
    select,
    split_columns,
    zeros_like,
)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def backward_kernel(
    w_forward,  # (N, GU·D, D): w_hh of the first direction
    w_reverse,  # as w_forward: of the second direction, or the same again
    histories,  # a tuple of (T, B, directions·H), of every state
    gates,  # (directions, T, B, S, H): what forward saved; or the preactivations, W instead of S; or None
    starts,  # a tuple of (directions, B, H), the initial states
    parameters,  # (directions, P, H), or None
    inputs,  # of the steps, a tuple of (directions, T, B, H); or None
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    recurrent_mask,  # (directions, B, H), or None
    d_histories,  # as histories
    d_finals,  # a tuple of (directions, B, H), or None
    dgates,  # (directions, T, B, W, H): written; the gradients of `Cell.blocks`
    d_starts,  # as starts: written
    T,
    B,
    reverse,  # whether the first direction of the forward ran from the end; the second always does
    STEP: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    GU: tl.constexpr,  # gates with a share of the state's product
    P: tl.constexpr,  # parameters
    W: tl.constexpr,  # blocks
    S: tl.constexpr,  # saved values
    PRE: tl.constexpr,  # pre-activations: the first of the blocks
    FINITE: tl.constexpr,  # whether gradients are finite where all that is loaded is zero
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
    GIVEN: tl.constexpr,  # which of d_histories are looked at: the others are zero
    ARE_PREACTIVATIONS: tl.constexpr,  # whether `gates` holds what the step is still to be applied to
):
    KEPT: tl.constexpr = PRE if ARE_PREACTIVATIONS else S
    KEPT_ROW: tl.constexpr = W if ARE_PREACTIVATIONS else S
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
    inside = (batch < B - first) & (unit < D)
    gates_tile, gates_inside = _wide_tiles(batch, B - first, H, KEPT, KEPT_ROW, D, DP)
    dgates_tile, dgates_inside = _wide_tiles(batch, B - first, H, W, W, D, DP)
    ys_tile = batch * wide + unit
    state_tile = batch * H + unit

    state_at = (direction * B.to(tl.int64) + first) * H + head * D
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    dgates_at = ((direction * T.to(tl.int64) + t) * B + first) * (W * H) + head * D
    gates_at = ((direction * T.to(tl.int64) + t) * B + first) * (KEPT_ROW * H) + head * D
    input_at = ((direction * T.to(tl.int64) + t) * B + first) * H + head * D
    ys_step = dt * B.to(tl.int64) * wide
    gates_step = dt * B.to(tl.int64) * (KEPT_ROW * H)
    dgates_step = dt * B.to(tl.int64) * (W * H)

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

    carried = (dh,)
    for _ in tl.static_range(1, len(starts)):
        carried = carried + (nothing,)
    if d_finals is not None:
        arriving = ()
        for k in tl.static_range(len(starts)):
            last = tl.load(d_finals[k] + state_at + state_tile, mask=inside, other=0.0).to(STATE)
            arriving = arriving + (carried[k] + last,)
        carried = arriving
    start = ()
    for k in tl.static_range(len(starts)):
        start = start + load_tiles(starts[k] + state_at, state_tile, 0, inside, 1, STATE)
    own = load_parameters(parameters, direction * P * H + head * D, unit, H, inside, D, P, STATE)
    mask = None
    if recurrent_mask is not None:
        mask = tl.load(recurrent_mask + state_at + state_tile, mask=inside, other=0.0).to(STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + batch, mask=batch < B - first, other=0).to(tl.int32)
    if resets is not None:
        # Each step loads the resets of the next: a byte is too narrow for the asynchronous copies that fetch the rest.
        reset_at = resets + tl.where(backwards, 1, T - 1) * B.to(tl.int64) + first
        coming = tl.load(reset_at + batch, mask=(batch < B - first) & (backwards < T), other=0).to(tl.int32)

    for step in tl.range(0, T, num_stages=STAGES):
        has_before = inside & (step < T - 1)
        starts_here = masks.starts(step == T - 1, t, length, backwards)
        if lengths is not None:
            live = masks.live(t, length)
        # What is not looked at is any tile. The next iteration loads again, as the state after its step, what this one
        # loads as the state before: what is carried would not be fetched ahead.
        d_after = ()
        before = ()
        after = ()
        for k in tl.static_range(len(starts)):
            d = carried[k]
            if GIVEN[k]:
                d += tl.load(d_histories[k] + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
            d_after = d_after + (d,)
            left, entered = start[k], start[k]
            if READS_AFTER[k]:
                left = tl.load(histories[k] + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
            if READS_BEFORE[k]:
                entered = tl.load(histories[k] + ys_at + ys_step + ys_tile, mask=has_before, other=0.0).to(STATE)
                entered = tl.where(starts_here, start[k], entered)
            before = before + (entered,)
            after = after + (left,)
        fed = ()
        if inputs is not None:
            fed = load_each(inputs, input_at, state_tile, inside, STATE)
            input_at += dt * B.to(tl.int64) * H
        if resets is not None:
            cut = masks.cut(coming, masks.entry(t, backwards), length)
            reset_at += dt * B.to(tl.int64)
            coming = tl.load(reset_at + batch, mask=(batch < B - first) & (step < T - 1 - backwards), other=0).to(
                tl.int32
            )
            before = select(cut, zeros_like(before), before)
        saved = ()
        if gates is not None:
            for k in tl.static_range(len(gates_tile)):
                kept = tl.load(gates + gates_at + gates_tile[k], mask=gates_inside[k], other=0.0).to(STATE)
                saved = saved + split_columns(kept, KEPT - 4 * k, DP, BT)
            if ARE_PREACTIVATIONS:
                saved = STEP(saved, before, own, fed, unit, D, APPROXIMATE)[1]
        d, direct = DERIVATIVE(d_after, saved, before, after, own, fed, unit, D, APPROXIMATE)
        if lengths is not None:
            d = select(live, d, zeros_like(d))
            direct = select(live, direct, carried)
        through, other = direct[0], nothing
        if mask is not None:
            through = nothing  # the mask is of what comes back through the product alone
        for gate in tl.static_range(GU):
            dgh = operand(d[DGH[gate]], unit, D, DP, FINITE, storage)
            if gate % 2 == 0:
                through = dot(dgh, w[gate], through, PRECISION)
            else:
                other = dot(dgh, w[gate], other, PRECISION)
        if GU > 1:
            through += other
        if mask is not None:
            through = direct[0] + multiplied(through, mask)
        flowing = (through,)
        for k in tl.static_range(1, len(starts)):
            flowing = flowing + (direct[k],)
        if resets is not None:
            flowing = select(cut, zeros_like(flowing), flowing)
        carried = flowing
        for k in tl.static_range(len(dgates_tile)):
            blocks = join_columns(d, 4 * k, DP, BT).to(storage)
            tl.store(dgates + dgates_at + dgates_tile[k], blocks, mask=dgates_inside[k])
        t += dt
        ys_at += ys_step
        gates_at += gates_step
        dgates_at += dgates_step

    for k in tl.static_range(len(d_starts)):
        tl.store(d_starts[k] + state_at + state_tile, carried[k], mask=inside)


@triton.jit
def _wide_tiles(batch, sequences, H, COUNT: tl.constexpr, ROW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """Where COUNT of a sequence's ROW vectors of H lie, as the offsets of wide tiles, and which of them exist."""
    offsets = ()
    inside = ()
    for k in tl.static_range(0, COUNT, 4):
        column = tl.arange(0, (COUNT - k if COUNT - k < 3 else 4) * DP)[None, :]
        here = (batch < sequences) & (column % DP < D)
        if COUNT - k == 3:
            here = here & (column // DP < 3)
        offsets = offsets + (batch * (ROW * H) + (k + column // DP) * H + column % DP,)
        inside = inside + (here,)
    return offsets, inside
