"""One step of the recurrence, way 4: what is left of it beside the product of h and w_hh, which a library computes.

A program computes a tile of (sequences, units) of one head and direction. Buffers are passed whole, so that launches
differ in nothing but `s`, the number of the step in the order of computation. What one launch leaves for the next lies
head by head, (directions, N, B, D), which makes a head's h one matrix; the head's products lie the same way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import masks
from fastrnn.backends.triton.kernels.elements import load_cut, tile
from fastrnn.backends.triton.kernels.tiles import (
    load_each,
    load_parameters,
    load_tiles,
    multiplied,
    select,
    storable,
    zeros_like,
)


@triton.jit(do_not_specialize=["T", "B", "reverse", "s"])
def forward_step_kernel(
    gx,  # (directions, T, B, GX, H): x W_ihᵀ + b_ih
    gh,  # (directions, N, B, GU, D): h W_hhᵀ of the h that enters this step, or of `h_multiplied`
    b_forward,  # (GU, H): b_hh of the first direction, or None
    b_reverse,  # as b_forward
    parameters,  # (directions, P, H), or None
    inputs,  # of the steps, a tuple of (directions, T, B, H); or None
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    recurrent_mask,  # (directions, B, H), or None
    states,  # a tuple of (directions, N, B, D), h in the storage dtype: what enters this step, then the next
    h_exact,  # as h, in the state dtype; or None where h is exact or the cell's step looks at no h
    h_multiplied,  # as h: written, what of h enters the next step's product; None where there is no mask
    histories,  # a tuple of (T, B, directions·H), of h alone or of all states: written at this step's t, as are gates
    gates,  # (directions, T, B, S, H), or None
    T,
    B,
    reverse,  # whether the first direction runs from the end; the second always does
    s,
    PREACTIVATIONS: tl.constexpr,
    STEP: tl.constexpr,
    GX: tl.constexpr,  # gates with a share of the input's product
    GU: tl.constexpr,  # gates with a share of the state's product
    P: tl.constexpr,  # parameters
    S: tl.constexpr,  # saved values
    UNBOUNDED: tl.constexpr,  # which of them may be beyond float16
    FINITE: tl.constexpr,  # whether all of them are finite where x is zero, as it is made where a step is not live
    D: tl.constexpr,
    ROWS: tl.constexpr,  # sequences of a program
    UNITS: tl.constexpr,  # units of a program: all, where the cell takes means over them
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
):
    head, direction = tl.program_id(1), tl.program_id(2)
    H = tl.num_programs(1) * D
    wide = tl.num_programs(2) * H
    backwards = (direction == 1) | (reverse != 0)
    t = tl.where(backwards, T - 1 - s, s)
    first, row, unit, inside = tile(B, D, ROWS, UNITS)

    # Offsets within a tile are 32 bits wide, what leads to it 64.
    step_at = (direction * T.to(tl.int64) + t) * B + first
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    ys_tile = row * wide + unit
    own_at = (direction * tl.num_programs(1).to(tl.int64) + head) * B + first
    own_tile = row * D + unit

    x = load_tiles(gx + step_at * (GX * H) + head * D, row * (GX * H) + unit, H, inside, GX, STATE)
    product = load_tiles(gh + own_at * (GU * D), row * (GU * D) + unit, D, inside, GU, STATE)
    if b_forward is not None:
        b_hh = tl.where(direction == 0, b_forward, b_reverse) + head * D
        product = _sums(product, load_tiles(b_hh, unit, H, unit < D, GU, STATE))
    entering = ()
    for k in tl.static_range(len(states)):
        state = h_exact if k == 0 and h_exact is not None else states[k]
        entering = entering + (tl.load(state + (own_at * D + own_tile), mask=inside, other=0.0).to(STATE),)
    own = load_parameters(parameters, direction * P * H + head * D, unit, H, inside, D, P, STATE)
    fed = load_each(inputs, step_at * H + head * D, row * H + unit, inside, STATE)
    if recurrent_mask is not None:
        mask_at = (direction * B.to(tl.int64) + first) * H + head * D
        mask = tl.load(recurrent_mask + mask_at + (row * H + unit), mask=inside, other=0.0).to(STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + row, mask=row < B - first, other=0)
        live = masks.live(t, length)
        x = select(live, x, zeros_like(x))
    after, saved = STEP(PREACTIVATIONS(x, product), entering, own, fed, unit, D, APPROXIMATE)
    y = after[0]
    if lengths is not None:
        y = tl.where(live, y, 0.0)
        after = select(live, after, entering)
        if not FINITE:
            saved = select(live, saved, zeros_like(saved))
    tl.debug_barrier()  # no thread stores what enters the next step before all have read what enters this one
    tl.store(histories[0] + ys_at + ys_tile, y.to(histories[0].dtype.element_ty), mask=inside)
    for k in tl.static_range(1, len(histories)):
        tl.store(histories[k] + ys_at + ys_tile, after[k], mask=inside)
    if gates is not None:
        gates_tile = row * (S * H) + unit
        values = storable(saved, gates.dtype.element_ty, UNBOUNDED)
        for k in tl.static_range(S):
            value = values[k].to(gates.dtype.element_ty)
            tl.store(gates + step_at * (S * H) + head * D + k * H + gates_tile, value, mask=inside)
    if resets is not None:
        cut = load_cut(resets, masks.exit(t, backwards), s < T - 1, length, first, row, B)
        after = select(cut, zeros_like(after), after)
    for k in tl.static_range(len(states)):
        tl.store(states[k] + own_at * D + own_tile, after[k].to(states[k].dtype.element_ty), mask=inside)
    if h_exact is not None:
        tl.store(h_exact + own_at * D + own_tile, after[0], mask=inside)
    if recurrent_mask is not None:
        h = multiplied(after[0], mask)
        tl.store(h_multiplied + own_at * D + own_tile, h.to(h_multiplied.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "B", "reverse", "s"])
def backward_step_kernel(
    histories,  # a tuple of (T, B, directions·H), of every state
    gates,  # (directions, T, B, S, H): what forward saved; or the preactivations, W instead of S; or None
    starts,  # a tuple of (directions, B, H), the initial states
    parameters,  # (directions, P, H), or None
    inputs,  # of the steps, a tuple of (directions, T, B, H); or None
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    recurrent_mask,  # (directions, B, H), or None
    d_histories,  # as histories
    product,  # (directions, N, B, D): dgh W_hh of the step computed before, not looked at where s is 0
    d_states,  # a tuple of (directions, N, B, D) in the state dtype: what else reaches the states after this step, then
    # what reaches those before it
    dgates,  # (directions, T, B, W, H): written at this step's t; the gradients of `Cell.blocks`
    dgh,  # (directions, N, B, GU, D): written, those of gh once more; or None
    T,
    B,
    reverse,  # whether the first direction of the forward ran from the end; the second always does
    s,
    STEP: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    GU: tl.constexpr,  # gates with a share of the state's product
    P: tl.constexpr,  # parameters
    W: tl.constexpr,  # blocks
    S: tl.constexpr,  # saved values
    PRE: tl.constexpr,  # pre-activations: the first of the blocks
    DGH: tl.constexpr,  # which block is the gradient of each of the gates with a share of the state's product
    D: tl.constexpr,
    ROWS: tl.constexpr,  # sequences of a program
    UNITS: tl.constexpr,  # units of a program: all, where the cell takes means over them
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
    GIVEN: tl.constexpr,  # which of d_histories are looked at: the others are zero
    ARE_PREACTIVATIONS: tl.constexpr,  # whether `gates` holds what the step is still to be applied to
):
    head, direction = tl.program_id(1), tl.program_id(2)
    H = tl.num_programs(1) * D
    wide = tl.num_programs(2) * H
    backwards = (direction == 1) | (reverse != 0)
    dt = tl.where(backwards, 1, -1)  # against the direction of the forward
    t = tl.where(backwards, s, T - 1 - s)
    first, row, unit, inside = tile(B, D, ROWS, UNITS)

    # Offsets within a tile are 32 bits wide, what leads to it 64.
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * H + head * D
    ys_tile = row * wide + unit
    before_at = ys_at + dt * B.to(tl.int64) * wide
    start_at = (direction * B.to(tl.int64) + first) * H + head * D + row * H + unit
    step_at = (direction * T.to(tl.int64) + t) * B + first
    own_at = (direction * tl.num_programs(1).to(tl.int64) + head) * B + first
    own_tile = row * D + unit

    # No load is masked by what another one brings: that would add one latency to another.
    length = None
    live = inside
    is_first = inside & (s == T - 1)
    may_start = is_first
    arrives = inside & (s > 0)
    if lengths is not None:
        length = tl.load(lengths + first + row, mask=row < B - first, other=0)
        live = inside & masks.live(t, length)
        may_start = may_start | (inside & backwards)
    if resets is not None:
        arrives = arrives & ~load_cut(resets, masks.exit(t, backwards), s > 0, length, first, row, B)

    is_start = masks.starts(is_first, t, length, backwards)
    through = tl.load(product + own_at * D + own_tile, mask=inside & (s > 0), other=0.0).to(STATE)
    if recurrent_mask is not None:
        mask = tl.load(recurrent_mask + start_at, mask=inside, other=0.0).to(STATE)
        through = multiplied(through, mask)
    has_before = inside & (s < T - 1)
    carried = ()
    d_after = ()
    before = ()
    after = ()
    for k in tl.static_range(len(histories)):
        d = tl.load(d_states[k] + own_at * D + own_tile, mask=inside, other=0.0)
        if k == 0:
            d = d + tl.where(arrives, through, 0.0)
        carried = carried + (d,)
        if GIVEN[k]:
            more = tl.load(d_histories[k] + (ys_at + ys_tile), mask=inside, other=0.0).to(d.dtype)
            d = d + tl.where(live, more, 0.0)
        d_after = d_after + (d,)
        entered = tl.load(histories[k] + before_at + ys_tile, mask=has_before, other=0.0).to(STATE)
        at_start = tl.load(starts[k] + start_at, mask=may_start, other=0.0).to(STATE)
        before = before + (tl.where(is_start, at_start, entered),)
        after = after + (tl.load(histories[k] + ys_at + ys_tile, mask=inside, other=0.0).to(STATE),)
    if resets is not None:
        k = masks.entry(t, backwards)
        cut = load_cut(resets, k, k < T, length, first, row, B)
        before = select(cut, zeros_like(before), before)
    own = load_parameters(parameters, direction * P * H + head * D, unit, H, inside, D, P, STATE)
    fed = load_each(inputs, step_at * H + head * D, row * H + unit, inside, STATE)
    saved = ()
    if ARE_PREACTIVATIONS:
        pre = load_tiles(gates + step_at * (W * H) + head * D, row * (W * H) + unit, H, inside, PRE, STATE)
        saved = STEP(pre, before, own, fed, unit, D, APPROXIMATE)[1]
    elif gates is not None:
        saved = load_tiles(gates + step_at * (S * H) + head * D, row * (S * H) + unit, H, inside, S, STATE)

    d, flowing = DERIVATIVE(d_after, saved, before, after, own, fed, unit, D, APPROXIMATE)
    if resets is not None:
        flowing = select(cut, zeros_like(flowing), flowing)
    if lengths is not None:
        d = select(live, d, zeros_like(d))
        flowing = select(live, flowing, carried)
    tl.debug_barrier()  # as in `forward_step_kernel`; gradients may take the place of preactivations, too
    dgates_at = dgates + step_at * (W * H) + head * D
    for k in tl.static_range(W):
        tl.store(dgates_at + k * H + (row * (W * H) + unit), d[k].to(dgates.dtype.element_ty), mask=inside)
    if dgh is not None:
        for k in tl.static_range(GU):
            value = d[DGH[k]].to(dgh.dtype.element_ty)
            tl.store(dgh + own_at * (GU * D) + k * D + row * (GU * D) + unit, value, mask=inside)
    for k in tl.static_range(len(d_states)):
        tl.store(d_states[k] + own_at * D + own_tile, flowing[k], mask=inside)


@triton.jit
def _sums(a, b):
    """a + b, tile by tile."""
    out = ()
    for k in tl.static_range(len(a)):
        out = out + (a[k] + b[k],)
    return out
