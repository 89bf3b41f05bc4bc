"""Two models in plain torch.nn, each made faster by one line, and trained beside what it was before.

    python examples/accelerate.py                       both, about a minute on two cores
    python examples/accelerate.py --model tagger --steps 300
    python examples/accelerate.py --threads 1 --hidden 256

The tagger reads the source of Python's standard library character by character and says what kind of token each one
belongs to: an embedding, a bidirectional LSTM of two layers, a linear layer. The reader reads numbers in noisy images,
which the program draws itself: convolutions, a bidirectional GRU of two layers over the columns, and the CTC loss. The
models know nothing of fastrnn. The line is in `compare`:

    fast = fastrnn.accelerate(copy.deepcopy(plain), report=print)

The copy is there to compare; a program of your own says `model = fastrnn.accelerate(model)`, before it compiles the
model, and before or after it makes the optimizer or loads a checkpoint. `fastrnn.to_torch(model)` undoes it.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import keyword
import math
import signal
import statistics
import sysconfig
import time
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn

STEPS = 100
ROWS = 10  # of the table of losses
SAME = 1e-6  # how far outputs in float32 may lie apart before any training
CHARACTERS = 200_000  # of source to train on
KINDS = ("space", "name", "keyword", "op", "number", "string", "comment")
HEIGHT, WIDTH = 16, 128  # of an image
DIGITS = (4, 8)  # in an image, at least and at most
BLANK = 10  # CTC's class of no digit
DARK = (  # for each digit, the strokes of an eight that it lacks
    ("middle",),
    ("top", "middle", "bottom", "upper left", "lower left"),
    ("upper left", "lower right"),
    ("upper left", "lower left"),
    ("top", "bottom", "lower left"),
    ("upper right", "lower left"),
    ("upper right",),
    ("middle", "bottom", "upper left", "lower left"),
    (),
    ("lower left",),
)
NOISE = 0.3  # standard deviation, where paper is 0 and ink 1
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0


class Mistake(Exception):
    """What the person at the keyboard can put right; shown without a traceback."""


class Tagger(nn.Module):
    """Characters (B, T) to logits of their kinds (B, T, kinds)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.rnn = nn.LSTM(64, hidden, num_layers=2, batch_first=True, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, len(KINDS))

    def forward(self, characters: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(characters))[0])


class Reader(nn.Module):
    """Images (B, 1, HEIGHT, WIDTH) to logits of ten digits and the blank for every other column, (T, B, 11)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
        )
        self.rnn = nn.GRU(32 * HEIGHT // 4, hidden, num_layers=2, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, BLANK + 1)

    def forward(self, images: Tensor) -> Tensor:
        columns = self.convolutions(images).permute(3, 0, 1, 2).flatten(2)  # (T, B, features)
        return self.head(self.rnn(columns)[0])


def kinds_of(source: str) -> list[int]:
    """The kind of token that each character of a Python program belongs to, as an index of `KINDS`."""
    starts = list(itertools.accumulate(map(len, io.StringIO(source)), initial=0))
    kinds = [0] * len(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type].lower()
        if kind == "name" and keyword.iskeyword(token.string):
            kind = "keyword"
        if "string" in kind:  # from Python 3.12 on, an f-string is several tokens
            kind = "string"
        if kind in KINDS:
            first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
            kinds[first:last] = [KINDS.index(kind)] * (last - first)
    return kinds


def read_library() -> tuple[Tensor, Tensor]:
    """The characters of Python's own modules, and their kinds: two of (CHARACTERS,) int64, 127 for all beyond ASCII."""
    codes: list[int] = []
    kinds: list[int] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with tokenize.open(path) as file:
            source = file.read()
        codes += (min(ord(character), 127) for character in source)
        kinds += kinds_of(source)
        if len(codes) >= CHARACTERS:
            return torch.tensor(codes[:CHARACTERS]), torch.tensor(kinds[:CHARACTERS])
    raise Mistake("this Python comes without the source of its library; --model reader needs none")


