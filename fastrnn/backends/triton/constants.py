"""What every kernel knows of a cell and a dtype when it is compiled."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from fastrnn.backends.layer import Layer
from fastrnn.backends.triton.kernels.cells import FUNCTIONS


def cell_constants(layer: Layer) -> dict[str, Any]:
    """The compile-time arguments that kernels share, by name."""
    functions = FUNCTIONS[layer.cell_name]
    return {
        **{name.upper(): function for name, function in functions._asdict().items()},
        "G": len(layer.cell.gates),
        "S": len(layer.cell.saved),
        "APPROXIMATE": layer.x.dtype in (torch.float16, torch.bfloat16),
        "STATE": tl.float64 if layer.state_dtype == torch.float64 else tl.float32,
    }
