"""How a layer is split among threads: rows of the batch, or the hidden units of all rows."""

from __future__ import annotations

from typing import NamedTuple

from fastrnn.backends.numba.geometry import divide_up

WORK_PER_THREAD = 2_000_000
"""Multiplications. Measured on 2 cores: with half of it a second thread costs up to 25 us, with twice it saves 20 %."""
TEAM_PRODUCTS = 50_000
"""Multiplications of a step: below this, meeting after it costs two threads more than sharing it saves."""
TEAM_ROWS = ((2, 512 * 1024), (8, 1536 * 1024))
"""Up to so many rows for each thread, and from so many bytes of recurrent weights on, threads share the units of all
rows rather than have rows of their own: each then reads only its part of the weights. 0.72 to 0.97 of the time for
LSTM and GRU of 256 to 1024 units on 2 cores with second-level caches of 2 MB; more rows, or fewer units, lost up to a
tenth."""


class Split(NamedTuple):
    """Each direction's rows in `slices`, whose units `team` threads share, meeting for a product of the state alone."""

    slices: int
    team: int
    threads: int
    """for the whole launch"""


def split(
    batch: int, directions: int, steps: int, products: int, recurrent: int, item: int, panels: int, available: int
) -> Split:
    """A recurrence of `directions` over `steps`, with `products` multiplications for each row of the batch and step.

    Of these `recurrent` are with the state, whose weights are that many numbers of `item` bytes, in `panels` panels; 0
    if threads must not share units. There are `available` threads.
    """
    work = directions * steps * batch * products
    threads = max(1, min(available, directions * batch, work // WORK_PER_THREAD))
    slices = divide_up(threads, directions)
    each = available // directions
    if threads > 1 and any(batch <= rows * each and recurrent * item >= size for rows, size in TEAM_ROWS):
        slices = 1
    owners = directions * slices
    team = min(available // owners, panels) if divide_up(batch, slices) * recurrent >= TEAM_PRODUCTS else 1
    return Split(slices, max(1, team), owners * team if team > 1 else threads)


def split_units(batch: int, directions: int, steps: int, products: int, panels: int, available: int) -> Split:
    """As `split`, of a recurrence without a product of the state: threads that no row is left for share units.

    Of all ways the one in which the slowest thread has least to do, and of these that with most slices: a thread reads
    whole rows then.
    """
    wanted = max(1, min(available, directions * steps * batch * products // WORK_PER_THREAD))
    ways = []
    for slices in range(min(batch, divide_up(wanted, directions)), 0, -1):
        team = max(1, min(wanted // (directions * slices), panels))
        ways.append((divide_up(batch, slices) * divide_up(panels, team), Split(slices, team, 0)))
    slices, team, _ = min(ways, key=lambda way: way[0])[1]
    return Split(slices, team, min(wanted, directions * slices * team))
