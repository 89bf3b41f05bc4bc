"""Whether a module's parameters are still those of an earlier call, and whether they still hold the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

SAMPLE = 16
"""Numbers that are compared of each parameter. Of an LSTM with 4 parameters that takes 0.25 µs a call, with 16 0.7."""
_WORD = np.dtype(np.uint32)
"""What they are read as: one for a float32, two for a float64."""
_GOLDEN = 0.6180339887498949
_LOWEST = 1 << 40
"""Above every address that a view into freed memory may have, which is its distance from the start: a terabyte."""


def is_freed(tensor: Tensor, address: int) -> bool:
    """Whether the memory of a tensor at this address was given back, by `untyped_storage().resize_(0)`.

    A view's address is then not 0 but its distance from the start of what was there. Where it is high, which is nearly
    always, nothing else needs to be asked.
    """
    return address < _LOWEST and tensor.untyped_storage().data_ptr() == 0 and tensor.numel() > 0


def any_freed(*tensors: Tensor) -> bool:
    """Whether the memory of any of them was given back, or one has none: what a transform of torch.func left behind."""
    try:
        return any(map(is_freed, tensors, map(Tensor.data_ptr, tensors)))
    except RuntimeError:
        return True


def is_readable(tensor: Any) -> bool:
    """Whether it is a parameter whose memory holds its numbers, one after another, as a kernel reads them."""
    return (
        type(tensor) is nn.Parameter
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not any_freed(tensor)
    )


def are_readable(tensors: Sequence[Any]) -> bool:
    """Whether all are such parameters, on one device and of one dtype."""
    return all(is_readable(t) and t.device == tensors[0].device and t.dtype is tensors[0].dtype for t in tensors)


class Parameters:
    """A module's parameters, which `are_readable` approves, as they are now."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]):
        self.dtype = named[0][1].dtype
        self.known = [(name, parameter, parameter.data_ptr(), parameter.shape) for name, parameter in named]

    def are_those_of(self, module: nn.Module) -> bool:
        """Whether the module has them still, at the same addresses, with the same shapes, and readable.

        A parameter that is the same object may be another tensor: by `parameter.data =` and by `swap_tensors`. The
        device is not asked for, because the address tells it.
        """
        current, dtype = module._parameters, self.dtype
        try:
            for name, parameter, address, shape in self.known:
                if (
                    current.get(name) is not parameter
                    or parameter.data_ptr() != address
                    or parameter.dtype is not dtype
                    or parameter.shape != shape
                    or not parameter.is_contiguous()
                    or parameter.is_neg()
                ):
                    return False
        except RuntimeError:  # of layouts that have no address
            return False
        return True


class Values:
    """The numbers that parameters hold now, as far as changes of them can be told at little cost.

    Most changes are counted, by autograd or as steps of optimizers. What is counted by nobody (collectives, other
    processes, storages and arrays that share the memory) changes nearly all numbers nearly always, so that a sample of
    each parameter's tells.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.steps = _optimizer_steps
        self.parameters = list(parameters)
        self.versions = [parameter._version for parameter in parameters]
        self.storages = [parameter.untyped_storage() for parameter in parameters]
        """held, so that no other memory can come to lie at their addresses"""
        addresses = [parameter.data_ptr() for parameter in parameters]
        first = min(addresses)
        after_last = max(address + parameter.nbytes for address, parameter in zip(addresses, parameters, strict=True))
        self.memory = np.asarray(_Memory(first, (after_last - first) // _WORD.itemsize))
        """from the first parameter to the last, with whatever lies between them, of which nothing is read"""
        places = [
            (address - first) // _WORD.itemsize + word
            for address, parameter in zip(addresses, parameters, strict=True)
            for word in _sample(parameter)
        ]
        self.places = np.array(places, dtype=np.intp)
        self.sample = self.memory[self.places].tobytes()

    @staticmethod
    def can_be_watched(parameters: Sequence[nn.Parameter]) -> bool:
        """Whether their changes are counted, and their numbers lie where words of memory begin."""
        return not any(p.is_inference() or p.data_ptr() % _WORD.itemsize for p in parameters)

    def are_unchanged(self) -> bool:
        """Whether no change is seen. The parameters must be where they were: their addresses are read."""
        return (
            self.steps == _optimizer_steps
            and [parameter._version for parameter in self.parameters] == self.versions
            and self.memory[self.places].tobytes() == self.sample
        )


class _Memory:
    """Some words of memory from an address on, as an array for NumPy."""

    def __init__(self, address: int, words: int):
        self.__array_interface__ = {"data": (address, True), "shape": (words,), "typestr": _WORD.str, "version": 3}


def _sample(parameter: Tensor) -> list[int]:
    """The words of a contiguous (rows, columns) or (rows,) at which it is looked, counted from its first.

    Rows and columns are both spread: gradients may be zero for whole rows, as of units that are dead, and for whole
    columns, as of inputs that are always zero.
    """
    rows, columns = parameter.shape[0], parameter[0].numel()
    count, words = min(SAMPLE, rows * columns), parameter.itemsize // _WORD.itemsize
    if count == rows * columns:
        numbers = list(range(count))
    else:
        numbers = [
            (k * (rows - 1) // (count - 1)) * columns + int((k * _GOLDEN) % 1 * columns) for k in range(count - 1)
        ]
        numbers.append(rows * columns - 1)
    return [number * words + word for number in numbers for word in range(words)]


_optimizer_steps = 0
"""Of all optimizers, their beginnings and their ends, since weights were prepacked first."""


@cache
def count_optimizer_steps() -> None:
    """From the first call on: torch's fused optimizers change parameters without autograd's counting it.

    Beginnings count as well, since a step that raises half way has no end.
    """

    def count(*_: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_pre_hook(count)
    register_optimizer_step_post_hook(count)
