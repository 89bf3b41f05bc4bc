"""Faults of Numba's kernels and of what writes cells for them."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "numba-live",
        "fastrnn/backends/numba/kernels/masks.py",
        "return t < length(a, row)",
        "return t <= length(a, row)",
        "a sequence has one step more",
    ),
    Fault(
        "numba-cut",
        "fastrnn/backends/numba/kernels/masks.py",
        "k = t + a.reverse",
        "k = t + 1 - a.reverse",
        "resets cut after their step, as they would the other way round",
    ),
    Fault(
        "numba-starts",
        "fastrnn/backends/numba/kernels/masks.py",
        "return not live(a, t + 1, row) if a.reverse",
        "return t == a.steps - 1 if a.reverse",
        "in reverse the first step of a short sequence is taken for a later one",
    ),
    Fault(
        "numba-dropped-directions",
        "fastrnn/backends/numba/layer_forward.py",
        "recurrent_mask and recurrent_mask + direction * h_",
        "recurrent_mask",
        "both directions have the mask of one",
    ),
    Fault(
        "numba-dropped-backward",
        "fastrnn/backends/numba/kernels/backward.py",
        "mask = address(like, a.recurrent_mask, (first + begin + r) * a.outputs + column)",
        "mask = address(like, a.recurrent_mask, (begin + r) * a.outputs + column)",
        "what comes back through the product has the mask of another slice's sequence",
    ),
    Fault(
        "numba-team-clears-c",
        "fastrnn/backends/numba/kernels/forward.py",
        "clear(like, address(like, c, row * c_row + own), c_apart, own_units)",
        "clear(like, address(like, c, row * c_row), c_apart, own_units)",
        "a reset clears another team member's c",
    ),
    Fault(
        "numba-gradient-through-cut",
        "fastrnn/backends/numba/kernels/backward.py",
        "live(a, later, b) and not cut(a, later, b)",
        "live(a, later, b)",
        "the product's share of the gradient flows through a reset",
    ),
    Fault(
        "numba-pack-tail",
        "fastrnn/backends/numba/kernels/pack.py",
        "for k in range(0, a.columns, width):",
        "for k in range(0, max(width, a.columns - width + 1), width):",
        "the last columns of a matrix, fewer than a vector, are not laid out",
    ),
    Fault(
        "numba-team-meeting",
        "fastrnn/backends/numba/kernels/team.py",
        "    meet(a.barrier)\n",
        "",
        "a team's members do not wait for each other after a step",
    ),
    Fault(
        "numba-mean-beyond-units",
        "fastrnn/backends/numba/kernels/sums.py",
        "first_lanes(builder, x, args[1])",
        "first_lanes(builder, x, builder.add(args[1], INDEX(1)))",
        "a number beyond the last unit enters a mean",
    ),
    Fault(
        "numba-dots-rest",
        "fastrnn/backends/numba/kernels/dots.py",
        'builder.icmp_signed(">", rest, INDEX(0))',
        'builder.icmp_signed(">", rest, INDEX(1))',
        "a single number beyond whole vectors is left out of a sum",
    ),
    Fault(
        "numba-chunk-stride",
        "fastrnn/backends/numba/kernels/weights.py",
        "start * a.gates_row + column",
        "start * a.columns + column",
        "a GRU's weights' gradients go wrong beyond the first 128 rows",
    ),
    Fault(
        "numba-exp-terms",
        "fastrnn/backends/numba/kernels/activations.py",
        "for power in range(13, 1, -1)",
        "for power in range(10, 1, -1)",
        "float64's exp has two digits less",
    ),
    Fault(
        "numba-log-exponent",
        "fastrnn/backends/numba/kernels/functions.py",
        "n * _LN2_LOW(n)",
        "0.0 * n",
        "the logarithm of what is not near 1 has fewer digits",
    ),
    Fault(
        "numba-emitted-distance",
        "fastrnn/cells/emit/numba.py",
        'f"{kind}_apart"',
        '"before_apart"',
        "a derivative looks for the states after the step as far apart as those before it",
    ),
    Fault(
        "numba-dc-cut",
        "fastrnn/backends/numba/kernels/backward.py",
        "row * dc_row + own), a.dc_apart, own_hidden)",
        "row * dc_row + own), a.dc_apart, own_outputs)",
        "with a projection, a reset clears the gradient of the first P units' c alone",
    ),
    Fault(
        "numba-apart-h",
        "fastrnn/backends/numba/kernels/forward.py",
        "return a.outputs if meets else own_units",
        "return a.outputs",
        "threads that share units and never meet write each other's h",
    ),
    Fault(
        "numba-dx-chunk",
        "fastrnn/backends/numba/kernels/backward.py",
        "((s + 1) % a.chunk == 0 or s + 1 == a.steps)",
        "(s + 1) % a.chunk == 0",
        "x's gradient is missing for the steps that do not fill a chunk",
    ),
)
