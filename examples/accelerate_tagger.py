"""
One line makes a tagger faster
==============================

A model that knows nothing of fastrnn reads Python source character by character and says what kind of token each one
belongs to: an embedding, a bidirectional LSTM of two layers (Graves and Schmidhuber, 2005), a linear layer. One line
gives its LSTM fastrnn's kernels. One sees it train and tag beside what it was before: the same losses, in less time.
"""

import argparse
import copy
import inspect
import io
import itertools
import keyword
import sys
import time
import tokenize
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 60
parser = argparse.ArgumentParser(description="Train a tagger of torch.nn, and the same by fastrnn's kernels.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="accelerate_tagger.png", help="where it goes (accelerate_tagger.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# The data: a module of Python's library, and for each of its characters the kind of token, which ``tokenize`` tells.

KINDS = ("space", "name", "keyword", "op", "number", "string", "comment")
source = inspect.getsource(argparse)
starts = list(itertools.accumulate(map(len, io.StringIO(source)), initial=0))  # of the lines
kinds = torch.zeros(len(source), dtype=torch.long)
for token in tokenize.generate_tokens(io.StringIO(source).readline):
    kind = "keyword" if keyword.iskeyword(token.string) else tokenize.tok_name[token.type].lower()
    kind = "string" if "string" in kind else kind  # from Python 3.12 on, an f-string is several tokens
    if kind in KINDS:
        first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
        kinds[first:last] = KINDS.index(kind)
codes = torch.tensor([min(ord(character), 127) for character in source])


def batch():
    """16 pieces of 64 characters: codes (B, T), and their kinds (B, T)."""
    places = torch.randint(len(codes) - 64, (16, 1)) + torch.arange(64)
    return codes[places], kinds[places]


# %%
# The model is plain torch.


class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.rnn = nn.LSTM(32, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, len(KINDS))

    def forward(self, x):
        return self.head(self.rnn(self.embedding(x))[0])


# %%
# The line. It changes the model in place; its parameters stay the same objects. ``report`` is told what became of each
# layer. (The copy is there to compare. ``fastrnn.to_torch`` undoes it.)

plain = Tagger()
fast = fastrnn.accelerate(copy.deepcopy(plain), report=print)

# %%
# Both train on the same batches, in turn, so that whatever else the machine does meets both. Then both tag them.

models = {"torch.nn": plain, "fastrnn": fast}
optimizers = {name: torch.optim.Adam(model.parameters(), lr=3e-3) for name, model in models.items()}
losses, training, tagging = ({name: [] for name in models} for _ in range(3))
for step in track(range(args.steps + 1), "training both"):
    x, target = batch()
    for name in sorted(models, reverse=step % 2 == 0):
        start = time.perf_counter()
        loss = F.cross_entropy(models[name](x).flatten(0, 1), target.flatten())
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        training[name].append(time.perf_counter() - start)
        losses[name].append(loss.item())
        start = time.perf_counter()
        with torch.inference_mode():
            models[name](x)
        tagging[name].append(time.perf_counter() - start)

figure, (curves, bars) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(3, 2), layout="constrained")
times = {}
for name, colour, width, shift in (("torch.nn", "#E69F00", 5, -0.2), ("fastrnn", "#0072B2", 1.5, 0.2)):
    times[name] = [1e3 * median(seconds[name][1:]) for seconds in (training, tagging)]  # the first call compiles
    curves.plot(losses[name], color=colour, linewidth=width, label=name)
    bars.bar_label(bars.bar([shift, 1 + shift], times[name], 0.4, color=colour), fmt="%.1f")
curves.set(xlabel="step of training", ylabel="cross entropy in nats", title="The same losses")
curves.legend(frameon=False)
bars.margins(y=0.12)
bars.set(xticks=[0, 1], xticklabels=["to train", "to tag"], ylabel="ms for a batch, median", title="in less time")
figure.savefig(args.picture, dpi=100)

apart = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
to_train, to_tag = (theirs / ours for theirs, ours in zip(*times.values(), strict=True))
assert apart <= 1e-4
assert args.steps < STEPS or losses["fastrnn"][-1] < 0.6 * losses["fastrnn"][0]
print(f"fastrnn trains {to_train:.2f} times, tags {to_tag:.2f} times as fast as torch.nn; losses within {apart:.0e}.")
