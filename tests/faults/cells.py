"""Faults of cells, of the reference, and of what all kernels share."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "lstm-forget-derivative",
        "fastrnn/cells/built_in.py",
        "df = dc * c_before",
        "df = dc * c_after",
        "the forget gate's derivative takes c after the step",
    ),
    Fault(
        "gru-saved-order",
        "fastrnn/cells/built_in.py",
        "n, r, z, u_n = saved",
        "n, z, r, u_n = saved",
        "backward takes the reset gate for the update gate",
    ),
    Fault(
        "relu-at-nan",
        "fastrnn/cells/compiler/rules.py",
        '"relu": lambda d, e, a: (where_le(e, ZERO, ZERO, d),)',
        '"relu": lambda d, e, a: (where_lt(ZERO, e, d, ZERO),)',
        "relu's derivative at NaN is 0, torch's is dh",
    ),
    Fault(
        "shares-of-two-signs",
        "fastrnn/cells/compiler/layout.py",
        "if _sign(e, x, signs) * _sign(e, u, signs) > 0:",
        "if _sign(e, x, signs) and _sign(e, u, signs):",
        "x - u has the gradient of x + u",
    ),
    Fault(
        "saved-unbounded",
        "fastrnn/cells/compiler/saved.py",
        "_ONE + (not is_bounded(e))",
        "_ONE",
        "what may not fit 16 bits is saved where something else would do",
    ),
    Fault(
        "names-alike",
        "fastrnn/cells/compiler/program.py",
        "{*taken, *made}",
        "made",
        "a saved value is called as a parameter, and one of them is read as the other",
    ),
    Fault(
        "reference-live-carry",
        "fastrnn/backends/reference.py",
        "zip(d_before, carry, strict=True)",
        "zip(d_before, d_after, strict=True)",
        "a dead step adds the gradient of its output",
    ),
    Fault(
        "reference-live",
        "fastrnn/backends/masks.py",
        "return t < length",
        "return t <= length",
        "a sequence has one step more",
    ),
    Fault(
        "reference-cut",
        "fastrnn/backends/masks.py",
        "reset if length is None else reset & live(k, length)",
        "reset",
        "a reset at t = length cuts the state that is handed on there",
    ),
    Fault(
        "reference-cut-in-reverse",
        "fastrnn/backends/products.py",
        "torch.cat((cut[1:], torch.zeros_like(cut[:1]))) if",
        "torch.cat((cut[1:], cut[-1:])) if",
        "in reverse a reset at T - 1 cuts the initial state as well",
    ),
    Fault(
        "reference-starts",
        "fastrnn/backends/masks.py",
        "return ~live(t + 1, length)",
        "return ~live(t, length)",
        "in reverse the initial state enters no live step",
    ),
    Fault(
        "dropped-h-in-weights",
        "fastrnn/backends/gate_gradients.py",
        "before.mul_(layer.recurrent_mask",
        "before.mul(layer.recurrent_mask",
        "the gradient of w_hh is of an h that recurrent dropout has not masked",
    ),
    Fault(
        "bfloat16-gates",
        "fastrnn/backends/layer.py",
        "return torch.float16 if dtype == torch.bfloat16 else dtype",
        "return dtype",
        "gates are saved in bfloat16, which doubles the gradients' error",
    ),
    Fault(
        "bias-sums-rest",
        "fastrnn/backends/gate_gradients.py",
        "if len(rest) > 0:",
        "if len(rest) > 1:",
        "a row that is left over from parts of 128 is not summed",
    ),
    Fault(
        "bias-sums-dtype",
        "fastrnn/backends/gate_gradients.py",
        "rows = whole.unflatten(0, (parts, SUMMANDS)).sum(1, dtype=dtype)",
        "rows = whole.unflatten(0, (parts, SUMMANDS)).sum(1)",
        "parts of a bias's gradient are rounded to 16 bits",
    ),
    Fault(
        "linear-what-is-zero",
        "fastrnn/cells/compiler/linearity.py",
        "factors = {value: combine(*(part.factors.get(value, ZERO) for part in of)) for value in values}",
        "factors = {v: d for v in values if (d := combine(*(part.factors.get(v, ZERO) for part in of))) is not ZERO}",
        "tanh(h - h) is taken for free of h",
    ),
    Fault(
        "triton-given",
        "fastrnn/backends/recurrence/buffers.py",
        "tuple(d is not None for d in self.d_histories)",
        "tuple(d is not None and k == 0 for k, d in enumerate(self.d_histories))",
        "gradients of the histories of other states than h are not looked at",
    ),
    Fault(
        "triton-parameters",
        "fastrnn/backends/recurrence/buffers.py",
        "torch.stack(layer.parameters_of(direction))",
        "torch.stack(layer.parameters_of(0))",
        "both directions have the first one's parameters",
    ),
)
