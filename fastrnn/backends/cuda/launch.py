"""What kernels are handed: addresses, sizes and flags by the names of `csrc/arguments.h`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import extension
from fastrnn.backends.addresses import address
from fastrnn.backends.cuda import ELEMENTS, run_time
from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers, Named
from fastrnn.cells import CELLS


def forward(layer: Layer, buffers: ForwardBuffers) -> None:
    """Fills histories, gates and finals."""
    _launch("forward", layer, buffers.named())


def backward(layer: Layer, buffers: BackwardBuffers) -> None:
    """Fills dgates and d_states0."""
    _launch("backward", layer, buffers.named(), are_preactivations=buffers.are_preactivations)


def _launch(operation: str, layer: Layer, named: Named, **flags: bool) -> None:
    values: dict[str, Any] = {
        name: address(value) if value is None or isinstance(value, Tensor) else tuple(map(address, value))
        for name, value in named.items()
    }
    values["T"], values["B"], _ = layer.x.shape
    values["H"], values["heads"], values["directions"] = layer.hidden_size, layer.heads, layer.directions
    values["reverse"] = layer.reverse
    values.update(flags)
    call = (layer.cell_name, ELEMENTS[layer.x.dtype], values, *_place(layer.x.device))
    if layer.cell_name in CELLS:
        getattr(extension.load(), operation)(*call)
    else:
        run_time.launch(operation, *call)


def _place(device: torch.device) -> tuple[int, int]:
    """The device's number and the current stream of it; of no meaning on the CPU."""
    if device.type == "cpu":
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream
