"""
A cell of one's own
===================

Five lines say what a step computes, and fastrnn makes fused kernels of them, forward and backward. The cell here is an
LSTM whose gates see its memory: *peepholes* (Gers and Schmidhuber, "Recurrent nets that time and count", 2000). One
sees it learn to count, beside the same cell as a plain loop in torch, not compiled: the same losses, sooner.
"""

import argparse
import sys
import time
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import fastrnn
from fastrnn.cells import sigmoid, tanh

STEPS = 150
parser = argparse.ArgumentParser(description="Train a recurrent cell of one's own beside a loop in plain torch.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="own_cell.png", help="where the picture goes (own_cell.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
UNITS, LENGTH, BATCH = 64, 50, 32

# %%
# ``x.i`` is the input's share of the gate i, ``u.i`` that of the state h, each with weights and a bias; after the star
# come parameters of each unit. The first call differentiates the function and compiles kernels, which stay on disk.


@fastrnn.cell(gates="ifgo")
def peephole(x, u, h, c, *, p_i, p_f, p_o):
    i = sigmoid(x.i + u.i + p_i * c)
    f = sigmoid(x.f + u.f + p_f * c)
    c = f * c + i * tanh(x.g + u.g)
    o = sigmoid(x.o + u.o + p_o * c)
    return o * tanh(c), c


# %%
# The same in torch: a loop over the steps, a dozen small operations in each, all of which autograd records. Its
# parameters are copies of the layer's.


class Loop(nn.Module):
    def __init__(self, layer):
        super().__init__()
        for name, value in layer.named_parameters():
            self.register_parameter(name.removesuffix("_l0"), nn.Parameter(value.detach().clone()))

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], UNITS)
        output = []
        for gx in F.linear(x, self.weight_ih, self.bias_ih):
            i, f, g, o = (gx + F.linear(h, self.weight_hh, self.bias_hh)).chunk(4, -1)
            i = torch.sigmoid(i + self.p_i * c)
            f = torch.sigmoid(f + self.p_f * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.p_o * c) * torch.tanh(c)
            output.append(h)
        return torch.stack(output), (h, c)


class Counter(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(UNITS, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


layer = fastrnn.Recurrent(peephole, 1, UNITS, init={"p_i": 0.0, "p_f": 0.0, "p_o": 0.0})
models = {"loop in torch": Counter(Loop(layer)), "fastrnn": Counter(layer)}
models["fastrnn"].head.load_state_dict(models["loop in torch"].head.state_dict())
optimizers = {name: torch.optim.Adam(model.parameters(), lr=3e-3) for name, model in models.items()}

# %%
# Every step brings a spike or none, and the layer is to tell how many have come so far. Both models learn it from the
# same sequences (T, B, 1), in turn, so that whatever else the machine does meets both.

losses, seconds = ({name: [] for name in models} for _ in range(2))
models["fastrnn"](torch.zeros(LENGTH, BATCH, 1)).sum().backward()  # compiles, which is not to be timed
for step in track(range(args.steps), "training both"):
    spikes = (torch.rand(LENGTH, BATCH, 1) < 0.2).float()
    for name in sorted(models, reverse=step % 2 == 0):
        start = time.perf_counter()
        loss = F.mse_loss(models[name](spikes), spikes.cumsum(0))
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        losses[name].append(loss.item())
        seconds[name].append(time.perf_counter() - start)

times = {name: 1e3 * median(seconds[name]) for name in models}
figure, (curves, bars) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(2, 1), layout="constrained")
for (name, milliseconds), colour, width in zip(times.items(), ("#E69F00", "#0072B2"), (5, 1.5), strict=True):
    curves.semilogy(range(1, args.steps + 1), losses[name], color=colour, linewidth=width, label=name)
    bars.bar(name, milliseconds, color=colour)
    bars.text(name, milliseconds, f"{milliseconds:.1f}", ha="center", va="bottom")
curves.set(xlabel="step of training", ylabel="squared error of the count", title="The same losses")
curves.legend(frameon=False)
bars.margins(y=0.12)
bars.set(ylabel="ms for a step of training, median", title="in less time")
figure.savefig(args.picture, dpi=100)

apart = max(abs(one - other) / one for one, other in zip(*losses.values(), strict=True))
faster = times["loop in torch"] / times["fastrnn"]
assert apart < 1e-3
assert args.steps < STEPS or losses["fastrnn"][-1] < 0.1 * losses["fastrnn"][0]
print(f"The cell trains {faster:.1f} times as fast as the loop; losses differ by {apart:.0e} of their size at most.")
