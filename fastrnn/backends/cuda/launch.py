"""What the extension's kernels are handed: the addresses of the buffers, in the order of `csrc/arguments.h`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import extension
from fastrnn.backends.addresses import address
from fastrnn.backends.cuda import ELEMENTS
from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers, both


def forward(layer: Layer, buffers: ForwardBuffers) -> None:
    """Fills ys, cs, gates and finals."""
    extension.load().forward(
        layer.cell_name,
        ELEMENTS[layer.x.dtype],
        address(buffers.gx),
        *_pair(buffers.w_hh),
        *_pair(buffers.b_hh),
        *_pair(buffers.states0),
        address(buffers.masks.lengths),
        address(buffers.masks.resets),
        address(buffers.ys),
        address(buffers.cs),
        address(buffers.gates),
        *_pair(buffers.finals),
        *_sizes(layer),
        *_place(layer.x.device),
    )


def backward(layer: Layer, buffers: BackwardBuffers) -> None:
    """Fills dgates and d_states0."""
    extension.load().backward(
        layer.cell_name,
        ELEMENTS[layer.x.dtype],
        *_pair(buffers.w_hh),
        address(buffers.ys),
        address(buffers.cs),
        address(buffers.gates),
        buffers.are_preactivations,
        *_pair(buffers.states0),
        address(buffers.masks.lengths),
        address(buffers.masks.resets),
        address(buffers.dys),
        address(buffers.dcs),
        *_pair(buffers.d_finals),
        address(buffers.dgates),
        *_pair(buffers.d_states0),
        *_sizes(layer),
        *_place(layer.x.device),
    )


def _pair(tensors: list[Tensor]) -> tuple[int, int]:
    """Of up to two tensors, 0 for each that there is not."""
    first, second = both(tensors)
    return address(first), address(second)


def _sizes(layer: Layer) -> tuple[Any, ...]:
    steps, batch, _ = layer.x.shape
    return steps, batch, layer.hidden_size, layer.heads, layer.directions, layer.reverse


def _place(device: torch.device) -> tuple[int, int]:
    """The device's number and the current stream of it; of no meaning on the CPU."""
    if device.type == "cpu":
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream
