"""The one table of tolerances: how far a result may lie from the float64 reference.

A result passes when its relative error ‖out − ref‖ / ‖ref‖ is at most `FACTOR` times that of torch's own arithmetic in
the same dtype, plus `FLOOR` for its dtype. Torch's own arithmetic is torch.nn's kernel where it can compute the case,
and the step-by-step reference in that dtype where it cannot (lengths, resets). Tolerances are never looser in CI.

Where a backend rounds what enters the recurrence to 16 bits (`ROUNDS_PRODUCTS`), as torch's kernels do, whether such a
rounding turns a relu's derivative over or moves a saturated gate is chance on tensors of a few elements. There the
float64 reference counts as torch's own arithmetic too, `DRAWS` times with random roundings of that size.
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

ROUNDS_PRODUCTS = {"cuda", "triton"}
"""Backends whose kernels read x W_ihᵀ + b in the storage dtype and multiply h in it, as cuDNN's do."""

DRAWS = 8
"""Enough that one of a hundred activations near the kink is turned over in some draw."""

TF32_EPSILON = {"cuda": 2.0**-10, "triton": 2.0**-9}
"""The size of the random roundings that stand for TF32, by backend: float32 is rounded to 10 bits as cuDNN does, or cut
to them, which Triton's products do. Rounding there before each product would take instructions in every step."""

DROP_IN = 1e-9
"""Modules against torch.nn in float64: far above rounding (1e-14), far below any mistake."""


def relative_error(result: Tensor, truth: Tensor) -> float:
    """‖result − truth‖ / ‖truth‖ in float64; 0 where both are zero or empty, NaN and inf where they occur."""
    result, truth = result.detach().double(), truth.detach().double()
    difference, scale = (result - truth).norm(), truth.norm()
    return float(difference / scale) if scale > 0 else float(difference)


def assert_accurate(what: str, result: Tensor, truth: Tensor, *others: Tensor) -> None:
    """`result` is about as close to `truth` (float64) as the worst of `others`, of which torch's result comes first."""
    assert result.dtype == others[0].dtype, what
    assert result.shape == truth.shape, what
    error = relative_error(result, truth)
    allowed = FACTOR * max(relative_error(other, truth) for other in others) + FLOOR[result.dtype]
    assert error <= allowed, f"{what}: relative error {error:.2e}, allowed {allowed:.2e}"
