"""
Twelve layers deep
==================

A deep recurrent network passes gradients along two ways: back through time, and down through the layers. LSTM and GRU
were made for the first way. Turkoglu et al. ("Gating Revisited: Deep Multi-layer RNNs That Can Be Trained", 2021) look
at both, and made a cell for the second one: STAR, ``h' = tanh((1 - k) h + k tanh(W x))`` with one gate, ``k``.

Here is the norm of the loss's gradient in each of 12 layers at each step, and what stacks of 1 to 12 layers learn in
the same few steps, at one rate: to tell four noisy waves by how fast they swing. The GRU keeps up with STAR. Twelve
layers of LSTM come last; of single layers, STAR does.
"""

import argparse
import sys

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track

import fastrnn
from fastrnn.cells.gru import gru
from fastrnn.cells.library import star
from fastrnn.cells.lstm import lstm

STEPS = 160
parser = argparse.ArgumentParser(description="Which recurrent cells can be stacked 12 layers deep.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, for each stack ({STEPS})")
parser.add_argument("--picture", default="deep.png", help="where the picture goes (deep.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# All cells begin alike, with an orthogonal matrix for each gate, so that none stretches a gradient by itself. What is
# lost or gained from layer to layer is the cell's doing.
LENGTH, BATCH, KINDS, HIDDEN, DEPTHS = 12, 32, 4, 32, (1, 4, 8, 12)
CELLS = {"LSTM": lstm, "GRU": gru, "STAR": star}


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves (T, B, 1) and their kinds (B,)."""
    kinds, steps = torch.randint(KINDS, (size,)), torch.arange(LENGTH)[:, None]
    waves = torch.sin(0.5 * (kinds + 1) * steps + 2 * torch.pi * torch.rand(size))
    return (waves + 0.3 * torch.randn(LENGTH, size))[..., None], kinds


def orthogonal(weight: torch.Tensor) -> None:
    for gate in weight.split(HIDDEN):
        torch.nn.init.orthogonal_(gate)


class Stack(torch.nn.Module):
    def __init__(self, cell: str, layers: int) -> None:
        super().__init__()
        init = {"weight_ih": orthogonal, "weight_hh": orthogonal}
        self.rnn = fastrnn.Recurrent(CELLS[cell], 1, HIDDEN, layers, init=init)
        self.head = torch.nn.Linear(HIDDEN, KINDS)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:  # (T, B, 1) to scores (B, KINDS)
        self.output, *_ = self.rnn(waves)
        return self.head(self.output[-1])


# %%
# Before any training, ``fastrnn.probe`` tells the gradient's norm in each layer, at each step.
gradients = {}
for cell in CELLS:
    stack, (waves, kinds) = Stack(cell, 12), batch(BATCH)
    with fastrnn.probe(stack) as record:
        loss = F.cross_entropy(stack(waves), kinds)
        stack.output.retain_grad()
        loss.backward()
    gradients[cell] = record["rnn"].gradient_norms["h"]  # (layers, T)
    torch.testing.assert_close(gradients[cell][-1, -1].float(), stack.output.grad[-1].norm())  # autograd's own


# %%
# Then stacks of each depth learn, by the same steps at the same rate.
def accuracy(cell: str, layers: int) -> float:
    torch.manual_seed(0)  # the same data for all
    stack = Stack(cell, layers)
    optimizer = torch.optim.Adam(stack.parameters(), 4e-3)
    for _ in track(range(args.steps), f"{cell}, layers: {layers}"):
        waves, kinds = batch(BATCH)
        optimizer.zero_grad()
        F.cross_entropy(stack(waves), kinds).backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        optimizer.step()
    waves, kinds = batch(2000)
    return (stack(waves).argmax(-1) == kinds).double().mean().item()


right = {cell: {layers: accuracy(cell, layers) for layers in DEPTHS} for cell in CELLS}

# %%
# The gradient enters above on the right, at the last step of the last layer. In the LSTM it fades on its way down.
figure, axes = plt.subplot_mosaic("abc;ddd", figsize=(8, 6), layout="constrained")
for axis, (cell, norms) in zip("abc", gradients.items(), strict=True):
    extent = (0.5, LENGTH + 0.5, 0.5, 12.5)
    shown = axes[axis].imshow(norms.log10().numpy(), origin="lower", extent=extent, aspect="auto", vmin=-8, vmax=-1)
    axes[axis].set(title=cell, xlabel="time step", ylabel="layer", xticks=(1, 4, 8, 12), yticks=DEPTHS)
figure.colorbar(shown, ax=[axes[axis] for axis in "abc"], label="log₁₀ of the gradient's norm")
for (cell, shares), colour in zip(right.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
    axes["d"].plot(shares.keys(), shares.values(), marker="o", color=colour, label=cell)
axes["d"].axhline(1 / KINDS, color="0.6", linestyle=":", label="chance")
axes["d"].set(xlabel="layers", ylabel=f"right after {args.steps} steps of training", xticks=DEPTHS, ylim=(0.2, 1.03))
axes["d"].yaxis.set_major_formatter("{x:.0%}")
axes["d"].legend()
figure.savefig(args.picture, dpi=100)

# How much of the gradient of the last layer reaches the first one, before training, and what that is worth after it.
arrives = {cell: (norms[0].norm() / norms[-1].norm()).item() for cell, norms in gradients.items()}
assert arrives["LSTM"] < 1e-3 < 1e-2 < min(arrives["GRU"], arrives["STAR"]), arrives
deepest = {cell: shares[12] for cell, shares in right.items()}
if args.steps >= STEPS:
    assert deepest["LSTM"] + 0.1 < min(deepest["GRU"], deepest["STAR"]), deepest
print("Right by 12 layers:", ", ".join(f"{c} {deepest[c]:.0%} (gradient × {arrives[c]:.0e})" for c in CELLS))
