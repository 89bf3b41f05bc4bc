"""The one table of tolerances: how far a result may lie from the float64 reference.

A result passes when its relative error ‖out − ref‖ / ‖ref‖ is at most `FACTOR` times that of torch's own arithmetic in
the same dtype, plus `FLOOR` for its dtype. Torch's own arithmetic is torch.nn's kernel where it can compute the case,
and the step-by-step reference in that dtype where it cannot (lengths, resets). Tolerances are never looser in CI.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 2.0
"""Two correct orders of summation differ by about this much."""

FLOOR = {
    torch.float64: 4e-15,  # 18 ulp: sums of up to a hundred terms, errors carried through ten steps
    torch.float32: 1e-6,  # 8 ulp: torch's kernel is often exact to the last bit on tiny cases, which no factor excuses
    torch.bfloat16: 4e-3,  # half an ulp of the rounded result: torch may happen to round a tiny tensor exactly
    torch.float16: 5e-4,  # as bfloat16
}

DROP_IN = 1e-9
"""Modules against torch.nn in float64: far above rounding (1e-14), far below any mistake."""


def relative_error(result: Tensor, truth: Tensor) -> float:
    """‖result − truth‖ / ‖truth‖ in float64; 0 where both are zero or empty, NaN and inf where they occur."""
    result, truth = result.detach().double(), truth.detach().double()
    difference, scale = (result - truth).norm(), truth.norm()
    return float(difference / scale) if scale > 0 else float(difference)


def assert_accurate(what: str, result: Tensor, truth: Tensor, torchs: Tensor) -> None:
    """`result` is about as close to `truth` (float64) as `torchs`, torch's result in the same dtype, is."""
    assert result.dtype == torchs.dtype, what
    assert result.shape == truth.shape, what
    error, allowed = relative_error(result, truth), FACTOR * relative_error(torchs, truth) + FLOOR[result.dtype]
    assert error <= allowed, f"{what}: relative error {error:.2e}, allowed {allowed:.2e}"
