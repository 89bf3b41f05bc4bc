"""
Keras' SimpleRNN, GRU and LSTM, with the same weights here
==========================================================

Where do a ``SimpleRNN``'s parameters come from? Here they are counted, for Keras' layers and for fastrnn's; then the
weights of the first are carried over into the second, which must give the same output at every step, in less time.
Source: the documentation of ``keras.layers.SimpleRNN``, ``GRU`` and ``LSTM``, https://keras.io/api/layers/.

Keras is an extra, ``pip install "fastrnn[keras]"``. It runs on torch here, where a layer is a Python loop over its
steps; on TensorFlow and JAX, which compile that loop, its times are others.
"""

import argparse
import importlib.util
import os
import sys
import time

if importlib.util.find_spec("keras") is None:
    sys.exit('This program needs Keras 3: pip install "fastrnn[keras]"')
os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
import keras
import matplotlib.pyplot as plt
import torch
from rich.progress import track

import fastrnn.keras

STEPS = 100
parser = argparse.ArgumentParser(description="Keras' recurrent layers beside fastrnn's, with the same weights.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of each sequence ({STEPS})")
parser.add_argument("--picture", default="keras_simple_rnn.png", help="where it goes (keras_simple_rnn.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
if keras.backend.backend() != "torch":
    sys.exit(f"Keras runs on {keras.backend.backend()} in this process already, not on torch")
keras.utils.set_random_seed(0)  # calls torch.manual_seed, too
BATCH, INPUTS, UNITS = 32, 16, 32

# %%
# The parameters, counted
# -----------------------
# A simple recurrent network computes h' = tanh(W x + U h + b). W has a row for each unit and a column for each input, U
# a row and a column for each unit, b a number for each unit: units² + inputs·units + units numbers. A GRU has three of
# each, for two gates and a new value, an LSTM four.
#
# fastrnn has a second bias, h' = tanh(W x + b + U h + b'), because torch has: so ``state_dict`` loads both ways. In RNN
# and LSTM only the sum b + b' matters. Not so in a GRU, where the reset gate multiplies U h + b' but not b: Keras' GRU
# has both biases, too.


def counted(gates: int, biases: int) -> int:
    return gates * (UNITS**2 + INPUTS * UNITS + biases * UNITS)


GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
theirs, ours, counts = {}, {}, {}
for name, gates in GATES.items():
    layer = theirs[name] = getattr(keras.layers, name)(UNITS, return_sequences=True, bias_initializer="random_normal")
    layer.build((None, None, INPUTS))
    ours[name] = fastrnn.keras.from_keras(layer)  # an RNN, GRU or LSTM that computes the same
    counts[name] = layer.count_params(), sum(parameter.numel() for parameter in ours[name].parameters())
    assert counts[name] == (counted(gates, biases=2 if name == "GRU" else 1), counted(gates, biases=2))

# %%
# The same output at every step
# -----------------------------
# Sums are added up in another order, so that the last bits differ. Does that grow from step to step? It does not.
x, apart, SAME = torch.randn(BATCH, args.steps, INPUTS), {}, 1e-5
with torch.no_grad():
    for name in GATES:
        expected, (again,) = theirs[name](x), fastrnn.keras.to_keras(ours[name])  # and back into a Keras layer
        apart[name] = (ours[name](x)[0] - expected).abs().amax((0, 2))
        assert max(apart[name].max(), (again(x) - expected).abs().max()) <= SAME, name


# %%
# The time of the output and its gradients
# ----------------------------------------
def milliseconds(layer: torch.nn.Module) -> float:
    start = time.perf_counter()
    output = layer(x)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    return 1e3 * (time.perf_counter() - start)


runs = {name: ([], []) for name in GATES}
for _ in track(range(10), description="timing"):  # in turns, on a machine that is equally busy for both
    for name, both in runs.items():
        for layer, found in zip((theirs[name], ours[name]), both, strict=True):
            found.append(milliseconds(layer))
times = {name: [min(found) for found in both] for name, both in runs.items()}  # what others' work disturbed least

# %%
# All in one picture
# ------------------
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
for axes, values, form in ((left, counts, "%.0f"), (right, times, "%.3g")):
    for who, shift in ((0, -0.2), (1, 0.2)):
        at = [place + shift for place in range(len(GATES))]
        bars = axes.bar(at, [pair[who] for pair in values.values()], 0.4, label=("Keras", "fastrnn")[who])
        axes.bar_label(bars, fmt=form, fontsize=7, padding=2)
    axes.set_xticks(range(len(GATES)), GATES)
for name, line in zip(GATES, ("-", "--", ":"), strict=True):
    middle.semilogy(range(1, args.steps + 1), apart[name].clamp_min(1e-9), line, color="black", label=name)
middle.axhline(SAME, color="tab:red", label="allowed")
middle.set(title="largest difference", xlabel="step", ylim=(1e-9, 1e-4))
left.set(title="parameters", ylim=(0, 7000))
right.set(title="forward and backward, ms", yscale="log", ylim=(1, 2 * max(map(max, times.values()))))
left.legend(loc="upper left"), middle.legend(fontsize=8, loc="lower right")
figure.savefig(args.picture, dpi=100)

largest, faster = max(each.max() for each in apart.values()), [keras / own for keras, own in times.values()]
print(
    f"In {args.steps} steps outputs differ by {largest:.0e} at most; forward and backward by Keras on torch take "
    f"{faster[0]:.0f} times (SimpleRNN), {faster[1]:.0f} times (GRU) and {faster[2]:.0f} times (LSTM) as long."
)
