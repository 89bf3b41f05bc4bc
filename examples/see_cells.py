"""
What a single unit knows
========================

A network that is trained for nothing but the next letter has units that mean something: Karpathy, Johnson and Li
("Visualizing and Understanding Recurrent Networks", 2015) found one that is on inside quotes, and one that counts along
the line. We look for both in an LSTM that reads lines of 32 columns with speech in them; then at the gates of every
unit, which say much that their mean hides. A page, too, is written: more of the text, coloured by each unit in turn.
"""

import argparse
import html
import random
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.progress import track

import fastrnn

STEPS = 600
parser = argparse.ArgumentParser(description="What single units of a small model of letters know.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="see_cells.png", help="where the picture goes (see_cells.png)")
parser.add_argument("--html", help="where the page goes (beside the picture)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
draw, UNITS, WIDTH = random.Random(0), 32, 32

# %%
# The text: words of random letters in lines, every second group in quotes, where 4 of the 14 letters are others.
# Who knows whether quotes are open, and how long the line is by now, guesses better. The last fifth is not learnt.
words = []
for language, mark in (("abdeghiklnorst", ""), ("aehiklmnoprtuw", '"')) * 750:
    drawn = ("".join(draw.choices(language, k=draw.randint(1, 5))) for _ in range(draw.randint(3, 9)))
    words.append(mark + " ".join(drawn) + mark)
text = textwrap.fill(" ".join(words), WIDTH) + "\n"
cut, alphabet = text.index("\n", len(text) * 4 // 5) + 1, sorted(set(text))
letters = F.one_hot(torch.tensor([alphabet.index(letter) for letter in text])).float()
lstm, head = fastrnn.LSTM(len(alphabet), UNITS), torch.nn.Linear(UNITS, len(alphabet))
optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], 1e-2)
for _ in track(range(args.steps), "training"):
    window = letters[torch.randint(cut - 100, (16,)) + torch.arange(101)[:, None]]  # (T + 1, B, letters)
    optimizer.zero_grad()
    F.cross_entropy(head(lstm(window[:-1])[0]).flatten(0, 1), window[1:].flatten(0, 1)).backward()
    torch.nn.utils.clip_grad_norm_(lstm.parameters(), 1.0)
    optimizer.step()

# %%
# ``return_states`` gives c, which each unit remembers after a letter. The gates follow from the input and h before it;
# ``fastrnn.probe`` gives their means over the units, which must agree.
with torch.no_grad():
    memory = lstm(letters, return_states=True)[2][1][0].tanh()  # of c, (T, H)
    unseen = letters[cut : cut + 5000]
    with fastrnn.probe(lstm) as record:
        h = lstm(unseen)[0]
    shares = F.linear(unseen, lstm.weight_ih_l0, lstm.bias_ih_l0)
    shares += F.linear(F.pad(h[:-1], (0, 0, 1, 0)), lstm.weight_hh_l0, lstm.bias_hh_l0)
gates = dict(zip("ifgo", shares.sigmoid().chunk(4, 1), strict=True))
for name, means in record["LSTM"].gate_means.items():
    assert name == "g" or torch.allclose(gates[name].mean(1).double(), means[0], rtol=1e-4, atol=1e-5)


# %%
# A unit's AUC is the chance that it is higher where something is true than where it is not: 0.5 says nothing, 1 or 0
# tells. The unit is chosen on the text that was learnt, and judged on the other.
def auc(values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    ranks, count = values.argsort(0).argsort(0)[truth].double(), truth.sum()
    return (ranks.mean(0) - (count - 1) / 2) / (~truth).sum()


quotes = torch.tensor([letter == '"' for letter in text])
columns = torch.tensor([column for line in text.splitlines() for column in range(len(line) + 1)])
facts = {"inside quotes": (quotes.cumsum(0) % 2 == 1) & ~quotes, "late in the line": columns >= WIDTH // 2}
found, units = {}, {}
for name, truth in facts.items():
    scores = auc(memory[:cut], truth[:cut])
    units[name] = unit = int((scores - 0.5).abs().argmax())
    found[name] = auc(memory[cut:, unit] * (scores[unit] - 0.5).sign(), truth[cut:]).item()

# %%
# The picture. Gates below 0.1 are called left-saturated, those above 0.9 right-saturated.
NEAREST = {"aspect": "auto", "interpolation": "nearest"}
figure, axes = plt.subplot_mosaic("ab;cd", figsize=(8, 5.2), layout="constrained")
for axis, (name, unit) in zip("ab", units.items(), strict=True):
    grid, start = torch.zeros(5, WIDTH), cut
    for row, line in enumerate(text[cut:].splitlines()[: len(grid)]):
        grid[row, : len(line)], start = memory[start : start + len(line), unit], start + len(line) + 1
        for column, letter in enumerate(line):
            axes[axis].text(column, row, letter, family="monospace", fontsize=8, ha="center", va="center")
    axes[axis].imshow(grid.numpy(), plt.get_cmap("RdBu_r", 9), vmin=-1, vmax=1, alpha=0.7, **NEAREST)
    axes[axis].set(title=f"unit {unit}: {name}", xticks=[], yticks=[])
shown = axes["c"].imshow(gates["f"][:50].T.numpy(), plt.get_cmap("viridis", 9), vmin=0, vmax=1, **NEAREST)
axes["c"].plot(((1 - gates["f"][:50].mean(1)) * (UNITS - 1)).numpy(), color="white")
axes["c"].set(title="forget gates (white: their mean)", xlabel="letter of the text", ylabel="unit")
figure.colorbar(shown, ax=axes["c"], label="shut 0 … open 1")
for name, label, colour in (("i", "input", "#0072B2"), ("f", "forget", "#D55E00"), ("o", "output", "#009E73")):
    shut, opened = (gates[name].numpy() < 0.1).mean(0), (gates[name].numpy() > 0.9).mean(0)
    axes["d"].scatter(opened, shut, s=10, color=colour, label=label)
axes["d"].set(title="gates of every unit", xlabel="right-saturated (share of steps)", ylabel="left-saturated")
axes["d"].legend()
figure.savefig(args.picture, dpi=100)

page = "<!doctype html><meta charset='utf-8'><title>What each unit knows</title>"
for unit, values in enumerate(memory[cut : cut + 400].T.tolist()):
    colours = [f"rgba({'214,96,77' if value > 0 else '67,147,195'},{abs(value):.2f})" for value in values]
    spans = [f"<span style='background:{s}'>{html.escape(x)}</span>" for s, x in zip(colours, text[cut:], strict=False)]
    page += f"<h3>unit {unit}</h3><pre>{''.join(spans)}</pre>"
Path(args.html or Path(args.picture).with_suffix(".html")).write_text(page, encoding="utf-8")

if args.steps >= STEPS:
    assert min(found.values()) > 0.8 < 0.9 < max(found.values()), found
inside, late = found.values()
print(f"One unit tells whether quotes are open (AUC {inside:.2f}), one whether a line is half full (AUC {late:.2f}).")
