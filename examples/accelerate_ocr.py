"""
One line makes a reader of images faster
========================================

A model that knows nothing of fastrnn reads numbers in noisy images: convolutions, a bidirectional GRU over the columns
(LSTMs in the CRNN of Shi, Bai and Yao, 2015), and the CTC loss (Graves et al., 2006), which needs no word of where a
digit stands. One line gives its GRU fastrnn's kernels. One sees it train beside what it was: the same losses, sooner.
"""

import argparse
import copy
import sys
import time
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 200
parser = argparse.ArgumentParser(description="Train a reader of images of torch.nn, and the same by fastrnn's kernels.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="accelerate_ocr.png", help="where the picture goes (accelerate_ocr.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# The data: three to five digits as a clock shows them, at places that vary, in noise. Each digit lights some of seven
# segments, from a at the top clockwise to f, with g in the middle.

SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
ROWS = {"a": 0, "g": 4, "d": 8, "b": slice(0, 5), "f": slice(0, 5), "c": slice(4, 9), "e": slice(4, 9)}
COLUMNS = {"a": slice(0, 5), "g": slice(0, 5), "d": slice(0, 5), "b": 4, "c": 4, "e": 0, "f": 0}


def batch(size=16):
    """Images (B, 1, 12, 48), their digits, one image's after the other's, and how many each has (B,)."""
    images, counts = 0.3 * torch.randn(size, 1, 12, 48), torch.randint(3, 6, (size,))
    digits = torch.randint(10, (int(counts.sum()),))
    for image, numbers in zip(images, digits.split(counts.tolist()), strict=True):
        for place, digit in enumerate(numbers):
            top, left = int(torch.randint(4, ())), 9 * place + int(torch.randint(5, ()))
            for segment in SEGMENTS[digit]:
                image[0, top:, left:][ROWS[segment], COLUMNS[segment]] += 1
    return images, digits, counts


# %%
# The model is plain torch.


class Reader(nn.Module):
    """Images (B, 1, 12, 48) to scores of ten digits and CTC's blank for every other column, (T, B, 11)."""

    def __init__(self, hidden=64):
        super().__init__()
        edges = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.convolutions = nn.Sequential(*edges, nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.rnn = nn.GRU(16 * 6, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 11)

    def forward(self, images):
        columns = self.convolutions(images).permute(3, 0, 1, 2).flatten(2)  # (T, B, features)
        return self.head(self.rnn(columns)[0])


def ctc(scores, digits, counts):
    return F.ctc_loss(scores.log_softmax(-1), digits, torch.full_like(counts, len(scores)), counts, blank=10)


# %%
# The line. It changes the model in place; its parameters stay the same objects. ``report`` is told what became of each
# layer. (The copy is there to compare. ``fastrnn.to_torch`` undoes it.)

plain = Reader()
fast = fastrnn.accelerate(copy.deepcopy(plain), report=print)

# %%
# Both train on the same batches, in turn, so that whatever else the machine does meets both.

models = {"torch.nn": plain, "fastrnn": fast}
optimizers = {name: torch.optim.Adam(model.parameters(), lr=5e-3) for name, model in models.items()}
losses, seconds = ({name: [] for name in models} for _ in range(2))
for step in track(range(args.steps + 1), "training both"):
    images, digits, counts = batch()
    for name in sorted(models, reverse=step % 2 == 0):
        start = time.perf_counter()
        loss = ctc(models[name](images), digits, counts)
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        seconds[name].append(time.perf_counter() - start)
        losses[name].append(loss.item())

times = {name: 1e3 * median(seconds[name][1:]) for name in models}  # the first call compiles
figure, (curves, bars) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(2, 1), layout="constrained")
for (name, milliseconds), colour, width in zip(times.items(), ("#E69F00", "#0072B2"), (5, 1.5), strict=True):
    curves.plot(losses[name], color=colour, linewidth=width, label=name)
    bars.bar_label(bars.bar(name, milliseconds, color=colour), fmt="%.1f")
curves.set(xlabel="step of training", ylabel="CTC loss in nats a digit", title="The same losses")
curves.legend(frameon=False)
bars.margins(y=0.12)
bars.set(ylabel="ms for a step of training, median", title="in less time")
figure.savefig(args.picture, dpi=100)

# rounding grows while it learns to read, between any two programs in float32: only the first 50 losses are compared
apart = max(abs(one - other) for one, other in list(zip(*losses.values(), strict=True))[:50])
speed, last = times["torch.nn"] / times["fastrnn"], [median(losses[name][-10:]) for name in models]
assert apart <= 1e-4
assert args.steps < STEPS or max(last) < 0.5
print(
    f"fastrnn trains {speed:.2f} times as fast as torch.nn, to a loss of {last[1]:.2f}; losses differ by {apart:.0e}."
)
