"""Whether torch lets its own recurrent layers multiply float32 as TF32, with 10 bits of fraction: fastrnn's may too."""

from __future__ import annotations

import torch


def allowed() -> bool:
    """As torch is set now; by default it is so."""
    return bool(torch.backends.cudnn.rnn.fp32_precision == "tf32")  # type: ignore[attr-defined]
