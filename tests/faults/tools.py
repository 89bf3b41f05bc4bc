"""Faults of the tools around the layers, and of what measures and builds them."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "convert-rollback",
        "fastrnn/convert.py",
        "            module.__dict__.update(options)\n",
        "",
        "where a report raises, layers have lost their options",
    ),
    Fault(
        "onnx-gates",
        "fastrnn/onnx.py",
        '_Operator("LSTM", (0, 3, 1, 2))',
        '_Operator("LSTM", (0, 3, 2, 1))',
        "an exported LSTM has two gates exchanged",
    ),
    Fault(
        "onnx-empty-sequence",
        "fastrnn/onnx.py",
        "empty = (layer.lengths == 0).unsqueeze(1)",
        "empty = (layer.lengths < 0).unsqueeze(1)",
        "a sequence of no steps ends with zero in an exported model",
    ),
    Fault(
        "onnx-zero-states",
        "fastrnn/onnx_graph.py",
        "return node.op_type in _COPIES and _is_zero(node.inputs[0])",
        "return bool(node.inputs) and _is_zero(node.inputs[0])",
        "a state that is computed from zeros and something else is left out",
    ),
    Fault(
        "keras-second-bias",
        "fastrnn/keras.py",
        "else biases[0] + biases[1]]",
        "else biases[0]]",
        "Keras' one bias lacks the recurrent one",
    ),
    Fault(
        "explain-training",
        "fastrnn/explaining.py",
        "preferred = backends.why_aten(stack, first, training)",
        "preferred = backends.why_aten(stack, first, False)",
        "the reason that is told is the one for inference",
    ),
    Fault(
        "cost-layers",
        "fastrnn/backends/cost.py",
        "one + (layers - 1) * other",
        "one + other",
        "a stack of many layers is predicted to take as long as one of two",
    ),
    Fault(
        "cost-cells",
        "fastrnn/backends/__init__.py",
        "        training,\n        stack.of_cell,\n",
        "        training,\n",
        "a cell's calls are chosen for as a layer's",
    ),
    Fault(
        "cost-judge",
        "benchmarks/cost/judging.py",
        "better = min(engines",
        "better = max(engines",
        "auto is compared with the slower engine",
    ),
    Fault(
        "probe-cut",
        "fastrnn/probe_figures.py",
        "uncut = live if cut is None else live & ~cut",
        "uncut = live",
        "sequences that a reset cuts count among a step's gains",
    ),
    Fault(
        "probe-mean",
        "fastrnn/probe_report.py",
        "gains.log().mean().exp()",
        "gains.mean()",
        "the factor of a step is an arithmetic mean",
    ),
    Fault(
        "warm-up-outcome",
        "fastrnn/warm_up.py",
        "FOUND if after == before else COMPILED",
        "FOUND if before else COMPILED",
        "a kernel that was compiled anew counts as found",
    ),
    Fault(
        "main-dtype",
        "fastrnn/__main__.py",
        "if options.cells or options.dtype:",
        "if options.cells:",
        "--dtype without --warm-up is ignored",
    ),
    Fault(
        "timing-quartiles",
        "benchmarks/timing.py",
        'statistics.quantiles(sample, n=4, method="inclusive")',
        "statistics.quantiles(sample, n=4)",
        "quartiles may lie beyond the sample",
    ),
    Fault(
        "bench-baseline",
        "benchmarks/runner.py",
        "base = measured[0][1] if measured[0][0] is result.baseline else None",
        "base = measured[0][1]",
        "without the baseline's time, ratios are of another contender's",
    ),
    Fault(
        "peers-layout",
        "benchmarks/peers/model.py",
        "perm=[0, 2, 1, 3]",
        "perm=[0, 1, 2, 3]",
        "a peer's second layer reads the directions in the batch's place",
    ),
    Fault(
        "gpu-wrong-passes",
        "benchmarks/gpu/summary.py",
        'if "failed" in row or row.get("ok") is False]',
        'if "failed" in row]',
        "a wrong result on a GPU does not fail the run",
    ),
    Fault(
        "setup-clusters",
        "setup.py",
        'int(name.rstrip("af")) >= FIRST_WITH_CLUSTERS]',
        'int(name.rstrip("af")) > FIRST_WITH_CLUSTERS]',
        "Hopper gets no kernels for clusters",
    ),
)
