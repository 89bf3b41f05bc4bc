"""Faults of Triton's kernels."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "triton-live",
        "fastrnn/backends/triton/kernels/masks.py",
        "return t < length",
        "return t <= length",
        "a sequence has one step more",
    ),
    Fault(
        "triton-cut",
        "fastrnn/backends/triton/kernels/masks.py",
        "return (reset != 0) & live(k, length)",
        "return (reset != 0) & live(k - 1, length)",
        "a reset at t = length clears the final state",
    ),
    Fault(
        "triton-entry",
        "fastrnn/backends/triton/kernels/masks.py",
        "return t + tl.where(backwards, 1, 0)",
        "return t + tl.where(backwards, 0, 1)",
        "backward looks for resets after a step",
    ),
    Fault(
        "triton-starts",
        "fastrnn/backends/triton/kernels/masks.py",
        "(t == length - 1)",
        "(t == length)",
        "in reverse a short sequence begins with the step beyond it",
    ),
    Fault(
        "triton-dropped-backward",
        "fastrnn/backends/triton/kernels/backward.py",
        "through = direct[0] + multiplied(through, mask)",
        "through = multiplied(direct[0] + through, mask)",
        "recurrent dropout masks gradients that have not come through the product",
    ),
    Fault(
        "triton-dropped-directions",
        "fastrnn/backends/triton/kernels/forward.py",
        "tl.load(recurrent_mask + state_at + state_tile",
        "tl.load(recurrent_mask + first * H + head * D + state_tile",
        "both directions have the mask of one",
    ),
    Fault(
        "triton-dropped-first",
        "fastrnn/backends/triton/steps.py",
        "torch.mul(h, mask, out=torch.empty_like(h))",
        "h.clone()",
        "the initial state enters the first step's product as if there were no recurrent dropout",
    ),
    Fault(
        "triton-dropped-last",
        "fastrnn/backends/triton/steps.py",
        "product if mask is None else product * _by_head(layer, mask).to(dh.dtype)",
        "product",
        "what comes back to the initial state through the product is not masked",
    ),
    Fault(
        "triton-dead-carry",
        "fastrnn/backends/triton/kernels/backward.py",
        "direct = select(live, direct, carried)",
        "direct = select(live, direct, zeros_like(direct))",
        "the final states' gradients get lost in dead steps",
    ),
    Fault(
        "triton-ys-step",
        "fastrnn/backends/triton/kernels/forward.py",
        "ys_step = dt * B.to(tl.int64) * wide",
        "ys_step = dt * B.to(tl.int64) * H",
        "with two directions every step but one writes in another's place",
    ),
    Fault(
        "triton-finite-gates",
        "fastrnn/backends/triton/kernels/tiles.py",
        "if UNBOUNDED[k] and tl.float16 == DTYPE:",
        "if UNBOUNDED[k] and tl.bfloat16 == DTYPE:",
        "a GRU's saved product may be infinite in float16",
    ),
    Fault(
        "triton-dead-saved",
        "fastrnn/backends/triton/kernels/steps.py",
        "if not FINITE:",
        "if False:",
        "what a user's cell saves of a dead step may be infinite",
    ),
    Fault(
        "triton-units-beyond",
        "fastrnn/backends/triton/kernels/tiles.py",
        "if not FINITE and D < DP:",
        "if False:",
        "a product sums over NaN in units that a head does not have",
    ),
    Fault(
        "triton-mean-beyond",
        "fastrnn/backends/triton/kernels/means.py",
        "if unit.shape[AXIS] > D:",
        "if False:",
        "units that there are not enter a mean",
    ),
    Fault(
        "triton-pointwise-dead-saved",
        "fastrnn/backends/triton/kernels/pointwise.py",
        "if lengths is not None and not FINITE:",
        "if False:",
        "as triton-dead-saved, of a cell without a product",
    ),
    Fault(
        "triton-scan-finals",
        "fastrnn/backends/triton/kernels/pointwise.py",
        "inside = inside & (last >= mine) & (last < end)",
        "inside = inside & (end == T)",
        "the last chunk tells the last value of a state that enters nothing, though it has no live step",
    ),
    Fault(
        "triton-scan-overflow",
        "fastrnn/backends/triton/kernels/scan.py",
        "return tl.max(tl.max(wrong, 1), 0) == 0",
        "return tl.max(tl.max(wrong, 1), 0) >= 0",
        "a product of factors that overflows makes what is finite no number",
    ),
)
