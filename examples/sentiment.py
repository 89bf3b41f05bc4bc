"""
Many to one: praise or blame
============================

Many words go in, one answer comes out: does the sentence praise, or blame? In *the film was not at all dull and the
hall was cold* a small word turns the meaning of a later one; about the hall it would turn nothing that matters. An LSTM
tells them apart. A *bag of words*, which knows the words but not their order, cannot (compare Socher et al., 2013).
``lengths=`` takes a padded batch of sentences of many lengths as it is, in any order.
"""

import argparse
import random
import sys

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 300
parser = argparse.ArgumentParser(description="Train an LSTM and a bag of words to tell praise from blame.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="sentiment.png", help="where the picture goes (sentiment.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
random.seed(0)

# %%
# One to six clauses, of which one may be an opinion; the others are facts. Any clause may be turned by its form: that
# matters in the opinion only. A sentence's *twin* has the same words, but the opinion and a fact swap their forms.

PLAIN = ["the {} was {}", "the {} was very {}", "the {} was never anything but {}", "everybody called the {} {}"]
TURNED = ["the {} was not {}", "the {} was not at all {}", "never was the {} {}", "the {} was anything but {}"]
PRAISE, BLAME = ["good", "great", "funny", "touching"], ["bad", "dull", "awful", "clumsy"]
WORKS, PLACES, FACTS = ["film", "plot", "music", "cast"], ["hall", "evening"], ["cold", "late", "full", "dark"]
ALL = " ".join(PLAIN + TURNED + PRAISE + BLAME + WORKS + PLACES + FACTS)
WORDS = ["", *sorted({*ALL.split(), "and"} - {"{}"})]  # the first fills what is beyond a sentence's end


def sentence() -> tuple[str, str, float, bool]:
    """A sentence; its twin, or itself; 1 for praise, 0 for blame, 0.5 for neither; whether what matters is turned."""
    forms = [random.choice(random.choice([PLAIN, PLAIN, TURNED])) for _ in range(random.randint(1, 6))]
    about = [(random.choice(PLACES), random.choice(FACTS)) for _ in forms]
    opinion, target = random.randrange(len(forms)), 0.5
    turned = forms[opinion] in TURNED
    if random.random() < 0.8:
        about[opinion] = random.choice(WORKS), random.choice(PRAISE + BLAME)
        target = float((about[opinion][1] in PRAISE) != turned)
    text = " and ".join(form.format(*words) for form, words in zip(forms, about, strict=True))
    other = next((place for place, form in enumerate(forms) if (form in TURNED) != turned), opinion)
    forms[opinion], forms[other] = forms[other], forms[opinion]
    twin = " and ".join(form.format(*words) for form, words in zip(forms, about, strict=True))
    return text, twin, target, turned


def padded(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The words' numbers (B, T), and how many of them count (B,)."""
    rows = [torch.tensor([WORDS.index(word) for word in text.split()]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


embedding, lstm, head = nn.Embedding(len(WORDS), 16), fastrnn.LSTM(16, 32, batch_first=True), nn.Linear(32, 1)
bag = nn.Sequential(nn.EmbeddingBag(len(WORDS), 64, mode="sum", padding_idx=0), nn.ReLU(), nn.Linear(64, 1))


def scores(words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Of praise (2, B): the LSTM's, from its state after each sentence's own last word, and the bag's."""
    _, (last, _) = lstm(embedding(words), lengths=lengths)
    return torch.stack([head(last[0]), bag(words)]).squeeze(-1)


drawn = [sentence() for _ in range(6000)]
texts, _, targets, _ = zip(*drawn[1000:], strict=True)
(words, lengths), target = padded(texts), torch.tensor(targets)
optimizer = torch.optim.Adam(nn.ModuleList([embedding, lstm, head, bag]).parameters(), 1e-2)
for _ in track(range(args.steps), "training"):
    batch = torch.randint(len(words), (64,))
    loss = nn.BCEWithLogitsLoss()(scores(words[batch], lengths[batch]), target[batch].expand(2, -1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# New opinions are plain, or turned, or twins: a bag that is right about one of two twins is wrong about the other.

new = [each for each in drawn[:1000] if each[0] not in texts and each[2] != 0.5]
kinds = {kind: [each[::2] for each in new if each[3] == (kind == "turned")] for kind in ("plain", "turned")}
kinds["twins"] = [each for text, twin, y, _ in new if twin not in (text, *texts) for each in ((text, y), (twin, 1 - y))]
right = []  # of both models, of each kind of sentence
for group in kinds.values():
    told = scores(*padded([text for text, _ in group])) > 0
    right.append(100 * (told == torch.tensor([target == 1 for _, target in group])).float().mean(1))

# %%
# What the LSTM answers if a sentence ends after this word or that: a batch of as many lengths as it has words.

figure, axes = plt.subplots(4, figsize=(8, 7), height_ratios=(1, 1, 1, 1.5), layout="constrained")
shown = ["the hall was not cold and the film was good", "the hall was cold and the film was not at all good"]
for axis, text in zip(axes, [*shown, "never was the film dull and the hall was not cold"], strict=False):
    words, lengths = padded([" ".join(text.split()[: end + 1]) for end in range(len(text.split()))])
    praise = scores(words, lengths)[0].sigmoid() - 0.5
    axis.bar(range(len(praise)), praise.tolist(), 0.7, 0.5, color=["#009e73" if p > 0 else "#d55e00" for p in praise])
    axis.set(ylim=(0, 1), xlim=(-0.6, 11.6), ylabel="P(praise)", xticks=range(len(praise)), xticklabels=text.split())
of_lstm, of_bag = torch.stack(right, 1).tolist()
axes[3].bar_label(axes[3].bar(range(3), of_lstm, -0.38, align="edge", color="black", label="LSTM"), fmt="%.0f")
axes[3].bar_label(axes[3].bar(range(3), of_bag, 0.38, align="edge", color="silver", label="bag of words"), fmt="%.0f")
axes[3].set_xticks(range(3), [f"{kind} ({len(group)})" for kind, group in kinds.items()])
axes[3].set(ylabel="right (% of sentences)", ylim=(0, 119), xlim=(-0.6, 3.4))
axes[3].legend(loc="center right")
figure.savefig(args.picture, dpi=100)

assert abs(of_bag[2] - 50) < 1, "a bag has one score for two twins, which have the same words"
if args.steps >= STEPS:
    assert min(of_lstm) > 95 > 60 > of_bag[1]
print(f"Where word counts tell nothing, the LSTM is right in {of_lstm[2]:.1f} %, a bag of words in {of_bag[2]:.1f} %.")