def draw(digits: list[int], generator: torch.Generator) -> Tensor:
    """An image (1, HEIGHT, WIDTH) of digits as a pocket calculator shows them: of any size, anywhere, in noise."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    image, left = torch.zeros(HEIGHT, WIDTH), between(1, 8)
    for digit in digits:
        width, height, top = between(5, 8), between(9, 13), between(0, 3)
        middle, bottom, right = top + height // 2, top + height - 1, left + width - 1
        strokes = {
            "top": image[top, left : right + 1],
            "middle": image[middle, left : right + 1],
            "bottom": image[bottom, left : right + 1],
            "upper left": image[top : middle + 1, left],
            "upper right": image[top : middle + 1, right],
            "lower left": image[middle : bottom + 1, left],
            "lower right": image[middle : bottom + 1, right],
        }
        for name, stroke in strokes.items():
            if name not in DARK[digit]:
                stroke.fill_(1.0)
        left += width + between(2, 6)
    return (image + NOISE * torch.randn(image.shape, generator=generator))[None]


@dataclass(frozen=True)
class Task:
    title: str
    model: nn.Module
    batch: Callable[[torch.Generator], tuple[Tensor, ...]]
    """draws the input and what the loss needs beside the output"""
    loss: Callable[..., Tensor]


def tagging(args: argparse.Namespace) -> Task:
    codes, kinds = read_library()

    def batch(generator: torch.Generator) -> tuple[Tensor, ...]:
        firsts = torch.randint(len(codes) - args.length + 1, (args.batch, 1), generator=generator)
        places = firsts + torch.arange(args.length)
        return codes[places], kinds[places]

    def loss(logits: Tensor, kinds: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), kinds.flatten())

    title = f"{args.length} characters of Python, what kind of token is each?"
    return Task(title, Tagger(args.hidden), batch, loss)


def reading(args: argparse.Namespace) -> Task:
    def batch(generator: torch.Generator) -> tuple[Tensor, ...]:
        counts = torch.randint(DIGITS[0], DIGITS[1] + 1, (args.batch,), generator=generator)
        digits = [torch.randint(10, (int(count),), generator=generator) for count in counts]
        return torch.stack([draw(each.tolist(), generator) for each in digits]), torch.cat(digits), counts

    def loss(logits: Tensor, digits: Tensor, counts: Tensor) -> Tensor:
        steps = torch.full_like(counts, len(logits))
        return F.ctc_loss(logits.log_softmax(-1), digits, steps, counts, blank=BLANK)

    title = f"images of {HEIGHT} x {WIDTH}, {DIGITS[0]} to {DIGITS[1]} digits in each, which?"
    return Task(title, Reader(args.hidden), batch, loss)


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"tagger": tagging, "reader": reading}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, batch: tuple[Tensor, ...]) -> float:
    optimizer.zero_grad()
    loss = task.loss(model(batch[0]), *batch[1:])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


def compare(name: str, args: argparse.Namespace) -> None:
    """Convert a copy of the task's model, see that it computes the same, and train both, a step in turn."""
    torch.manual_seed(args.seed)
    data = torch.Generator().manual_seed(args.seed)
    task = TASKS[name](args)
    plain = task.model
    print(f"\n{name}: {task.title} {args.batch} at a time, {args.hidden} units, {torch.get_num_threads()} threads")

    fast = fastrnn.accelerate(copy.deepcopy(plain), report=print)

    with torch.inference_mode():
        inputs = task.batch(data)[0]
        difference = (fast.eval()(inputs) - plain.eval()(inputs)).abs().max().item()
    print(f"largest difference of the outputs: {difference:.1e}")
    if not difference <= SAME:
        raise Mistake(f"{name}: outputs differ by {difference:.1e}, where {SAME:.0e} is allowed")

    models = {"torch.nn": plain.train(), "fastrnn": fast.train()}
    optimizers = {key: torch.optim.Adam(model.parameters(), LEARNING_RATE) for key, model in models.items()}
    losses: dict[str, list[float]] = {key: [] for key in models}
    seconds: dict[str, list[float]] = {key: [] for key in models}
    print(f"{'step':>6}{'loss: torch.nn':>18}{'fastrnn':>12}")
    for step in range(1, args.steps + 1):
        batch, dropout = task.batch(data), torch.get_rng_state()
        # in turn, and each first as often as the other: what the machine does beside meets both alike
        for key in sorted(models, reverse=step % 2 == 0):
            torch.set_rng_state(dropout)
            start = time.perf_counter()
            losses[key].append(train_step(models[key], optimizers[key], task, batch))
            seconds[key].append(time.perf_counter() - start)
        if step in (1, args.steps) or step % max(1, args.steps // ROWS) == 0:
            print(f"{step:6}{losses['torch.nn'][-1]:18.5f}{losses['fastrnn'][-1]:12.5f}", flush=True)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    theirs, ours = (1e3 * statistics.median(times) for times in seconds.values())
    print(f"largest difference of the losses: {apart:.1e}")
    print(f"a step of training, median: torch.nn {theirs:.1f} ms, fastrnn {ours:.1f} ms")
    print(f"fastrnn trains this model at {theirs / ours:.2f} times torch.nn's speed")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=(*TASKS, "both"), default="both", help="(both)")
    add("--steps", type=int, default=STEPS, help=f"of training, for each model ({STEPS})")
    add("--hidden", type=int, default=128, help="units in a layer and direction (128)")
    add("--batch", type=int, default=32, help="sequences or images in a step (32)")
    add("--length", type=int, default=100, help="characters in a sequence (100)")
    add("--threads", type=int, help="that torch and fastrnn compute with (as torch has chosen)")
    add("--seed", type=int, default=0, help="of weights, data and dropout (0)")
    args = parser.parse_args(arguments)
    limits: tuple[tuple[str, float, float], ...] = (
        ("steps hidden batch", 1, math.inf),
        ("length", 1, CHARACTERS),
        ("threads", 1, 1024),
        ("seed", 0, 2**63 - 1),
    )
    for names, low, high in limits:
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                parser.error(f"--{name} must be {bounds}, got {value}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        for name in TASKS if args.model == "both" else (args.model,):
            compare(name, args)
    except Mistake as mistake:
        raise SystemExit(f"accelerate: {mistake}") from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
