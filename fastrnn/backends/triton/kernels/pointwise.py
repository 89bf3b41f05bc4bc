"""The recurrence without a product, all steps in one launch: a program computes a tile of (sequences, units).

Nothing is shared between units, so that a program of one warp waits for nobody. What a step reads is asked for two
steps ahead, as in `forward.py`: it is loaded, never carried. In 16 bits that takes two units side by side: where there
is an odd number of units a step waits for its own loads.

A kernel has three forms. With `summaries` None a program computes all steps. In a scan (`scan.py`) chunks of
`chunk_steps` steps, an axis of the grid, are computed side by side, in two launches: where SUMMARIZES, the first one
writes the summaries of all chunks but the last; the second composes what enters a chunk and computes its steps.

Products of factors that vanish are harmless: what they carried had vanished as well. Products that overflow, of factors
above 1, are not: infinity times zero is no number where step by step all may be finite. So where what is composed for a
tile is not finite, its program computes all steps from the first, and stores those of its own chunk: then the results
are those of the first form, to the bit. What is finite is as right as if the values that enter the chunk, and its
steps' inputs, had been rounded once more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels import masks, scan
from fastrnn.backends.triton.kernels.elements import load_cut, load_reset, tile
from fastrnn.backends.triton.kernels.tiles import load_each, load_parameters, load_tiles, select, storable, zeros_like


@triton.jit(do_not_specialize=["T", "B", "reverse", "chunk_steps"])
def forward_kernel(
    gx,  # (directions, T, B, GX, D): x W_ihᵀ + b_ih
    parameters,  # (directions, P, D), or None
    inputs,  # of the steps, a tuple of (directions, T, B, D); or None
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    starts,  # a tuple of (directions, B, D), the initial states
    summaries,  # (values, directions, chunks - 1, B, D): the entries of P, then e, of each chunk; or None
    histories,  # a tuple of (T, B, directions·D), of h alone or of all states: written
    gates,  # (directions, T, B, S, D): written; or None
    finals,  # as starts: written
    T,
    B,
    reverse,  # whether the first direction runs from the end; the second always does
    chunk_steps,  # T where there are no chunks
    PREACTIVATIONS: tl.constexpr,
    STEP: tl.constexpr,
    LINEAR_STEP: tl.constexpr,
    GX: tl.constexpr,  # gates
    P: tl.constexpr,  # parameters
    S: tl.constexpr,  # saved values
    UNBOUNDED: tl.constexpr,  # which of them may be beyond float16
    FINITE: tl.constexpr,  # whether all of them are finite where x is zero, as it is made where a step is not live
    D: tl.constexpr,  # units
    ROWS: tl.constexpr,  # sequences of a program
    UNITS: tl.constexpr,  # units of a program
    STAGES: tl.constexpr,  # how many steps ahead tiles are fetched, plus one
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
    SUMMARIZES: tl.constexpr,
    CARRIED: tl.constexpr,  # the places of those states that enter steps: a summary is of these
    FACTORS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    N: tl.constexpr = len(CARRIED)
    chunk, direction = tl.program_id(1), tl.program_id(2)
    wide = tl.num_programs(2) * D
    backwards = (direction == 1) | (reverse != 0)
    dt = tl.where(backwards, -1, 1)
    first, row, unit, inside = tile(B, D, ROWS, UNITS)
    own = load_parameters(parameters, direction * P * D, unit, D, inside, D, P, STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + row, mask=row < B - first, other=0).to(tl.int32)

    mine = chunk * chunk_steps
    begin, end = mine, mine + tl.minimum(chunk_steps, T - mine)
    state_at = (direction * B.to(tl.int64) + first) * D
    state_tile = row * D + unit
    if SUMMARIZES:
        states = scan.nothing_done(tl.zeros(inside.shape, STATE), PRODUCTS, N)
    else:
        states = load_each(starts, state_at, state_tile, inside, STATE)
        if resets is not None:
            states = select(load_cut(resets, 0, not backwards, length, first, row, B), zeros_like(states), states)
        if summaries is not None:
            at = scan.place(summaries, 0, tl.num_programs(1) - 1, first, B, D) + state_tile
            known = scan.chosen(states, CARRIED)
            known = scan.composed(known, at, chunk, tl.num_programs(1) - 1, B, D, inside, STAGES, PRODUCTS)
            begin = tl.where(scan.are_finite(known), mine, 0)
            entering = ()
            for k in tl.static_range(len(states)):
                composed = tl.zeros_like(states[k])
                for i in tl.static_range(N):
                    if CARRIED[i] == k:
                        composed = known[i]
                entering = entering + (tl.where(begin == 0, states[k], composed),)
            states = entering

    # Offsets within a tile are 32 bits wide, what leads to it 64.
    t = tl.where(backwards, T - 1 - begin, begin)
    step_at = (direction * T.to(tl.int64) + t) * B + first
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * D
    ys_tile = row * wide + unit
    if resets is not None:
        # Each step loads the resets of the next: a byte is too narrow for the asynchronous copies that fetch the rest.
        k_reset = masks.exit(t, backwards)
        coming = load_reset(resets, k_reset, (k_reset > 0) & (k_reset < T), first, row, B)
    for s in tl.range(begin, end, num_stages=STAGES):
        x = load_tiles(gx + step_at * (GX * D), row * (GX * D) + unit, D, inside, GX, STATE)
        fed = load_each(inputs, step_at * D, state_tile, inside, STATE)
        if lengths is not None:
            live = masks.live(t, length)
            x = select(live, x, zeros_like(x))
        pre = PREACTIVATIONS(x, ())
        if SUMMARIZES:
            factors, rest = LINEAR_STEP(pre, own, fed, APPROXIMATE)
            after = scan.product(factors, states, FACTORS, PRODUCTS, N)
            after = after + scan.applied(factors, scan.last_of(states, N), rest, FACTORS, N)
        else:
            after, saved = STEP(pre, states, own, fed, unit, D, APPROXIMATE)
        y = after[0]
        if lengths is not None:
            y = tl.where(live, y, 0.0)
            after = select(live, after, states)
        if not SUMMARIZES:
            stored = inside if summaries is None else inside & (s >= mine)
            tl.store(histories[0] + ys_at + ys_tile, y.to(histories[0].dtype.element_ty), mask=stored)
            for k in tl.static_range(1, len(histories)):
                tl.store(histories[k] + ys_at + ys_tile, after[k], mask=stored)
            if gates is not None:
                if lengths is not None and not FINITE:
                    saved = select(live, saved, zeros_like(saved))
                gates_at, gates_tile = gates + step_at * (S * D), row * (S * D) + unit
                values = storable(saved, gates.dtype.element_ty, UNBOUNDED)
                for k in tl.static_range(S):
                    tl.store(gates_at + k * D + gates_tile, values[k].to(gates.dtype.element_ty), mask=stored)
        if resets is not None:
            cut = masks.cut(coming, k_reset, length)
            k_reset += dt
            coming = load_reset(resets, k_reset, (k_reset > 0) & (k_reset < T), first, row, B)
            after = select(cut, zeros_like(after), after)
        states = after
        t += dt
        step_at += dt * B.to(tl.int64)
        ys_at += dt * B.to(tl.int64) * wide

    if SUMMARIZES:
        at = scan.place(summaries, chunk, tl.num_programs(1), first, B, D) + state_tile
        scan.store_summary(states, at, tl.num_programs(1), B, D, inside)
    else:
        if summaries is not None:
            # Of a state that enters nothing, the chunk with the last live step alone knows the value.
            last = T - 1
            if lengths is not None:
                last = tl.where(backwards & (length > 0), T - 1, tl.maximum(length - 1, 0))
            inside = inside & (last >= mine) & (last < end)
        for k in tl.static_range(len(states)):
            tl.store(finals[k] + state_at + state_tile, states[k].to(finals[k].dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "B", "reverse", "chunk_steps"])
def backward_kernel(
    histories,  # a tuple of (T, B, directions·D), of every state
    gates,  # (directions, T, B, S, D): what forward saved; or the preactivations, W instead of S; or None
    starts,  # a tuple of (directions, B, D), the initial states
    parameters,  # (directions, P, D), or None
    inputs,  # of the steps, a tuple of (directions, T, B, D); or None
    lengths,  # (B,) int64, or None
    resets,  # (T, B) uint8, or None
    d_histories,  # as histories
    d_finals,  # as starts; or None
    summaries,  # as forward, of all gradients that flow from step to step; or None
    dgates,  # (directions, T, B, W, D): written; the gradients of `Cell.blocks`
    d_starts,  # as starts: written
    T,
    B,
    reverse,  # whether the first direction of the forward ran from the end; the second always does
    chunk_steps,  # T where there are no chunks
    STEP: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    LINEAR_DERIVATIVE: tl.constexpr,
    P: tl.constexpr,  # parameters
    W: tl.constexpr,  # blocks
    S: tl.constexpr,  # saved values
    PRE: tl.constexpr,  # pre-activations: the first of the blocks
    D: tl.constexpr,  # units
    ROWS: tl.constexpr,  # sequences of a program
    UNITS: tl.constexpr,  # units of a program
    STAGES: tl.constexpr,  # how many steps ahead tiles are fetched, plus one
    APPROXIMATE: tl.constexpr,
    STATE: tl.constexpr,  # the dtype of states and sums
    GIVEN: tl.constexpr,  # which of d_histories are looked at: the others are zero
    ARE_PREACTIVATIONS: tl.constexpr,  # whether `gates` holds what the step is still to be applied to
    SUMMARIZES: tl.constexpr,
    FACTORS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    N: tl.constexpr = len(histories)
    chunk, direction = tl.program_id(1), tl.program_id(2)
    wide = tl.num_programs(2) * D
    backwards = (direction == 1) | (reverse != 0)
    dt = tl.where(backwards, 1, -1)  # against the direction of the forward
    first, row, unit, inside = tile(B, D, ROWS, UNITS)
    own = load_parameters(parameters, direction * P * D, unit, D, inside, D, P, STATE)
    length = None
    if lengths is not None:
        length = tl.load(lengths + first + row, mask=row < B - first, other=0).to(tl.int32)

    mine = chunk * chunk_steps
    begin, end = mine, mine + tl.minimum(chunk_steps, T - mine)
    state_at = (direction * B.to(tl.int64) + first) * D
    state_tile = row * D + unit
    start = load_each(starts, state_at, state_tile, inside, STATE)
    none = zeros_like(start)
    if SUMMARIZES:
        flowing = scan.nothing_done(start[0], PRODUCTS, N)
    else:
        flowing = none
        if d_finals is not None:
            flowing = load_each(d_finals, state_at, state_tile, inside, STATE)
        if summaries is not None:
            at = scan.place(summaries, 0, tl.num_programs(1) - 1, first, B, D) + state_tile
            known = scan.composed(flowing, at, chunk, tl.num_programs(1) - 1, B, D, inside, STAGES, PRODUCTS)
            begin = tl.where(scan.are_finite(known), mine, 0)
            flowing = select(begin == 0, flowing, known)

    # Offsets within a tile are 32 bits wide, what leads to it 64.
    t = tl.where(backwards, begin, T - 1 - begin)
    step_at = (direction * T.to(tl.int64) + t) * B + first
    ys_at = (t * B.to(tl.int64) + first) * wide + direction * D
    ys_tile = row * wide + unit
    if resets is not None:
        # Each step loads the resets of the next: a byte is too narrow for the asynchronous copies that fetch the rest.
        k_reset = masks.entry(t, backwards)
        coming = load_reset(resets, k_reset, k_reset < T, first, row, B)
    for s in tl.range(begin, end, num_stages=STAGES):
        if lengths is not None:
            live = masks.live(t, length)
        is_start = masks.starts(s == T - 1, t, length, backwards)
        has_before = inside & (s < T - 1)
        d_after = ()
        before = ()
        after = ()
        for k in tl.static_range(N):
            d = flowing[len(flowing) - N + k]
            if GIVEN[k]:
                more = tl.load(d_histories[k] + ys_at + ys_tile, mask=inside, other=0.0).to(STATE)
                d += more if lengths is None else tl.where(live, more, 0.0)
            d_after = d_after + (d,)
            # The next step loads again, as the state after it, what this one loads as the state before: what is carried
            # would not be fetched ahead.
            entered = tl.load(histories[k] + ys_at + dt * B.to(tl.int64) * wide + ys_tile, mask=has_before, other=0.0)
            before = before + (tl.where(is_start, start[k], entered.to(STATE)),)
            after = after + (tl.load(histories[k] + ys_at + ys_tile, mask=inside, other=0.0).to(STATE),)
        if resets is not None:
            cut = masks.cut(coming, k_reset, length)
            k_reset += dt
            coming = load_reset(resets, k_reset, (k_reset >= 0) & (k_reset < T), first, row, B)
            before = select(cut, none, before)
        fed = load_each(inputs, step_at * D, state_tile, inside, STATE)
        saved = ()
        if ARE_PREACTIVATIONS:
            pre = load_tiles(gates + step_at * (W * D), row * (W * D) + unit, D, inside, PRE, STATE)
            saved = STEP(pre, before, own, fed, unit, D, APPROXIMATE)[1]
        elif gates is not None:
            saved = load_tiles(gates + step_at * (S * D), row * (S * D) + unit, D, inside, S, STATE)
        if SUMMARIZES:
            factors = LINEAR_DERIVATIVE(saved, before, after, own, fed, APPROXIMATE)
            direct = scan.product(factors, flowing, FACTORS, PRODUCTS, N)
            direct = direct + scan.applied(factors, d_after, none, FACTORS, N)
        else:
            d, direct = DERIVATIVE(d_after, saved, before, after, own, fed, unit, D, APPROXIMATE)
            if lengths is not None:
                d = select(live, d, zeros_like(d))
            stored = inside if summaries is None else inside & (s >= mine)
            dgates_at, dgates_tile = dgates + step_at * (W * D), row * (W * D) + unit
            for k in tl.static_range(W):
                tl.store(dgates_at + k * D + dgates_tile, d[k].to(dgates.dtype.element_ty), mask=stored)
        if resets is not None:
            direct = select(cut, zeros_like(direct), direct)
        if lengths is not None:
            direct = select(live, direct, flowing)
        flowing = direct
        t += dt
        step_at += dt * B.to(tl.int64)
        ys_at += dt * B.to(tl.int64) * wide

    if SUMMARIZES:
        at = scan.place(summaries, chunk, tl.num_programs(1), first, B, D) + state_tile
        scan.store_summary(flowing, at, tl.num_programs(1), B, D, inside)
    else:
        inside = inside & (end == T)
        for k in tl.static_range(N):
            tl.store(d_starts[k] + state_at + state_tile, flowing[k].to(d_starts[k].dtype.element_ty), mask=inside)
