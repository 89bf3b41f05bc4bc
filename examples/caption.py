"""
One to many: a drawing put into words
=====================================

One input, many outputs: an image of 16 by 16 pixels goes in once, and a recurrent network writes a sentence about it,
a word a step. A small convolutional encoder turns the image into the *first state* of a GRU, the decoder, which from
then on sees nothing but its own words (after Show and Tell, Vinyals et al., 2015, where it is the first *input*). There
are 216 things to draw; of 20 no drawing is seen in training, and their sentences must be put together from known words.
"""

import argparse
import itertools
import sys

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 600
parser = argparse.ArgumentParser(description="Train a decoder to describe drawings, one word a step.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="caption.png", help="where the picture goes (caption.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# A shape is all that is nearer to its centre than the radius, by a distance made of u (to the right) and v (down).

SIZES = {"small": 2.4, "big": 4.0}  # radius in pixels
COLOURS = {"red": (1.0, 0.3, 0.3), "green": (0.2, 0.8, 0.3), "blue": (0.3, 0.5, 1.0), "yellow": (1.0, 0.9, 0.2)}
SHAPES = {
    "circle": lambda u, v: (u**2 + v**2).sqrt(),
    "triangle": lambda u, v: (2 * u.abs() - v).maximum(v),
    "cross": lambda u, v: u.abs().maximum(v.abs()).maximum(3 * u.abs().minimum(v.abs())),
}
PLACES = {"at the top left": (4, 4), "at the top": (7.5, 4), "at the top right": (11, 4)}
PLACES |= {"on the left": (4, 7.5), "in the middle": (7.5, 7.5), "on the right": (11, 7.5)}
PLACES |= {"at the bottom left": (4, 11), "at the bottom": (7.5, 11), "at the bottom right": (11, 11)}
SENTENCES = [f"a {' '.join(thing)} .".split() for thing in itertools.product(SIZES, COLOURS, SHAPES, PLACES)]
WORDS = sorted({word for sentence in SENTENCES for word in sentence})
STOP = WORDS.index(".")  # comes before the first word, and from the last one on
IDS = nn.utils.rnn.pad_sequence([torch.tensor([WORDS.index(word) for word in s]) for s in SENTENCES], True, STOP)


def draw(things: torch.Tensor) -> torch.Tensor:
    """Noisy images (B, 3, 16, 16) of things (B,), which are places in `SENTENCES`; no two are the same."""
    size, colour, shape, place = torch.unravel_index(things, (2, 4, 3, 9))
    x, y = (torch.tensor([*PLACES.values()])[place] + 0.3 * torch.randn(len(things), 2))[..., None, None].unbind(1)
    u, v = torch.arange(16.0) - x, torch.arange(16.0)[:, None] - y
    far = torch.stack([f(u, v) for f in SHAPES.values()], 1)[torch.arange(len(things)), shape]
    radius = (torch.tensor([*SIZES.values()])[size] * (1 + 0.05 * torch.randn(len(things))))[:, None, None]
    images = torch.tensor([*COLOURS.values()])[colour][..., None, None] * torch.sigmoid(5 * (radius - far))[:, None]
    return images + 0.05 * torch.randn(images.shape)


class Captioner(nn.Module):
    """In training the decoder gets the true sentence, a step late: all steps are one call of the layer. Left alone, it
    is called step by step, and reads next what it has just written."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        convolutions = nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        self.encoder = nn.Sequential(*convolutions, nn.Linear(32 * 4 * 4, hidden), nn.LayerNorm(hidden), nn.Tanh())
        self.embedding, self.head = nn.Embedding(len(WORDS), 32), nn.Linear(hidden, len(WORDS))
        self.decoder = fastrnn.GRU(32, hidden, batch_first=True)

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Scores (B, T, words) of each word after the true ones (B, T)."""
        before = nn.functional.pad(words, (1, -1), value=STOP)
        return self.head(self.decoder(self.embedding(before), self.encoder(images)[None])[0])

    @torch.no_grad()
    def write(self, images: torch.Tensor) -> torch.Tensor:
        """Words (B, T), each the likeliest after those it wrote before."""
        word, state, written = torch.full((len(images), 1), STOP), self.encoder(images)[None], []
        for _ in range(IDS.shape[1]):
            output, state = self.decoder(self.embedding(word), state)
            written.append(word := self.head(output).argmax(-1))
        return torch.cat(written, 1)


unknown, known = torch.randperm(len(SENTENCES)).split([20, len(SENTENCES) - 20])
model = Captioner()
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, args.steps + 1)
for _ in track(range(args.steps), "training"):
    things = known[torch.randint(len(known), (64,))]
    loss = nn.functional.cross_entropy(model(draw(things), IDS[things]).flatten(0, 1), IDS[things].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %%
# New drawings, five of each thing; at last of those of which it has not seen any.

shares = []
for things in known.repeat(5), unknown.repeat(5):
    images = draw(things)
    wrote = model.write(images)
    right = (wrote == IDS[things]).all(1)
    shares.append(100 * right.float().mean().item())

figure, axes = plt.subplots(2, 4, figsize=(8, 4.8), layout="constrained")
for axis, image, row, true in zip(axes.flat, images, wrote, right, strict=False):
    words = [WORDS[word] for word in row if word != STOP]
    axis.imshow(image.movedim(0, -1).clamp(0, 1).tolist())
    axis.set_title(f"{' '.join(words[:4])}\n{' '.join(words[4:])}", fontsize=10, color="black" if true else "red")
    axis.axis("off")
figure.suptitle("What the decoder writes of things that it has never seen (red: wrong)")
figure.savefig(args.picture, dpi=100)

if args.steps >= STEPS:
    assert min(shares) > 90
print(f"{shares[0]:.1f} % of new drawings get the exact sentence, {shares[1]:.1f} % of those of things not trained on.")
