"""Whether gradients will be asked for, and whether torch.func's transforms are at work."""

from __future__ import annotations

import torch
from torch import Tensor


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the gradient of any of them."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        # torch.jit.trace compares its trace with one made without gradients; backward computes again what is not kept.
        return False
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    return False


def is_transformed() -> bool:
    """Whether vmap, jvp, grad or their kind are at work: `fastrnn.transforms` serves them."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0
