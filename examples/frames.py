"""
Many to many, frame by frame: what kind of sound is this?
=========================================================

A label for every frame of a signal, as it comes in: silence, a tone, a rising or a falling chirp. A frame holds half
a swing to six; which way the pitch moves shows only over several frames. An LSTM that runs forward in time must
guess where a segment begins. A bidirectional one has heard what follows (Schuster and Paliwal, 1997; Graves and
Schmidhuber, 2005, label speech so), but has to wait for the end. The forward one is then served frame by frame.
"""

import argparse
import sys

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import fastrnn

STEPS = 200
parser = argparse.ArgumentParser(description="Label every frame of a signal, forward in time and in both directions.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
parser.add_argument("--picture", default="frames.png", help="where the picture goes (frames.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)

# %%
# A segment has 8 to 16 frames of 20 samples. Its pitch begins anywhere between 0.04 and 0.16 swings a sample; a chirp
# ends at the double or at the half of that. Noise lies over everything.

KINDS = ["silence", "tone", "rising", "falling"]
T, SAMPLES = 80, 20  # frames of a signal, samples of a frame


def signal() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames (T, SAMPLES), their labels (T,), and how many frames of its segment came before each (T,)."""
    waves, labels, ages = [], [], []
    while len(labels) < T:
        frames, kind = int(torch.randint(8, 17, ())), int(torch.randint(len(KINDS), ()))
        octaves = torch.linspace(0, 1, frames * SAMPLES) * (0, 0, 1, -1)[kind]
        pitch = 0.08 * 2 ** (2 * torch.rand(()) - 1 + octaves)
        wave = torch.sin(2 * torch.pi * (torch.rand(()) + pitch.cumsum(0))) * (kind > 0)
        waves.append(wave + 0.2 * torch.randn(wave.shape))
        labels += [kind] * frames
        ages += range(frames)
    return torch.cat(waves)[: T * SAMPLES].view(T, SAMPLES), torch.tensor(labels[:T]), torch.tensor(ages[:T])


class Labeller(nn.Module):
    """Frames (T, B, SAMPLES) to scores (T, B, kinds)."""

    def __init__(self, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(SAMPLES, 64), nn.ReLU())
        self.layer = fastrnn.LSTM(64, hidden, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), len(KINDS))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.frame(frames))[0])


# %%
# Two models are trained on the same signals. They differ in one argument, which doubles the recurrent weights.

models = {"forward": Labeller(64, bidirectional=False), "bidirectional": Labeller(64, bidirectional=True)}
frames, labels, _ = (torch.stack(each, 1) for each in zip(*(signal() for _ in range(500)), strict=True))
optimizer = torch.optim.Adam([p for model in models.values() for p in model.parameters()], 5e-3)
for _ in track(range(args.steps), "training"):
    batch = torch.randint(frames.shape[1], (32,))
    scores = torch.stack([model(frames[:, batch]) for model in models.values()])  # (2, T, B, kinds)
    loss = nn.functional.cross_entropy(scores.flatten(0, 2), labels[:, batch].flatten().repeat(2))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

frames, truth, ages = (torch.stack(each, 1) for each in zip(*(signal() for _ in range(100)), strict=True))
with torch.no_grad():
    found = {name: model(frames).argmax(-1) for name, model in models.items()}  # (T, B) each
right = {name: 100 * (kinds == truth).float() for name, kinds in found.items()}

# %%
# In real time, a stream keeps the layer's state from call to call. What it says of a frame is known before the next one
# comes, and it is what the layer says that gets all frames at once.

model = models["forward"]
stream = fastrnn.stream(model.layer, batch=frames.shape[1])
with torch.no_grad():
    served = torch.stack([model.head(stream(model.frame(frame))) for frame in frames])  # frame (B, SAMPLES)
    torch.testing.assert_close(served, model(frames), rtol=1e-4, atol=1e-4)

# %%
# The forward model errs where segments begin: in the ribbons of one signal, and in the mean over all.

figure, (top, middle, bottom) = plt.subplots(3, figsize=(8, 6.4), height_ratios=(1, 1.6, 1.6), layout="constrained")
top.plot(torch.arange(T * SAMPLES) / SAMPLES, frames[:, 0].flatten(), color="black", linewidth=0.5)
top.set(xlim=(0, T), ylabel="signal", title="A signal, and what each model hears in it")
colours = ["#cccccc", "#0072b2", "#e69f00", "#009e73"]
for place, kinds in enumerate([truth, *found.values()]):
    middle.bar(range(T), 0.8, 1, -place, color=[colours[kind] for kind in kinds[:, 0]], align="edge")
middle.set(xlim=(0, T), ylim=(-3.1, 0.9), xlabel="time (frames)")
middle.set_yticks([0.4, -0.6, -1.6], ["truth", *found])
middle.legend([plt.Rectangle((0, 0), 1, 1, color=c) for c in colours], KINDS, ncols=4, loc="lower center")
for (name, each), style in zip(right.items(), ("o-k", "s--k"), strict=True):
    bottom.plot(range(1, 11), [each[ages == age].mean() for age in range(10)], style, label=name)
bottom.set(xlabel="frames of a segment heard so far", ylabel="right (% of frames)", ylim=(0, 104), xticks=range(1, 11))
bottom.legend(loc="lower right")
figure.savefig(args.picture, dpi=100)

shares = {name: each.mean().item() for name, each in right.items()}
if args.steps >= STEPS:
    assert shares["bidirectional"] > max(90, shares["forward"] + 4)
print(
    f"The forward LSTM labels {shares['forward']:.1f} % of new frames right, in a stream as at once, "
    f"the bidirectional one {shares['bidirectional']:.1f} %."
)
