"""
Back through time, by hand
==========================

To train a recurrent network is to go back through its steps. Here they are written out, and give autograd's gradients.
Then the way back is cut into chunks, as for long streams (truncated back-propagation through time; Williams and Peng,
1990). One sees what that costs, and what is no longer learnt.
"""

import argparse
import sys
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 150
parser = argparse.ArgumentParser(description="Back-propagation through time by hand, and cut into chunks.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, for each length of chunks ({STEPS})")
parser.add_argument("--picture", default="bptt.png", help="where the picture goes (bptt.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
torch.set_num_threads(1)  # for so small a network more of them only wait for one another

# %%
# The task has a known lag: of a stream of random bits, -1 or 1, the one of ten steps ago is asked for at every step.
# The stream comes in parts of 64 steps. `EVERY` and `LAST` say which of these count in a loss.
T, B, H, LAG, CHUNKS = 64, 32, 32, 10, (1, 4, 8, 16, 32, 64)
bits = torch.randint(2, (LAG + args.steps * T, B, 1)) * 2.0 - 1
inputs, targets = bits[LAG:].split(T), (bits[:-LAG] > 0).float().split(T)
EVERY, LAST = torch.ones(T, 1, 1), (torch.arange(T) == T - 1).float().view(T, 1, 1)


# %%
# Every step back, written out: `later` is what later steps say of the state after step t. At a cut it is zero.
@torch.no_grad()
def by_hand(rnn, head, x, target, chunk, counts):
    W, U, bias, V = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0, head.weight
    dW, dU, db, dV, dc = (torch.zeros_like(w) for w in (W, U, bias, V, head.bias))
    h, later, norms = [x.new_zeros(B, H)], 0.0, x.new_zeros(T)
    for x_t in x:
        h.append(torch.tanh(x_t @ W.T + h[-1] @ U.T + bias))
    for t in reversed(range(T)):  # h[t] is the state before step t, h[t + 1] the one after it
        dy = (torch.sigmoid(head(h[t + 1])) - target[t]) * counts[t] / B
        dh = dy @ V + later
        da = dh * (1 - h[t + 1] ** 2)
        dV, dc, dW, dU, db = dV + dy.T @ h[t + 1], dc + dy.sum(0), dW + da.T @ x[t], dU + da.T @ h[t], db + da.sum(0)
        later, norms[t] = da @ U if t % chunk else 0.0, dh.norm()
    return [dW, dU, db, db, dV, dc], norms


# %%
# The same by autograd. `detach` cuts: the value of a state goes on, its history does not. What is kept is counted.
def by_autograd(rnn, head, x, target, chunk, counts=EVERY, h=None):
    total, saved = 0.0, {}
    with torch.autograd.graph.saved_tensors_hooks(lambda s: saved.update({s.data_ptr(): s.nbytes}) or s, lambda s: s):
        for steps in torch.arange(T).split(chunk):
            saved.clear()
            output, h = rnn(x[steps], None if h is None else h.detach())
            losses = F.binary_cross_entropy_with_logits(head(output), target[steps], counts[steps], reduction="sum")
            (losses / B).backward()
            total += losses.item() / (T * B)
    return total, h, sum(saved.values())


apart, norms, curves, costs = 0.0, {}, {}, []
for chunk, counts in ((T, EVERY), (16, EVERY), (T, LAST), (16, LAST)):
    torch.manual_seed(0)  # one network: the picture compares the last two
    rnn, head = fastrnn.RNN(1, H, dtype=torch.float64), nn.Linear(H, 1, dtype=torch.float64)
    part = inputs[0].double(), targets[0].double(), chunk, counts
    gradients, norms[chunk] = by_hand(rnn, head, *part)
    with fastrnn.probe(rnn) as record:
        by_autograd(rnn, head, *part)
    probed = torch.cat([figures.gradient_norms["h"][0] for figures in record.calls("RNN")])
    theirs = [parameter.grad for parameter in (*rnn.parameters(), *head.parameters())]
    for one, other in zip([*gradients, norms[chunk]], [*theirs, probed], strict=True):
        apart = max(apart, float((one - other).abs().max() / other.abs().max()))

# %%
# Training in chunks: the same stream and the same backend; weights change after every 64 steps. Only the cuts differ.
for chunk in track(CHUNKS, "training"):
    torch.manual_seed(0)
    rnn, head, h = fastrnn.RNN(1, H, backend="numba"), nn.Linear(H, 1), None
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.01)
    by_autograd(rnn, head, inputs[0], targets[0], chunk)  # compiles, which is not to be timed
    start, curves[chunk] = time.perf_counter(), torch.zeros(args.steps)
    for step, part in enumerate(zip(inputs, targets, strict=True)):
        optimizer.zero_grad()
        curves[chunk][step], h, saved = by_autograd(rnn, head, *part, chunk, h=h)
        optimizer.step()
    costs.append((saved / 1e3, (time.perf_counter() - start) / args.steps * 1e3))  # kB, ms

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.4, 3.5), layout="constrained")
left.semilogy(norms[T], label="no cut", color="#0072B2")
left.semilogy(range(T - 16, T), norms[16][T - 16 :], "o", markersize=4, label="chunks of 16", color="#D55E00")
left.axvspan(0, T - 16, color="0.92")
left.text((T - 16) / 2, norms[T][-8], "beyond the cut:\nexactly 0", ha="center", color="#D55E00")
left.set(title="Gradient of the last step's loss", xlabel="step t", ylabel="norm of the gradient of $h_t$")
for place, (chunk, losses) in enumerate(curves.items()):
    middle.plot(losses, label=f"chunks of {chunk}", color=plt.cm.viridis(place / len(CHUNKS)))
middle.axhline(0.693, color="0.4", linestyle=":", label="guessing: ln 2")
middle.set(title=f"A bit of {LAG} steps ago", xlabel="updates", ylabel="loss (nats)", ylim=0)
right.semilogx(CHUNKS, costs, "o-", label=["kept for backward (kB)", "time for 64 steps (ms)"])
right.set(title="What chunks cost", xlabel="chunk (steps)", ylabel="kB, ms", xticks=CHUNKS, xticklabels=CHUNKS)
for axes in (left, middle, right):
    axes.legend(fontsize=8)
figure.savefig(args.picture, dpi=100)
ends = {chunk: losses[-10:].mean() for chunk, losses in curves.items()}
assert apart <= 1e-6
assert norms[16][: T - 16].max() == 0
assert costs[0][0] < costs[-1][0] / 8
assert args.steps < STEPS or all(loss > 0.6 if chunk < LAG else loss < 0.2 for chunk, loss in ends.items())
print(f"A lag of {LAG} steps is learnt in chunks of 16 (loss {ends[16]:.2f}), not of 8 ({ends[8]:.2f}, guessing 0.69).")
