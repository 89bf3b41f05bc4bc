"""Whether float32 products may be rounded to TF32: on in cases of dtype "tf32", off in all others.

torch's defaults differ between cuBLAS, which a backend's own products use, and cuDNN: both are set, so that plain
float32 means the same for every contender.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.cases import TF32

DEPRECATED = "Please use the new API settings to control TF32"
"""What torch may warn of: these flags set both of its own products and those of its recurrent layers."""


@contextmanager
def products(dtype: str) -> Iterator[None]:
    """Within the block, TF32 is allowed, in cuBLAS and in cuDNN, if and only if `dtype` is "tf32"."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DEPRECATED)
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        set_allowed(dtype == TF32, dtype == TF32)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=DEPRECATED)
            set_allowed(*before)


def set_allowed(matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn
