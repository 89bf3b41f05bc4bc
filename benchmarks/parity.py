"""Whether a contender computes what torch.nn computes: nothing is timed before this holds.

The truth is torch.nn in float64. A result passes when its error is at most a factor times that of torch.nn in the
case's own dtype, plus a floor: the tolerances are those of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.tolerances import FACTOR, FLOOR, relative_error


class Mismatch(Exception):
    """A contender's result differs from torch.nn's by more than rounding."""


def check(names: Sequence[str], results: Sequence[Any], baseline: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Raises Mismatch unless every result is as near to the truth as `baseline`, torch.nn's in the same dtype, allows.

    Returns the largest share of what is allowed that any result uses, 0 to 1.
    """
    if len(results) != len(names):
        raise Mismatch(f"{len(results)} results, expected {len(names)}: {', '.join(names)}")
    worst = 0.0
    for name, value, torchs, expected in zip(names, results, baseline, truth, strict=True):
        result = torch.as_tensor(value)
        if result.shape != expected.shape:
            raise Mismatch(f"{name} has shape {tuple(result.shape)}, torch.nn's has {tuple(expected.shape)}")
        if result.dtype != torchs.dtype:
            raise Mismatch(f"{name} is {result.dtype}, torch.nn's is {torchs.dtype}")
        error = relative_error(result, expected)
        allowed = FACTOR * relative_error(torchs, expected) + FLOOR[torchs.dtype]
        if not error <= allowed:
            raise Mismatch(f"{name} differs from torch.nn in float64 by {error:.2g}, allowed {allowed:.2g}")
        worst = max(worst, error / allowed)
    return worst
