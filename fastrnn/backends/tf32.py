"""Whether torch lets its own recurrent layers multiply float32 as TF32, with 10 bits of fraction: fastrnn's may too."""

from __future__ import annotations

import torch


def allowed() -> bool:
    """As torch is set now; by default it is so. From torch 2.9 on recurrent layers have a setting of their own."""
    settings = getattr(torch.backends.cudnn, "rnn", None)
    if settings is None:
        return torch.backends.cudnn.allow_tf32
    return bool(settings.fp32_precision == "tf32")
