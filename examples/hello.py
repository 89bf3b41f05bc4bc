"""
Three units write hello
=======================

The smallest network that writes a word. It reads one letter at a time, keeps what it has read in three numbers, and
says which letter comes next. One sees the equation as a loop, the same as a layer, and the bars of what it expects
after each letter, before and after training.

The example is Andrej Karpathy's, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015).
"""

import argparse
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fastrnn

STEPS = 100
parser = argparse.ArgumentParser(description="Three recurrent units learn to write hello.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="hello.png", help="where the picture goes (hello.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# Letters as numbers
# ------------------
# The vocabulary has four letters. A letter is a vector of four numbers, one of which is 1: *one-hot*. The network
# reads h, e, l, l, and is to expect e, l, l, o. After the first l comes an l, after the second an o: the letter alone
# does not tell which, so the network has to remember.

VOCABULARY, WORD, UNITS = "helo", "hello", 3


def one_hot(text):
    return torch.tensor([[float(letter == one) for one in VOCABULARY] for letter in text])


x, targets = one_hot(WORD[:-1]), torch.tensor([VOCABULARY.index(letter) for letter in WORD[1:]])

# %%
# The recurrence, written out
# ---------------------------
# :math:`h' = \tanh(W_{hh} h + W_{xh} x + b)`: the state after a letter comes from the state before it and the letter.
# The same weights serve every step. torch's layers, and so ours, have two biases, of which only the sum matters.

rnn, head = fastrnn.RNN(len(VOCABULARY), UNITS), nn.Linear(UNITS, len(VOCABULARY))


def written_out(x):
    h, states = torch.zeros(UNITS), []
    for letter in x:
        h = torch.tanh(rnn.weight_hh_l0 @ h + rnn.weight_ih_l0 @ letter + rnn.bias_hh_l0 + rnn.bias_ih_l0)
        states.append(h)
    return torch.stack(states)


def expected():
    """The states, and the probability of each letter, after each step."""
    with torch.no_grad():
        states, _ = rnn(x)
        return states.numpy(), head(states).softmax(-1).numpy()


# %%
# Training
# --------
# All four letters go through the layer in one call. The loss is the mean of -log p over the letters that do come.
_, before = expected()
optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.05)
for _ in range(args.steps):
    loss = F.cross_entropy(head(rnn(x)[0]), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Writing
# -------
# Now it gets only the h. The letter that it finds likeliest is written and read as the next one; the state is carried.

with torch.no_grad():
    text, h = WORD[0], None
    while len(text) < len(WORD):
        output, h = rnn(one_hot(text[-1]), h)
        text += VOCABULARY[head(output[-1]).argmax()]

# %%
# What one sees
# -------------
# Look at the third and the fourth column: the same letter is read, the states differ, and so does what is expected.
states, after = expected()
figure, axes = plt.subplots(2, len(x), figsize=(8, 4.6), sharey="row", layout="constrained")
for step, (above, below) in enumerate(axes.T):
    place = np.arange(len(VOCABULARY))
    above.bar(place - 0.2, before[step], 0.4, color="0.75", label="before training")
    above.bar(place + 0.2, after[step], 0.4, color="#0072B2", label="after training")
    above.set_xticks(place, VOCABULARY, fontsize=12)
    above.set_title(f"{step + 1}: reads {WORD[step]}, next is {WORD[step + 1]}", fontsize=11)
    below.bar(range(1, UNITS + 1), states[step], color="#D55E00")
    below.axhline(0, color="0.6", linewidth=0.8)
    below.set(xticks=range(1, UNITS + 1), xlabel="unit", ylim=(-1.1, 1.1))
axes[0, 0].set(ylabel="probability of the next letter", ylim=(0, 1.05))
axes[1, 0].set_ylabel("state h after the step")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
figure.savefig(args.picture, dpi=100)

apart = (written_out(x) - rnn(x)[0]).detach().abs().max()
least = after[np.arange(len(x)), targets].min()
assert apart <= 1e-6
assert args.steps < STEPS or (text == WORD and least > 0.9)
print(f"From h it writes {text}, at least {least:.0%} sure of each letter; loop and layer differ by {apart:.0e}.")
