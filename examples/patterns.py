"""
Three ways to feed back
=======================

Goodfellow, Bengio and Courville ("Deep Learning", 2016, chapter 10) tell three designs of recurrent networks apart: the
hidden units feed back, and there is an output at each step; only the *output* feeds back; the hidden units feed back,
and there is one output, at the end. Here they learn parity: whether the number of ones so far is odd.

The second design remembers nothing but its output, which is trained to be the target, and cannot carry what that does
not tell. Where it tells the parity at each step, it learns fastest here. Where "nothing" is the right output until the
answer is asked for, the count is lost.
"""

import argparse
import sys

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track

import fastrnn

STEPS = 1200
parser = argparse.ArgumentParser(description="Three designs of recurrent networks learn parity.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, for each network ({STEPS})")
parser.add_argument("--picture", default="patterns.png", help="where the picture goes (patterns.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
torch.set_num_threads(1)  # for so small a network more of them only wait for one another

# %%
# The input of a step is a bit, and whether the answer is asked for. The target is 0 (even) or 1 (odd), and 2 (nothing)
# where nothing is asked. The last step asks and the one before it does not, unless all steps do.
LENGTH, HIDDEN, NOTHING = 8, 32, 2
DESIGNS = FIRST, SECOND, THIRD = "hidden to hidden", "output to hidden", "one output at the end"
TASKS = ALWAYS, SELDOM = "asked at every step", "asked at one step in four"


def batch(task: str, length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (T, B, 2) and targets (T, B)."""
    bits, asked = torch.randint(2, (length, size)), torch.rand(length, size) < (1.0 if task == ALWAYS else 0.25)
    asked[-1], asked[-2] = True, task == ALWAYS
    return torch.stack([bits, asked], -1).float(), torch.where(asked, bits.cumsum(0) % 2, NOTHING)


# %%
# The first and the third design are one layer, read at each step or at the end. In the second the answer before is an
# input. Training puts the target in its place ("teacher forcing"): all steps at once, without a recurrence.
class Net(torch.nn.Module):
    def __init__(self, design: str) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(2 + 3, HIDDEN) if design == SECOND else fastrnn.RNN(2, HIDDEN)
        self.design, self.head = design, torch.nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if self.design != SECOND:
            return self.head(self.hidden(x)[self.design == THIRD])  # of its results, output (T, B, H) or hn (1, B, H)
        answers = torch.full((1, x.shape[1]), NOTHING)
        if targets is not None:
            answers = torch.cat([answers, targets[:-1]])
        for rows in x.split(len(answers)):  # one piece in training; T in use, each of which waits for the answer before
            logits = self.head(torch.tanh(self.hidden(torch.cat([rows, F.one_hot(answers, 3)], -1))))
            answers = logits.argmax(-1)
        return logits


# %%
# Every 50 steps of training: how often is the last answer right, in sequences of full length?
def learn(design: str, task: str) -> dict[int, float]:
    net, test = Net(design), batch(task, LENGTH, 1000)
    optimizer, curve = torch.optim.Adam(net.parameters(), 1e-2), {}
    for step in track(range(1, args.steps + 1), f"{design}, {task}"):
        x, targets = batch(task, int(torch.randint(2, LENGTH + 1, ())), 128)
        logits = net(x, targets)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets[-len(logits) :].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps:
            curve[step] = (net(test[0])[-1].argmax(-1) == test[1][-1]).double().mean().item()
    return curve


curves = {(design, task): learn(design, task) for task in TASKS for design in DESIGNS}

# %%
# The graphs over three steps, and the curves.
COLOURS = dict(zip(DESIGNS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
ARROW = {"arrowstyle": "-|>", "shrinkA": 11, "shrinkB": 11, "linewidth": 1.6}
CIRCLE = {"boxstyle": "circle", "facecolor": "white", "edgecolor": "0.4"}
figure, axes = plt.subplot_mosaic("aabbcc;dddeee;dddeee", figsize=(8, 6), layout="constrained")
for axis, (design, colour) in zip("abc", COLOURS.items(), strict=True):
    axes[axis].set(xlim=(-0.4, 2.4), ylim=(-0.4, 2.4), frame_on=False, xticks=[], yticks=[])
    axes[axis].set_title(design, color=colour, fontsize=11, fontweight="bold")
    nodes = [(t, y) for t in range(3) for y in range(3) if y < 2 or t == 2 or design != THIRD]
    arrows = [((t, y - 1), (t, y), "0.4") for t, y in nodes if y]
    arrows += [((t, 2 if design == SECOND else 1), (t + 1, 1), colour) for t in range(2)]
    for tail, tip, shade in arrows:
        axes[axis].annotate("", tip, tail, arrowprops={**ARROW, "color": shade})
    for t, y in nodes:
        axes[axis].text(t, y, f"${'xho'[y]}_{t + 1}$", ha="center", va="center", bbox=CIRCLE)
for axis, task in zip("de", TASKS, strict=True):
    axes[axis].set(title=f"parity, {task}", xlabel="step of training", ylabel="last answer right", ylim=(0.4, 1.03))
    axes[axis].yaxis.set_major_formatter("{x:.0%}")
    axes[axis].axhline(0.5, color="0.6", linestyle=":", label="chance")
    for design, colour in COLOURS.items():
        axes[axis].plot(*zip(*curves[design, task].items(), strict=True), color=colour, label=design)
axes["d"].legend(loc="center right")
figure.savefig(args.picture, dpi=100)
final = {key: curve[args.steps] for key, curve in curves.items()}
if args.steps >= STEPS:
    assert final[SECOND, SELDOM] < 0.6, final
    assert min(right for key, right in final.items() if key != (SECOND, SELDOM)) > 0.9, final
print(
    f"Parity asked at one step in four: {final[FIRST, SELDOM]:.0%} right where hidden units feed back, "
    f"{final[SECOND, SELDOM]:.0%} where the output does (chance 50%), {final[SECOND, ALWAYS]:.0%} if always asked."
)
