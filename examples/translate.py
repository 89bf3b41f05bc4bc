"""
Many to many, of unequal lengths: numbers into words
====================================================

Six digits may be three words or nine, and no place of the one belongs to a place of the other. An *encoder* reads the
digits, a *decoder* writes words, and before each one looks for the digits that matter, by *attention* (Bahdanau et al.,
2015; in the form of Luong et al., 2015). It is judged with the true words before each word (*teacher forcing*, as in
training), and running freely on its own.
"""

import argparse
import sys

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 500
parser = argparse.ArgumentParser(description="Train an encoder and a decoder to write numbers in words.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="translate.png", help="where the picture goes (translate.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += [stem + "teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = [stem + "ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
WORDS = [".", *ONES, *TENS, "hundred", "thousand"]  # "." comes before the first word, and from the last one on


def spell(number: int) -> list[str]:
    """347 as three, hundred, forty, seven: up to 999,999."""
    for size, name in (1000, "thousand"), (100, "hundred"):
        if number >= size:
            return [*spell(number // size), name, *(spell(number % size) if number % size else [])]
    return [ONES[number]] if number < 20 else [TENS[number // 10 - 2], *([ONES[number % 10]] if number % 10 else [])]


def pairs(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits (B, T), how many of them count (B,), and words (B, U)."""
    digits = [torch.tensor([int(digit) for digit in str(number)]) for number in numbers]
    words = [torch.tensor([WORDS.index(word) for word in [*spell(number), "."]]) for number in numbers]
    pad = nn.utils.rnn.pad_sequence  # with zeros
    return pad(digits, batch_first=True), torch.tensor([len(each) for each in digits]), pad(words, batch_first=True)


class Translator(nn.Module):
    """The decoder starts from zeros: all that it knows of the number comes by attention, which is computed after the
    recurrence. So in training, where all words are known, the decoder is one call of its layer."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.digits, self.words = nn.Embedding(10, 16), nn.Embedding(len(WORDS), 16)
        self.encoder = fastrnn.GRU(16, hidden // 2, batch_first=True, bidirectional=True)
        self.decoder = fastrnn.GRU(16, hidden, batch_first=True)
        self.keys, self.head = nn.Linear(hidden, hidden), nn.Linear(2 * hidden, len(WORDS))

    def decode(self, remembered, lengths, before, state=None):
        """Scores (B, U, words) of the words after those before (B, U); the attention (B, U, T); the state."""
        output, state = self.decoder(self.words(before), state)
        match = output @ self.keys(remembered).transpose(1, 2)
        attention = match.masked_fill(torch.arange(match.shape[2]) >= lengths[:, None, None], -torch.inf).softmax(-1)
        return self.head(torch.cat([output, attention @ remembered], -1)), attention, state

    def forward(self, digits: torch.Tensor, lengths: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Teacher forcing: the scores (B, U, words) of each word after the true ones (B, U)."""
        remembered, _ = self.encoder(self.digits(digits), lengths=lengths)
        return self.decode(remembered, lengths, nn.functional.pad(words, (1, -1)))[0]

    def write(self, digits: torch.Tensor, lengths: torch.Tensor, U: int) -> tuple[torch.Tensor, ...]:
        """Running freely: words (B, U), each the likeliest after those it wrote before, and the attention (B, U, T)."""
        remembered, _ = self.encoder(self.digits(digits), lengths=lengths)
        word, state, written = torch.zeros_like(digits[:, :1]), None, []
        for _ in range(U):
            scores, attention, state = self.decode(remembered, lengths, word, state)
            written.append((word := scores.argmax(-1), attention))
        return tuple(torch.cat(each, 1) for each in zip(*written, strict=True))


numbers = (10 ** (6 * torch.rand(21000, dtype=torch.float64))).int().tolist()  # each length equally often
held_out = {number for number in numbers[:1000] if number >= 100}
test, train = pairs(sorted(held_out)), pairs([number for number in numbers[1000:] if number not in held_out])
model = Translator()
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, args.steps + 1)
for _ in track(range(args.steps), "training"):
    batch = torch.randint(len(train[0]), (64,))
    digits, lengths, words = (each[batch] for each in train)
    loss = nn.functional.cross_entropy(model(digits, lengths, words).flatten(0, 1), words.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %%
# Of numbers that it has not seen, those count of which every word is right.

told = model(*test).argmax(-1), model.write(*test[:2], test[2].shape[1])[0]
forced, free = (100 * (words == test[2]).all(1).float().mean().item() for words in told)

figure, axes = plt.subplots(1, 2, figsize=(8, 4.8), width_ratios=(3, 6), layout="constrained")
for axis, number in zip(axes, (347, 950317), strict=True):
    words, attention = model.write(*pairs([number])[:2], len(spell(number)) + 1)
    shown = axis.imshow(attention[0].tolist(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(str(number))), str(number))
    axis.set_yticks(range(words.shape[1]), [WORDS[word] for word in words[0]])
    axis.set(title=f"{number:,}", xlabel="digit read", ylabel="word written (from top to bottom)")
figure.colorbar(shown, label="attention (share of 1)")
figure.savefig(args.picture, dpi=100)

if args.steps >= STEPS:
    assert min(forced, free) > 95
print(f"Of {len(test[0])} new numbers {forced:.1f} % are spelt right by teacher forcing, {free:.1f} % by free running.")
