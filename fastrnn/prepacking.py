"""Weights that are laid out once, for models that are served: what layers and cells share of it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from fastrnn import watched_weights
from fastrnn.binding import memory

FORMATS = ("float32", "float16", "int8")
"""Of weights that are laid out once."""
Module = TypeVar("Module", bound="Prepacking")


class Prepacking(nn.Module):
    """What layers and cells share: that their weights can be laid out once."""

    prepacked: bool = False
    prepacked_weights: str = "float32"

    def prepack(self: Module, on: bool = True, *, weights: str = "float32") -> Module:
        """Lets inference on the CPU lay the weights out once, instead of in every call; returns the module.

        For a model that is served: with few steps a call, or one sequence of a large layer, most of a call may go into
        laying them out (`docs/performance.md` has the figures). It takes effect from the second or third call without
        gradients and of the same shape on, and costs the memory of a copy of the weights.

        Weights that an optimizer's step, `load_state_dict`, or any operation in place that autograd counts has changed
        are laid out again, and so are parameters that were exchanged. Some writers are counted by nobody: collectives
        (`all_reduce`, `broadcast`, `recv`), other processes that share the memory, fused optimizers called as
        functions, `parameter.data`, DLPack, NumPy, storages. To see them, every call compares 16 numbers of each
        parameter, spread over its rows and columns, which takes 0.25 µs for 4 parameters and 0.7 for 16. Not seen are

        - changes by such a writer that leave those numbers as they are: of single weights, as by
          `parameter.data[3, 4] = 0`, of few rows, or of an update that is mostly zero. Libraries that average weights
          (EMA) write through `parameter.data`: a whole average is seen, one of a few rows or of next to no change not;
        - what another thread or process writes while a call computes.

        Call `prepack()` again after such a change; training is never affected. Parameters that were made under
        `torch.inference_mode`, whose changes nothing counts, are read in every call.

        Args:
            on: whether weights may be laid out once, or are to be in every call, as they are without `prepack`.
            weights: how matrices are kept: "float32"; "float16", half the memory and less exact; "int8", a quarter,
                with a scale for each row, multiplied with x and h in 16 bits. In fewer bits than 32 are computed the
                calls without gradients of up to 16 float32 sequences in one direction, without `lengths`, `resets`,
                `return_states` and inputs of the steps; all others with the parameters as they are.
                `fastrnn.stream(module, weights=...).error(x)` tells how much that changes.

        Raises:
            ValueError: `weights` is no such format; where a call lays them out, a weight is not finite, or too large
                for float16.

        Example::

            >>> import torch, fastrnn
            >>> lstm = fastrnn.LSTM(10, 20).eval().prepack()
            >>> with torch.inference_mode():
            ...     output, state = lstm(torch.randn(10, 1, 10))
        """
        if weights not in FORMATS:
            raise ValueError(f"prepack: weights must be one of {', '.join(map(repr, FORMATS))}, got {weights!r}")
        self.prepacked, self.prepacked_weights = on, weights
        memory.forget(self)
        if on:
            watched_weights.count_optimizer_steps()
        return self

    def _prepacked_shown(self) -> str:
        """For `repr`."""
        return "prepacked" if self.prepacked_weights == "float32" else f"prepacked in {self.prepacked_weights}"
