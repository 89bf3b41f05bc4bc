"""
A loop over LSTMCell, and the LSTM that is the same
===================================================

Two models learn to write English from the same weights. One calls an ``LSTMCell`` for each character, in a loop; the
other gives all characters to an ``LSTM`` at once. Losses are the same, time is not. The task is that of Andrej
Karpathy's "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015), the text ships inside Python.
"""

import argparse
import re
import sys
import time
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import fastrnn

STEPS = 300
parser = argparse.ArgumentParser(description="Characters by a loop over LSTMCell, and by LSTM.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="lstmcell_chars.png", help="where it goes (lstmcell_chars.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
UNITS, BATCH, CHUNK = 128, 16, 32

# %%
# The text
# --------
# It is laid out in 16 columns. A chunk is the next 32 characters of each; what is asked of each is the one after it.
paragraphs = (re.sub(r"\s+", " ", block) for topic in topics.values() for block in topic.split("\n\n"))
text = "\n".join(dict.fromkeys(block for block in paragraphs if re.match(r" ?[A-Z][^*=>|]{60,}\.$", block)))
vocabulary = sorted(set(text))
columns = torch.tensor([vocabulary.index(one) for one in text[: len(text) // BATCH * BATCH]]).view(BATCH, -1).t()


# %%
# The two models
# --------------
# An LSTM's call is this loop: a step needs the state (h, c) that the one before left. But the product with the input
# needs no state: an LSTM computes it for all steps at once, and the gradients of its weights likewise. A loop is for
# what an LSTM cannot do: a step's input that depends on the output before.
def run(model: nn.ModuleList, ids: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    embedding, rnn, head = model
    outputs = []
    x = embedding(ids)  # (CHUNK, BATCH, UNITS)
    if isinstance(rnn, fastrnn.LSTM):
        output, state = rnn(x, state)
        return head(output), state
    for x_t in x:  # (BATCH, UNITS)
        state = rnn(x_t, state)  # h and c, of which h is the output
        outputs.append(state[0])
    return head(torch.stack(outputs)), state


@torch.no_grad()
def written(model: nn.ModuleList, characters: int = 100) -> str:  # drawn one by one, at a temperature of 0.5
    generator, found, state = torch.Generator().manual_seed(0), [vocabulary.index("T")], None
    while len(found) < characters:
        logits, state = run(model, torch.tensor([[found[-1]]]), state)
        found.append(int(torch.multinomial(F.softmax(logits[0, 0] / 0.5, 0), 1, generator=generator)))
    return "".join(vocabulary[index] for index in found).replace("\n", " ")


rnns, N = {"LSTMCell": fastrnn.LSTMCell(UNITS, UNITS), "LSTM": fastrnn.LSTM(UNITS, UNITS)}, len(vocabulary)
models = {name: nn.ModuleList([nn.Embedding(N, UNITS), rnn, nn.Linear(UNITS, N)]) for name, rnn in rnns.items()}
for of_cell, of_layer in zip(*(model.parameters() for model in models.values()), strict=True):
    of_layer.data.copy_(of_cell.data)  # an LSTM's parameters are a cell's, in the same order

# %%
# Training
# --------
# The state at the end of a chunk enters the next one, but detached: gradients reach back to the beginning of the chunk.
optimizers = {name: torch.optim.Adam(model.parameters(), 5e-3) for name, model in models.items()}
states, losses, seconds = dict.fromkeys(models), {name: [] for name in models}, {name: [] for name in models}
for step in track(range(args.steps), description="training"):
    at = step * CHUNK % (len(columns) - CHUNK)
    for name, model in models.items():  # in turns, on a machine that is equally busy for both
        start = time.perf_counter()
        logits, (h, c) = run(model, columns[at : at + CHUNK], states[name])
        states[name] = h.detach(), c.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), columns[at + 1 : at + CHUNK + 1].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[name].step()
        optimizers[name].zero_grad()
        losses[name].append(loss.item())
        seconds[name].append(time.perf_counter() - start)

# %%
# Losses, times, and what each writes
# -----------------------------------
apart = torch.tensor([abs(one - other) for one, other in zip(*losses.values(), strict=True)])
times = {name: 1e3 * min(found) for name, found in seconds.items()}  # the step that others' work disturbed least
mosaic, heights = [["loss", "apart", "time"], ["text"] * 3], (3, 1)
figure, axes = plt.subplot_mosaic(mosaic, figsize=(8, 4), height_ratios=heights, layout="constrained")
axes["loss"].plot(losses["LSTMCell"], linewidth=4, alpha=0.4, label="LSTMCell")
axes["loss"].plot(losses["LSTM"], color="black", label="LSTM")
axes["loss"].set(title="loss, nats a character", xlabel="step of training")
axes["loss"].legend()
axes["apart"].semilogy(apart.clamp_min(1e-8))  # a zero has no logarithm
axes["apart"].set(title="difference of the losses", xlabel="step of training")
axes["time"].set(title="time of a step, ms", ylim=(0, 1.15 * max(times.values())))
axes["time"].bar_label(axes["time"].bar(times.keys(), times.values()), fmt="%.1f")
texts = "\n\n".join(f"{name} writes:\n{written(model)}" for name, model in models.items())
axes["text"].text(0, 1, texts, va="top", family="monospace", fontsize=8, in_layout=False)
axes["text"].axis("off")
figure.savefig(args.picture, dpi=100)
assert apart[:100].max() <= 1e-4
assert apart.max() <= 0.05  # rounding grows: sums in another order part in the end
assert args.steps < STEPS or sum(losses["LSTM"][-50:]) / 50 < 2
same = f"to {apart[:100].max():.0e} for 100 steps, to {apart.max():.0e} for {args.steps}"
print(f"Losses are the same {same}; a step is {times['LSTMCell']:.1f} ms by cells, {times['LSTM']:.1f} ms by a layer.")
