"""What a stream's kernel works on: states, scratch memory, and its blocks of arguments."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from fastrnn.backends.numba import launch, workspace
from fastrnn.backends.numba.arguments import StreamCall, StreamLayer
from fastrnn.backends.numba.cell_code import cell_code
from fastrnn.backends.numba.geometry import CACHE_LINE, PANEL_VECTORS, Arena, divide_up
from fastrnn.backends.numba.stream_weights import Sizes, StreamWeights, limit

CHUNK_ROWS = 32
"""Rows of x that are multiplied at a time: what the products of 512 units of an LSTM then take fits the second-level
cache."""
FLOAT = torch.float32


class StreamMemory:
    """All that a stream's kernel reads and writes but x, the output and the weights, which may be others' too.

    Args:
        weights: those of all layers.
        steps, batch: the most of a call.
        streams: how many states there are.
        batch_first: whether x and the output are (rows, steps, ...).
    """

    def __init__(self, weights: StreamWeights, steps: int, batch: int, streams: int, batch_first: bool = False) -> None:
        self.weights, self.batch, self.streams = weights, batch, streams
        self.lanes, self.kernel = weights.lanes, weights.kernel
        self.chunk = max(1, min(steps, CHUNK_ROWS // batch))
        self._others = len(weights.cell.states) - 1
        self.home = torch.zeros((streams, self._home_row()), dtype=FLOAT)
        """states, a row for each: of each layer h and the others"""
        self._marks = torch.zeros(streams, dtype=torch.uint8)
        self._taken = torch.zeros(batch, dtype=torch.int64)
        arena = Arena()
        offsets = [self._scratch(arena, sizes) for sizes in weights.sizes]
        self._memory = workspace.pages(arena.size)
        call = StreamCall(*[0] * len(StreamCall._fields))._replace(
            layers=len(offsets),
            swaps=int(batch_first),
            chunk=self.chunk,
            streams=streams,
            marks=self._marks.data_ptr(),
            taken=self._taken.data_ptr(),
        )
        self.blocks = array("q")
        self._state_places: list[tuple[int, ...]] = []
        home, start = 0, self._memory.data_ptr()
        for sizes, own, of_weights in zip(weights.sizes, offsets, weights.addresses, strict=True):
            at = {**of_weights, **{name: start + offset for name, offset in own.items()}}
            others = home + sizes.outputs
            self._state_places.append((home, *[others + k * sizes.hidden for k in range(self._others)]))
            self.blocks.extend((*call, *self._block(sizes, at, home, others)))
            home = others + self._others * sizes.hidden
        self.states = self._views()
        """views of all states, (layers, streams, P or H) each"""

    def _views(self) -> list[Tensor]:
        views = []
        for number in range(self._others + 1):
            places = [layer[number] for layer in self._state_places]
            sizes = self.weights.sizes[0]
            shape = (len(places), self.streams, sizes.hidden if number else sizes.outputs)
            apart = places[1] - places[0] if len(places) > 1 else 0
            views.append(self.home.as_strided(shape, (apart, self.home.stride(0), 1), places[0]))
        return views

    def call(self) -> None:
        """Calls the kernel with its blocks as they are."""
        launch.call(self.kernel.address, self.blocks)

    def _home_row(self) -> int:
        row = sum(sizes.outputs + self._others * sizes.hidden for sizes in self.weights.sizes)
        return divide_up(row, CACHE_LINE // FLOAT.itemsize) * (CACHE_LINE // FLOAT.itemsize)

    def _scratch(self, arena: Arena, sizes: Sizes) -> dict[str, int]:
        """Where a layer's scratch memory lies."""
        item, rows = FLOAT.itemsize, self.chunk * self.batch
        step_kept = cell_code(self.weights.cell.key).kernel.step_kept
        quantised = self._quantised_row(sizes)
        return {
            "no_bias": arena.take(PANEL_VECTORS * self.lanes * item),
            "rows_at": arena.take(rows * self._whole(sizes.inputs) * item),
            "h": arena.take(2 * self.batch * self._h_row(sizes) * item),
            "others": arena.take(self._others * self.batch * sizes.padded * item),
            "m": arena.take(self.batch * sizes.padded * item),
            "gx": arena.take(rows * sizes.padded * self.weights.x_gates * item),
            "gh": arena.take(self.batch * sizes.padded * self.weights.u_gates * item),
            "kept": arena.take(step_kept * sizes.padded * item),
            "qx": arena.take(rows * (self._whole(sizes.inputs) + self.lanes) * 2),
            "qx_scales": arena.take(rows * item),
            "qh": arena.take(self.batch * quantised * 2),
            "qh_scales": arena.take(self.batch * item),
        }

    def _whole(self, numbers: int) -> int:
        """In whole registers."""
        return self.kernel.geometry.padded(numbers, 1)

    def _quantised_row(self, sizes: Sizes) -> int:
        """Room for h or for what is projected; one more vector, of which the last pair may begin."""
        return self._whole(max(sizes.outputs, sizes.hidden)) + self.lanes

    def _h_row(self, sizes: Sizes) -> int:
        """Whole panels, of a projection too."""
        return max(sizes.padded, self.kernel.geometry.padded(sizes.outputs))

    def _block(self, sizes: Sizes, at: dict[str, int], home: int, others: int) -> StreamLayer:
        row, start = self.home.stride(0), self.home.data_ptr()
        h, beside = (start + place * FLOAT.itemsize for place in (home, others))
        return StreamLayer(
            inputs=sizes.inputs,
            hidden=sizes.hidden,
            outputs=sizes.outputs,
            panels=sizes.panels,
            extents=sizes.of.address,
            depth=sizes.of.depth,
            projected=int(sizes.projected),
            h_from=h,
            h_to=h,
            h_home_row=row,
            others_from=beside,
            others_to=beside,
            others_home_row=row,
            others_home_apart=sizes.hidden,
            rows_row=self._whole(sizes.inputs),
            h_row=self._h_row(sizes),
            current=0,
            others_row=sizes.padded,
            qx_row=self._whole(sizes.inputs) + self.lanes,
            qx_limit=limit(sizes.inputs),
            qh_row=self._quantised_row(sizes),
            qh_limit=limit(sizes.of.depth),
            qm_limit=limit(sizes.hidden),
            **at,
        )
