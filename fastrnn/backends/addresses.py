"""Where tensors lie, for kernels that take raw pointers.

Whatever takes an address must keep the tensor until the kernel has returned.
"""

from __future__ import annotations

from torch import Tensor

from fastrnn import checks


def address(tensor: Tensor | None, offset: int = 0) -> int:
    """Of element number `offset` of a tensor's memory; 0 for None, which is what kernels take for what is absent.

    Raises:
        RuntimeError: there are elements, but no memory.
    """
    if tensor is None:
        return 0
    first = tensor.data_ptr()
    if first == 0 and tensor.numel() > 0:
        raise checks.not_allocated(f"a tensor of shape {tuple(tensor.shape)}")
    return first + offset * tensor.itemsize if offset else first
