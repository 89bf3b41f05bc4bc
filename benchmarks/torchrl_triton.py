"""TorchRL's Triton kernels for LSTM and GRU with resets (torchrl >= 0.13), as a contender on a GPU.

What is called is `lstm_triton` and `gru_triton` of `torchrl.modules.tensordict_module._rnn_triton`, which TorchRL's
`LSTMModule` and `GRUModule` call for each layer with `recurrent_backend="triton"`. The modules, and their TensorDicts,
are left out, and everything is given as the kernels like it best, before the time is taken: batch first, the mask
contiguous, the states that resets put in place as zeros. A GPU's time is thus the kernels' own, with the products
around them.

    x (B, T, I), hidden and cell (B, T, H): the states entering step 0 and every step where is_init is true,
    w_ih (G·H, I), w_hh (G·H, H), b_ih and b_hh (G·H), is_init (B, T) bool
    -> LSTM: h and c of all steps (B, T, H), final h and c (B, H);  GRU: h of all steps, final h

Their tensors are float32. In a bfloat16 case they therefore get, and return, float32 tensors, and compute the
recurrent products in bfloat16: that is how they are meant to be used. Their autotuner's key leaves out the batch, so
that what it chose for one case would be used for others: it tunes anew for every case.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Problem
from benchmarks.contenders import NotServed, Run, copied, make_run

KERNELS = "torchrl.modules.tensordict_module._rnn_triton"
FUNCTIONS = {"lstm": "lstm_triton", "gru": "gru_triton"}
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "tf32"),  # the products outside the recurrence take float32 tensors
}
"""For each dtype of a case, what the recurrent products are computed in, and how float32 products are."""


def installed() -> bool:
    return importlib.util.find_spec("torchrl") is not None


@dataclass(frozen=True)
class TorchRL:
    """TorchRL's kernels, a call for each layer."""

    name: str = "TorchRL"
    wide: bool = True
    """In a 16-bit case its results are float32."""

    def build(self, problem: Problem) -> Run:
        case = problem.case
        reason = why_not(case)
        if reason is not None:
            raise NotServed(reason)
        kernels = load()
        forget_tuning(kernels)
        compute_dtype, precision = PRECISIONS[case.dtype]
        function = partial(
            getattr(kernels, FUNCTIONS[case.cell]), compute_dtype=compute_dtype, input_precision=precision
        )
        weights = [weight.to(torch.float32, copy=True) for weight in problem.weights.values()]
        if case.training:
            for weight in weights:
                weight.requires_grad_()
        forward = stacked(function, problem, weights)
        data = [(batch_first(x), batch_first(dy)) for x, dy in copied(problem, torch.float32)]
        run = make_run(forward, case.training, data, weights)
        first_input_gradient = 1 + len(case.states)
        with case.grad_mode():
            run()
        return partial(time_first, run, first_input_gradient if case.training else None)


def why_not(case: Case) -> str | None:
    """Why TorchRL's kernels cannot serve `case`, as far as it says itself, or None."""
    if case.device != "cuda":
        return "TorchRL's Triton kernels run on a GPU only"
    if case.cell not in FUNCTIONS:
        return f"TorchRL has no Triton kernels for {case.cell}"
    if case.bidirectional:
        return "TorchRL's Triton kernels run in one direction"
    if case.dtype not in PRECISIONS:
        return f"TorchRL's Triton kernels do not compute in {case.dtype}"
    return None


def load() -> ModuleType:
    """TorchRL's module of kernels. Raises NotServed where there is none."""
    if not installed():
        raise NotServed("torchrl is not installed")
    try:
        return importlib.import_module(KERNELS)
    except ImportError as error:
        raise NotServed(f"the installed torchrl has no Triton kernels for recurrent layers: {error}") from error


def forget_tuning(kernels: ModuleType) -> None:
    """Empties the tables of what Triton's autotuner chose for `kernels`."""
    for kernel in vars(kernels).values():
        if hasattr(kernel, "configs") and isinstance(getattr(kernel, "cache", None), dict):
            kernel.cache.clear()


def batch_first(tensor: Tensor) -> Tensor:
    """(B, T, ·) of (T, B, ·), contiguous."""
    return tensor.transpose(0, 1).contiguous()


def stacked(
    function: Callable[..., Sequence[Tensor]], problem: Problem, weights: Sequence[Tensor]
) -> Callable[[Tensor], Sequence[Any]]:
    """The layers' forward: from x (B, T, I) to outputs (B, T, H) and final states (layers, B, H)."""
    T, B, _, H = problem.case.shape
    x = problem.x
    zeros = [x.new_zeros((B, T, H), dtype=torch.float32) for _ in problem.case.states]
    is_init = x.new_zeros((B, T), dtype=torch.bool) if problem.resets is None else batch_first(problem.resets)
    each = len(weights) // problem.case.layers
    layers = [weights[start : start + each] for start in range(0, len(weights), each)]

    def forward(ys: Tensor) -> Sequence[Any]:
        finals: list[list[Tensor]] = []
        for layer in layers:
            ys, *rest = function(ys, *zeros, *layer, is_init)
            finals.append(rest[-len(zeros) :])
        return (ys, *(torch.stack(state) for state in zip(*finals, strict=True)))

    return forward


def time_first(run: Run, input_gradient: int | None) -> Sequence[Any]:
    """What `run` returns with the outputs, and the gradient of x at index `input_gradient`, as views (T, B, ·)."""
    results = list(run())
    for index in (0,) if input_gradient is None else (0, input_gradient):
        results[index] = results[index].transpose(0, 1)
    return results
