"""Whether a contender computes what torch.nn computes: nothing is timed before this holds.

The truth is torch.nn in float64. A result passes when its error is at most a factor times that of torch.nn in the
case's own dtype, plus a floor: the tolerances are those of the tests, but wider for peers (`peers`). With resets,
which torch.nn does not take, the truth is fastrnn's step-by-step reference in float64, and the error that a result may
have is torch.nn's on the same data without them: a cut shortens the way that errors travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Problem
from benchmarks.contenders import Contender, FastRNN, TorchNN
from tests.tolerances import FACTOR, FLOOR, relative_error


class Mismatch(Exception):
    """A contender's result differs from torch.nn's by more than rounding."""


class Standard(NamedTuple):
    """What results are held against, by `Problem.names`."""

    names: tuple[str, ...]
    truth: Sequence[Tensor]
    """In float64."""
    errors: Sequence[float]
    """The relative errors of torch.nn in the case's dtype."""
    dtype: torch.dtype
    """Of torch.nn's results."""
    truth_name: str


def standard(problem: Problem) -> Standard:
    """The truth of `problem` and torch.nn's errors, computed on its device, in its mode and as TF32 is now allowed."""
    single = problem._replace(copies=1)
    uncut = single._replace(resets=None)
    with problem.case.grad_mode():
        ours = TorchNN().build(uncut)()
        truth = TorchNN(torch.float64).build(uncut)()
        errors = [relative_error(result, expected) for result, expected in zip(ours, truth, strict=True)]
        truth_name = "torch.nn"
        if problem.resets is not None:
            reference = FastRNN("reference", torch.float64)
            truth, truth_name = reference.build(single)(), reference.name
    return Standard(problem.names, [tensor.detach() for tensor in truth], errors, problem.x.dtype, truth_name)


def check(results: Sequence[Any], standard: Standard, wide: bool = False, tolerance: float = 0.0) -> float:
    """Raises Mismatch unless every result is as near to the truth as torch.nn's error in the same dtype allows.

    With `wide` the results are float32 where torch.nn's are 16-bit. A relative error up to `tolerance` is always
    allowed. Returns the largest share of what is allowed that any result uses, 0 to 1.
    """
    names = standard.names
    if len(results) != len(names):
        raise Mismatch(f"{len(results)} results, expected {len(names)}: {', '.join(names)}")
    dtype = torch.promote_types(standard.dtype, torch.float32) if wide else standard.dtype
    worst = 0.0
    for name, value, torchs, expected in zip(names, results, standard.errors, standard.truth, strict=True):
        result = torch.as_tensor(value)
        if result.shape != expected.shape:
            raise Mismatch(f"{name} has shape {tuple(result.shape)}, torch.nn's has {tuple(expected.shape)}")
        if result.dtype != dtype:
            raise Mismatch(f"{name} is {result.dtype}, torch.nn's is {standard.dtype}")
        error = relative_error(result, expected)
        allowed = max(FACTOR * torchs + FLOOR[standard.dtype], tolerance)
        if not error <= allowed:
            raise Mismatch(
                f"{name} differs from {standard.truth_name} in float64 by {error:.2g}, allowed {allowed:.2g}"
            )
        worst = max(worst, error / allowed)
    return worst


def check_run(contender: Contender, results: Sequence[Any], standard: Standard) -> float:
    """`check` of what `contender` returned, by its attributes `wide` and `tolerance` if it has them."""
    return check(results, standard, getattr(contender, "wide", False), getattr(contender, "tolerance", 0.0))
