"""
A network that learns to write
==============================

It reads a text character by character and learns to say which comes next. Turned around, it writes: draw a character
from what it expects, let it read that, draw again. One sees it pass a table of letter triples, and what it writes
on the way: noise, then words, then almost sentences. The idea is that of Sutskever, Martens and Hinton, "Generating
Text with Recurrent Neural Networks" (2011); the text, Python's language reference, ships with Python.
"""

import argparse
import math
import re
import sys
import textwrap
import time
from importlib.util import find_spec
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 600
parser = argparse.ArgumentParser(description="Train a language model of characters, and let it write.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="char_lm.png", help="where the picture goes (char_lm.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# The text is the prose of the reference, each paragraph once, as numbers. Training never sees the last tenth.

paragraphs = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
prose = (p for p in paragraphs if p.isascii() and re.match(r"[A-Z][^*>=|]{40,}[.:]$", p))
text = "".join(f"{paragraph}\n" for paragraph in dict.fromkeys(prose))
characters = sorted(set(text))
codes, V = torch.tensor([characters.index(character) for character in text]), len(characters)
training, held_out = codes.tensor_split([len(codes) * 9 // 10])

# %%
# The model: a vector for each character, a layer that remembers what it has read, and a score for each character that
# may come next. To write, it reads the last 200 characters of the text in one call, and then what it draws itself, a
# character a call. The state is carried from call to call.

embedding, rnn, head = nn.Embedding(V, 64), fastrnn.LSTM(64, 192, batch_first=True), nn.Linear(192, V)


def read(x, state=None):
    """x (B, T) -> log probabilities (B, T, V), and the state, which is all that is known of the past."""
    output, state = rnn(embedding(x), state)
    return head(output).log_softmax(-1), state


@torch.inference_mode()
def write(length, temperature=0.7):  # below 1 it plays safe, above 1 it invents
    written, (expected, state) = [], read(held_out[None, -200:])
    for _ in range(length):
        written.append(torch.multinomial((expected[0, -1] / temperature).softmax(0), 1))
        expected, state = read(written[-1][None], state)
    return "".join(characters[code] for code in written)


# %%
# Training reads 32 places of the text side by side, 64 characters a step. The state goes on into the next step, so that
# more than 64 characters can be remembered; ``detach`` ends the gradient: back-propagation through time is *truncated*.

BATCH, CHUNK = 32, 64
streams = training[: len(training) // BATCH * BATCH].view(BATCH, -1)
optimizer = torch.optim.Adam([*embedding.parameters(), *rnn.parameters(), *head.parameters()], lr=3e-3)
losses, samples, state = [], {}, None
for step in track(range(1, args.steps + 1), "training"):
    start = step * CHUNK % (streams.shape[1] - CHUNK)
    expected, state = read(streams[:, start : start + CHUNK], state)
    state = tuple(part.detach() for part in state)
    loss = F.nll_loss(expected.flatten(0, 1), streams[:, start + 1 : start + CHUNK + 1].flatten()) / math.log(2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step in (1, args.steps // 12, args.steps // 4, args.steps):
        samples[f"after {step:3} steps"] = write(80).replace("\n", " ")
    if step % max(1, args.steps // 10) == 0:
        mean = sum(losses[-50:]) / min(50, step)
        print(f"step {step}: loss {mean:.3f} bits a character, mean over the last {min(50, step)} steps")

# %%
# It has learnt what a table of what follows each two characters cannot hold: that needs more bits for unseen text.

with torch.inference_mode():
    bits = F.nll_loss(read(held_out[None, :-1])[0][0], held_out[1:]).item() / math.log(2)
triples = [c[:-2] * V * V + c[1:-1] * V + c[2:] for c in (training, held_out)]
table = torch.bincount(triples[0], minlength=V**3).view(-1, V) + 0.05
counted = -(table / table.sum(1, keepdim=True)).log2().flatten()[triples[1]].mean().item()

start, written = time.perf_counter(), write(600)  # its kernels were compiled at step 1: the time is without that
speed = len(written) / (time.perf_counter() - start)
print("\n".join(["", *(textwrap.fill(line, 100) for line in written.split("\n")), ""]))
if find_spec("matplotlib"):
    import matplotlib.pyplot as plt

    figure, (curve, writing) = plt.subplots(2, figsize=(8, 5), height_ratios=(4, 1), layout="constrained")
    curve.plot(range(1, args.steps + 1), losses, color="#0072B2", label="in training, each step")
    curve.plot(args.steps, bits, "o", color="#D55E00", label=f"on unseen text: {bits:.2f}")
    curve.axhline(counted, color="0.4", linestyle="--", label=f"by counting triples, unseen text: {counted:.2f}")
    curve.set(xlabel="step of training", ylabel="bits to tell the next character")
    curve.legend(frameon=False)
    writing.axis("off")
    writing.text(0, 1, "\n".join(map(": ".join, samples.items())), va="top", family="monospace", fontsize=8.5)
    figure.savefig(args.picture, dpi=100)
else:
    print('There is no picture without matplotlib: pip install ".[plot]"')
assert args.steps < STEPS or bits < counted - 0.3
print(f"{bits:.2f} bits a character of unseen text (by triples {counted:.2f}); one is written in {1e6 / speed:.0f} µs.")
