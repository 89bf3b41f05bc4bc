"""Chunks of steps as one step: a recurrence that is linear, y' = A y + b, is after any number of steps y' = P y + e.

P is the product of their A and e what they make of zero: together a chunk's *summary*, which needs nothing of what
enters the chunk. So all chunks are summarised at once, and what enters one follows from the summaries of those before.

A matrix is a tuple of those entries alone that are not zero by construction. FACTORS has for every place, row by row,
where in the tuple A's entry is, or -1; PRODUCTS says the same of products of such matrices, the identity among them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastrnn.backends.triton.kernels.tiles import load_tiles


@triton.jit
def nothing_done(like, PRODUCTS: tl.constexpr, N: tl.constexpr):
    """The summary of no step: the identity, then zeros."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            if PRODUCTS[i * N + j] >= 0:
                out = out + (tl.zeros_like(like) + (1.0 if i == j else 0.0),)
    for _ in tl.static_range(N):
        out = out + (tl.zeros_like(like),)
    return out


@triton.jit
def product(factors, summary, FACTORS: tl.constexpr, PRODUCTS: tl.constexpr, N: tl.constexpr):
    """The entries of A P, P being that of a summary."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            if PRODUCTS[i * N + j] >= 0:
                total = tl.zeros_like(summary[0])
                for k in tl.static_range(N):
                    if FACTORS[i * N + k] >= 0 and PRODUCTS[k * N + j] >= 0:
                        total += factors[FACTORS[i * N + k]] * summary[PRODUCTS[k * N + j]]
                out = out + (total,)
    return out


@triton.jit
def applied(factors, values, rest, PLACES: tl.constexpr, N: tl.constexpr):
    """A y + b of N values; PLACES is FACTORS or PRODUCTS, by what the matrix is."""
    out = ()
    for i in tl.static_range(N):
        total = rest[i]
        for j in tl.static_range(N):
            if PLACES[i * N + j] >= 0:
                total += factors[PLACES[i * N + j]] * values[j]
        out = out + (total,)
    return out


@triton.jit
def last_of(tiles, COUNT: tl.constexpr):
    """The last tiles of a tuple: of a summary what its steps make of zero."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tiles[len(tiles) - COUNT + k],)
    return out


@triton.jit
def chosen(tiles, PLACES: tl.constexpr):
    """The tiles at these places."""
    out = ()
    for k in tl.static_range(len(PLACES)):
        out = out + (tiles[PLACES[k]],)
    return out


@triton.jit
def place(summaries, chunk, chunks, first, B, D: tl.constexpr):
    """Where in summaries (values, directions, chunks, B, D) the first value of a chunk lies, of this program's
    direction, from the sequence `first` on."""
    return summaries + ((tl.program_id(2) * chunks.to(tl.int64) + chunk) * B + first) * D


@triton.jit
def store_summary(summary, at, chunks, B, D: tl.constexpr, inside):
    value_size = tl.num_programs(2) * chunks.to(tl.int64) * B * D
    for k in tl.static_range(len(summary)):
        tl.store(at + k * value_size, summary[k], mask=inside)


@triton.jit
def composed(values, at, count, chunks, B, D: tl.constexpr, inside, STAGES: tl.constexpr, PRODUCTS: tl.constexpr):
    """What N values are after the first `count` chunks, of whose summaries `at` leads to the first."""
    N: tl.constexpr = len(values)
    ENTRIES: tl.constexpr = PRODUCTS[N * N - 1] + 1  # the identity's last entry comes last
    value_size = tl.num_programs(2) * chunks.to(tl.int64) * B * D
    for _ in tl.range(0, count, num_stages=STAGES):
        summary = load_tiles(at, 0, value_size, inside, ENTRIES + N, at.dtype.element_ty)
        values = applied(summary, values, last_of(summary, N), PRODUCTS, N)
        at += B.to(tl.int64) * D
    return values


@triton.jit
def are_finite(tiles):
    """Whether every element of every tile is a number."""
    wrong = tl.zeros_like(tiles[0]).to(tl.int32)
    for k in tl.static_range(len(tiles)):
        wrong = wrong | tl.where(tl.abs(tiles[k]) < float("inf"), 0, 1)
    return tl.max(tl.max(wrong, 1), 0) == 0
